"""Models that the user gives by a local folder or a hub name, and how the pipeline stores them."""

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.judging import LanguageJudgeParams, PreferenceParams, ScorerParams
from rarlhf.config.params import ModelParams
from rarlhf.models.files import link_or_copy, plain_files, weight_files
from rarlhf.models.hub import Snapshot, fetch_model
from rarlhf.models.loading import load_causal_lm, load_classifier, no_safetensors, save_model
from rarlhf.system.files import write_json


class Given(NamedTuple):
    """A model from a local folder or the hub."""

    found: Snapshot  # the folder it was loaded from
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: str  # of its weights

    def write(self, folder: Path) -> None:
        """Writes what `from_pretrained` loads, and for a hub model `source.json` with its name and commit.

        The files of a hub model are linked if its weights need no conversion, so that they are on disk only once. A
        local folder belongs to the user, who may change it, so it is copied.
        """
        if self.found.commit:
            source = {"source": "hub", "name": self.found.name, "commit": self.found.commit}
            write_json(folder / "source.json", source)
        if not self.found.commit or _stored(self.found.folder) != {self.dtype}:
            save_model(self.model, self.tokenizer, folder)
            return
        for file in (*plain_files(self.found.folder), *weight_files(self.found.folder)):
            link_or_copy(file, folder / file.name)


def given_causal_lm(params: ModelParams) -> Given:
    """The language model of section `model`, in `model.dtype`.

    Raises: UserError as `load_causal_lm`, and if the hub does not give it.
    """
    found = _located(params.source, params.revision, "model.source")
    return Given(found, *load_causal_lm(str(found.folder), getattr(torch, params.dtype), params.source), params.dtype)


def given_judge(params: LanguageJudgeParams) -> Given:
    """The language model of section `judge.language_model` or `judge.preference`, in float32.

    Raises: UserError as `load_causal_lm`, and if the hub does not give it.
    """
    key = f"{params.section}.source"
    found = _located(params.source, params.revision, key)
    return Given(found, *load_causal_lm(str(found.folder), torch.float32, params.source, key), "float32")


def given_chat_judge(params: PreferenceParams) -> Given:
    """The language model of section `judge.preference`, in float32.

    Raises: UserError as `given_judge`, or if it was not made for chats.
    """
    given = given_judge(params)
    refuse_without_template(given.tokenizer, params)
    return given


def refuse_without_template(tokenizer: PreTrainedTokenizerBase, params: PreferenceParams) -> None:
    """Raises UserError if the tokenizer of the model that compares answers has no chat template."""
    if tokenizer.chat_template is None:
        raise UserError(
            f"{params.section}.source = {params.source!r}: its tokenizer has no chat template, so it was not made to "
            "answer questions; name a chat or instruct model, or none"
        )


def given_classifier(params: ScorerParams) -> Given:
    """The classifier of a scorer's section, in float32.

    Raises: UserError as `load_classifier`, and if the hub does not give it.
    """
    key = f"{params.section}.source"
    found = _located(params.source, params.revision, key)
    return Given(found, *load_classifier(str(found.folder), params.source, key), "float32")


def _located(source: str, revision: str | None, key: str) -> Snapshot:
    """The folder of a model: a local one, with an empty commit, or one in the hub's cache."""
    if Path(source).is_dir():
        return Snapshot(source, "", Path(source))
    found = fetch_model(source, revision, key)
    if not weight_files(found.folder):
        raise UserError(no_safetensors(key, source, f"has no safetensors at {found.commit[:10]}"))
    return found


def _stored(folder: Path) -> set[str]:
    """Names of the types of floating-point numbers in a model's safetensors."""
    from safetensors import safe_open

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
    found = set()
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, not a dict
    return {names[kind] for kind in found if kind in names}
