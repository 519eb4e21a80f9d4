"""Tasks of lm-evaluation-harness: found, given local data where asked, and refused before anything long runs.

The package is an extra (`utility`), so it is imported where it is used.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rarlhf.config.errors import UserError
from rarlhf.config.utility import UtilityParams

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

ACCURACIES = ("acc", "exact_match")  # metrics that are a share of right answers, the first that a task has counts
BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}  # suffix -> loader of `datasets`
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")  # keys that name a split of the data
FEWSHOT_SEED = 1234  # lm-eval's own default
INSTALL = "pip install -c constraints.txt -e '.[utility]'"


class Entry(NamedTuple):
    """What an entry of `utility.tasks` is."""

    group: str | None  # name of the group; None for a task, and for a tag, which names several tasks
    tasks: list[str]  # names of its tasks


class Tasks:
    """The tasks of section `utility`, found once for all models.

    Args:
        params: section `utility`, with at least one task.
        scratch: an empty folder, which must stay as long as the tasks are used.

    Raises: UserError if lm-eval is not installed, a task is not known, or its files are not there.
    """

    def __init__(self, params: UtilityParams, scratch: Path) -> None:
        refuse_without_package(params)
        os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")  # its metrics from the hub are code
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        from lm_eval.tasks import TaskManager

        self.params = params
        own = {name: path for name in params.tasks if (path := _own_file(name)) is not None}
        # Reading the list of some ten thousand tasks takes seconds, so only where a name is in it.
        self.manager = TaskManager(include_defaults=len(own) < len(params.tasks))
        self.specs = [own.get(name, name) for name in params.tasks]
        for name in params.tasks:
            if name not in own and name not in self.manager.task_index:
                raise UserError(
                    f"utility.tasks: {name!r} is no task or group of lm-evaluation-harness, and no YAML file; "
                    "`lm-eval ls tasks` lists them"
                )
            if name in own and name in params.files:
                raise UserError(f"utility.files: {name} is a task of your own, whose YAML file names its data")
        for number, (name, place) in enumerate(params.files.items()):
            for leaf in _leaves(self.manager, name):
                _redirect(self.manager, leaf, f"utility.files.{name}", place, scratch / str(number))

    def load(self) -> tuple[dict[str, Any], list[Entry]]:
        """The tasks as lm-eval's evaluator takes them, with their data; fetched now if they are not there.

        Returns: what its `evaluate` takes as `task_dict`, and what each entry of `utility.tasks` is.

        Raises: UserError if data are missing or unfit, or a task measures no accuracy.
        """
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        entries = []
        for name, spec in zip(self.params.tasks, self.specs, strict=True):
            found = self._load_one(name, spec)
            for task_name, task in found["tasks"].items():
                if task_name in loaded["tasks"]:
                    raise UserError(f"utility.tasks: {task_name} is in two of its entries; name it once")
                _prepare(task_name, task, name, self.params.fewshot.get(name))
            for key, values in loaded.items():
                values.update(found.get(key, {}))
            entries.append(Entry(next(iter(found.get("groups", {})), None), list(found["tasks"])))
        return loaded, entries

    def _load_one(self, name: str, spec: str) -> Mapping[str, Any]:
        try:
            return self.manager.load([spec])
        except Exception as error:  # of lm-eval, datasets, the hub, jinja2, yaml and a task's own code
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"utility.tasks: {name} cannot be loaded ({reason}); give its data in utility.files, or leave it out"
            ) from error


def refuse_without_package(params: UtilityParams) -> None:
    """Raises UserError if tasks are asked for and lm-eval is not installed."""
    if params.tasks and find_spec("lm_eval") is None:
        raise UserError(f"utility.tasks = {params.tasks}: lm-eval is not installed; `{INSTALL}` installs it")


def _prepare(name: str, task: Any, entry: str, examples: int | None) -> None:
    """Sets the number of worked examples as lm-eval's `simple_evaluate` does; refuses what cannot be run here.

    Args:
        name: of the task.
        task: lm-eval's.
        entry: of `utility.tasks` that it belongs to.
        examples: before each question; None for as many as the task says.
    """
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise UserError(f"utility.tasks: {name} runs code that a model wrote, or needs pictures; leave it out")
    if not set(ACCURACIES) & set(task.aggregation()):
        raise UserError(f"utility.tasks: {name} measures no accuracy ({' or '.join(ACCURACIES)}); leave it out")
    own = task.get_config("num_fewshot")
    if own == 0 and examples:
        raise UserError(
            f"utility.fewshot.{entry} = {examples}: {name} is made to be asked without examples; leave it out"
        )
    task.set_config(key="num_fewshot", value=(own if examples is None else examples) or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _own_file(name: str) -> str | None:
    """The path of a YAML file of the user's own; None for a name.

    Raises: UserError if the name is written as a file's and there is none.
    """
    if not name.endswith((".yaml", ".yml")):
        return None
    return str(_there(name, "utility.tasks"))


def _there(place: str, key: str) -> Path:
    """A path that may start here, or in the main repository if this is a copy of it."""
    found = next((path for path in (Path(place), Path(os.environ.get("DVC_ROOT", "."), place)) if path.exists()), None)
    if found is None:
        raise UserError(f"{key}: {place} is not there")
    return found.resolve()


def _leaves(manager: "TaskManager", name: str) -> list[str]:
    """The names of the tasks that a task, group or tag consists of."""
    entry = manager.task_index.get(name)
    members = (entry.cfg or {}).get("task") if entry else None
    if entry and entry.tags and entry.cfg is None:
        members = sorted(entry.tags)
    if not isinstance(members, list):
        return [name]
    inner = [member if isinstance(member, str) else member.get("task") or member.get("group") for member in members]
    return [leaf for member in inner for leaf in _leaves(manager, member)]


def _redirect(manager: "TaskManager", task: str, key: str, place: str, scratch: Path) -> None:
    """Lets a task that lm-eval brings read local files: it is replaced by a YAML file that includes it."""
    from ruamel.yaml import YAML

    entry = manager.task_index.get(task)
    if entry is None or entry.yaml_path is None or (entry.cfg or {}).get("class"):
        raise UserError(f"{key}: {task} is written in Python and reads its data in its own way; leave it out of files")
    config = entry.cfg or {}
    splits = list(dict.fromkeys(config[split] for split in SPLITS if isinstance(config.get(split), str)))
    files = _files(_there(place, key), config.get("dataset_name"), splits, key)
    values = {
        "include": str(entry.yaml_path),
        "task": task,
        "dataset_path": BUILDERS[next(iter(files.values()))[0].suffix],
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: [str(path) for path in paths] for split, paths in files.items()}},
    }
    scratch.mkdir(parents=True, exist_ok=True)
    entry.yaml_path = scratch / f"{task}.yaml"
    with entry.yaml_path.open("w", encoding="utf-8") as stream:
        YAML(typ="safe").dump(values, stream)


def _files(place: Path, name: str | None, splits: Sequence[str], key: str) -> dict[str, list[Path]]:
    """Split -> its files.

    Args:
        place: one file for all splits; or a folder of files that begin with the name of their split, or with such a
            folder for the task's part of the data set, as the hub has them.
        name: of that part.
        splits: that the task reads.
        key: for messages.
    """
    if place.is_file():
        found = {split: [place] for split in splits}
    else:
        folder = place / name if name and (place / name).is_dir() else place
        found = {
            split: sorted(path for path in folder.glob(f"{split}*") if path.suffix in BUILDERS) for split in splits
        }
        missing = [split for split, paths in found.items() if not paths]
        if missing:
            raise UserError(f"{key}: {folder} has no file of split {missing[0]} ({', '.join(BUILDERS)})")
    suffixes = {path.suffix for paths in found.values() for path in paths}
    if len({BUILDERS.get(suffix) for suffix in suffixes}) != 1 or not suffixes <= set(BUILDERS):
        raise UserError(f"{key}: {place} must have files of one kind, {', '.join(BUILDERS)}")
    return found


def refuse_unready(params: UtilityParams, scratch: Path) -> None:
    """Finds the tasks and loads their data, so that what is missing is known before anything long runs.

    Raises: UserError as `Tasks`.
    """
    if params.tasks:
        Tasks(params, scratch).load()
