"""Models and data sets of the Hugging Face hub, fetched at one commit; a failure is one clear line.

huggingface_hub puts files into its cache (HF_HOME), and they are read from there. Only plain files of a model are
fetched: configuration, tokenizer and safetensors; never code, and pickled weights only for `rarlhf convert`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rarlhf.config.errors import PassingError, UserError
from rarlhf.models.files import PLAIN, WEIGHTS

SUBFOLDERS = ["*/*"]  # other formats of the same model


class UnreachableError(UserError):
    """The hub is offline by choice, and its local cache lacks the files."""


class NoAnswerError(UnreachableError, PassingError):
    """The hub does not answer at the moment."""


class Snapshot(NamedTuple):
    """A repository of the hub at one commit, in the local cache."""

    name: str
    commit: str
    folder: Path


def fetch_model(name: str, revision: str | None, key: str, weights: Sequence[str] = WEIGHTS) -> Snapshot:
    """Fetches a model's plain files and safetensors.

    Args:
        name: of the repository, as in `openai-community/gpt2`.
        revision: commit, branch, tag or `refs/pr/N`; None: the current main branch.
        key: key of params.yaml with the model's name, for the error's text.
        weights: patterns of the files of weights.
    Raises: UserError if there is no such repository or revision, it is gated, or it is neither reachable nor cached.
    """
    return _fetch(name, revision, key, "model", [*PLAIN, *weights])


def fetch_config(name: str, revision: str | None, key: str) -> Snapshot:
    """Fetches a model's configuration alone.

    Raises: UserError as `fetch_model`.
    """
    return _fetch(name, revision, key, "model", ["config.json"])


def fetch_data_set(name: str, revision: str | None) -> Snapshot:
    """Fetches all files of a data set; a local folder of such files is used as it is, and has no commit.

    Raises: UserError as `fetch_model`.
    """
    if Path(name).is_dir():
        return Snapshot(name, "", Path(name))
    return _fetch(name, revision, "data.name", "dataset")


def _fetch(
    name: str, revision: str | None, key: str, kind: Literal["model", "dataset"], files: list[str] | None = None
) -> Snapshot:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import is_offline_mode

    try:
        ignored = SUBFOLDERS if files else None
        place = snapshot_download(
            name, revision=revision, repo_type=kind, allow_patterns=files, ignore_patterns=ignored
        )
    except Exception as error:  # anything that the client and its libraries raise
        refused = _refused(name, revision, key, kind, error)
        if refused:
            raise UserError(f"{key} = {name!r}: {refused}") from error
        kind_of_error = UnreachableError if is_offline_mode() else NoAnswerError  # offline mode does not end by itself
        raise kind_of_error(f"{key} = {name!r}: {_unreachable(name, revision, key, kind, error)}") from error
    return Snapshot(name, Path(place).name, Path(place))


def _refused(name: str, revision: str | None, key: str, kind: str, error: Exception) -> str:
    """Why the hub refuses it and what to do; empty if it did not answer."""
    from huggingface_hub import errors

    section = key.partition(".")[0]
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    if isinstance(error, errors.GatedRepoError):
        return f"gated on the hub: ask for access on {page}, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"not there on the hub, or private: check the name on {page}, or `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision!r}: set {section}.revision to a commit or branch of {page}/tree/main"
    if isinstance(error, errors.HFValidationError):
        return "neither a local folder nor a name that the hub can have, such as openai-community/gpt2"
    return ""


def _unreachable(name: str, revision: str | None, key: str, kind: str, error: Exception) -> str:
    """What to do if the hub cannot be reached."""
    wanted = revision or "main"
    command = f"hf download {name}{' --repo-type dataset' if kind == 'dataset' else ''} --revision {wanted}"
    detail = " ".join(str(error).split())[:120]
    return (
        "neither a local folder nor to be had from the hub, which cannot be reached, and the local cache lacks "
        f"revision {wanted!r}; on a machine with network run `{command}`, bring that cache here and set HF_HOME to "
        f"it, or give its folder as {key} ({type(error).__name__}: {detail})"
    )
