"""What the models of all methods can still do."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rarlhf.config.methods import methods_of
from rarlhf.config.params import Params
from rarlhf.data.rows import read_rows
from rarlhf.messages.progress import Recorder
from rarlhf.models.backbone import ModelFolders
from rarlhf.models.loading import load_tokenizer
from rarlhf.models.way import own_way
from rarlhf.system.machine import Machine
from rarlhf.utility.classifier import ClassifierRows, choose_rows, classification_auc
from rarlhf.utility.harness import run_tasks
from rarlhf.utility.results import Utility
from rarlhf.utility.tasks import Tasks


class Asked(NamedTuple):
    """What every model is asked; None for what is off."""

    rows: ClassifierRows | None
    tasks: Tasks | None


def utilities(
    raw: Path, models: Path, params: Params, machine: Machine, recorder: Recorder
) -> dict[str, dict[int, Utility]]:
    """The classifier's AUC and the accuracy in each task, of the model of every method and seed.

    A model that all seeds share is measured once. A rule of decoding is left out: it has no states and no
    probabilities of its own.

    Args:
        raw: train.jsonl and test.jsonl.
        models: folder with the models of all methods.
        params: `methods`, `seeds`, `model` and `utility` are read.
        machine: device and precision.
        recorder: takes a line for each model.

    Returns: method -> seed -> utility.

    Raises: UserError as `choose_rows`, `Tasks` and `run_tasks`, or if a model is not there.
    """
    with TemporaryDirectory() as scratch:
        asked = _asked(raw, params, Path(scratch))
        folders = ModelFolders(params.model, machine.device)
        found: dict[str, dict[int, Utility]] = {}
        for method in methods_of(params):
            if not method.has_model:
                recorder.say(f"utility: {method.label} is a rule of decoding, which has no model of its own: left out")
                continue
            for seed in params.seeds:
                done = found.setdefault(method.name, {})
                first = next(iter(done.values()), None)
                done[seed] = (
                    first
                    if first is not None and not method.per_seed
                    else _utility(method.folder(models, seed), asked, folders, params, machine, recorder)
                )
        return found


def _asked(raw: Path, params: Params, scratch: Path) -> Asked:
    classification = params.utility.classification
    rows = None
    if classification.rows:
        rows = choose_rows(read_rows(raw / "train.jsonl"), read_rows(raw / "test.jsonl"), classification)
    return Asked(rows, Tasks(params.utility, scratch) if params.utility.tasks else None)


def _utility(
    folder: Path, asked: Asked, folders: ModelFolders, params: Params, machine: Machine, recorder: Recorder
) -> Utility:
    tokenizer = load_tokenizer(str(folder))
    with folders.open(folder)() as model:
        auc = None
        if asked.rows:
            auc = classification_auc(model, tokenizer, asked.rows, params.utility.classification, machine)
        tasks = run_tasks(model, tokenizer, asked.tasks, own_way(folder).never, machine) if asked.tasks else {}
    found = Utility(auc, tasks)
    recorder.say(f"utility of {folder}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.metrics.items()))
    return found
