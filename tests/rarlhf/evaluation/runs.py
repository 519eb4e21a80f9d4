"""Small runs on the disk, made from the numbers a test cares about."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from rarlhf.evaluation.compare import RunComparison, compare_runs
from rarlhf.evaluation.compare_runs import read_run
from rarlhf.evaluation.compare_sources import opened
from rarlhf.evaluation.comparisons import DEFINITIONS
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.statistics import over_seeds
from rarlhf.system.files import write_json, write_jsonl
from tests.rarlhf.evaluation.conftest import rows_of

TINY = Path(__file__).parents[3] / "presets" / "tiny.yaml"
PROMPTS, SAMPLES = 20, 2  # a tail of two prompts
TEST = {"prompts": PROMPTS, "samples": SAMPLES, "tail_prompts": 2, "tail_rule": "lowest 10% by prompt score"}
Shifts = Mapping[str, Mapping[int, float]]  # method -> seed -> what is added to every score


def write_params(folder: Path, methods: Sequence[str], seeds: Sequence[int], **changed: Any) -> None:
    """params.yaml of preset tiny with these methods and seeds, and with dotted keys (`__` for the dot) changed."""
    values: dict[str, Any] = deepcopy(_tiny())
    values["evaluate"]["bootstrap_draws"] = 100
    ppo = {m: {"measure": "none"} if m == "rlhf" else {} for m in methods if m not in ("base", "sft")}
    values["methods"] = {
        "start": [m for m in methods if m in ("base", "sft")],
        "ppo": ppo,
        "fit": {},
        "tuned": {},
        "decoded": {},
        "guided": {},
        "headed": {},
        "heads": {},
    }
    values["seeds"] = list(seeds)
    for key, value in changed.items():
        section, name = key.split("__")
        values[section][name] = value
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "params.yaml", values)  # JSON is YAML


@cache
def _tiny() -> dict[str, Any]:
    return YAML(typ="safe").load(TINY.read_text(encoding="utf-8"))


def write_run(
    folder: Path, shifts: Shifts, *, kl: float = 0.0, samples: int = SAMPLES, prompt: float = 0.0, **changed: Any
) -> Path:
    """A run with generations: the score of prompt p, sample s is p / 10 + s plus the shift; the prompt's own is p.

    Args:
        folder: to write to.
        shifts: methods with their seeds.
        kl: of every continuation.
        samples: of each prompt.
        prompt: added to the prompts' own scores.
        changed: values of params.yaml.
    """
    write_params(folder, list(shifts), list(next(iter(shifts.values()))), **changed)
    for method, by_seed in shifts.items():
        (folder / "generations" / method).mkdir(parents=True)
        for seed, shift in by_seed.items():
            scores = [[p / 10 + s + shift for s in range(samples)] for p in range(PROMPTS)]
            rows = rows_of(scores, [p + prompt for p in range(PROMPTS)], kl)
            write_jsonl(folder / "generations" / method / f"{seed}.jsonl", rows)
    return folder


def write_metrics(folder: Path, values: Mapping[str, Mapping[int, float]], **changed: Any) -> Path:
    """metrics/evaluate.json in which every metric of a method has the same value, one for each seed."""
    seeds = list(next(iter(values.values())))
    methods = {m: {metric: over_seeds(list(by.values())) for metric in COMPARED} for m, by in values.items()}
    (folder / "metrics").mkdir(parents=True, exist_ok=True)
    content = {"preset": "tiny", "seeds": seeds, "methods": methods, "test": TEST, "definitions": DEFINITIONS}
    write_json(folder / "metrics/evaluate.json", content | changed)
    return folder


def set_perplexities(folder: Path, method: str, values: Sequence[float]) -> None:
    """Changes the perplexities in metrics/evaluate.json."""
    path = folder / "metrics/evaluate.json"
    content = json.loads(path.read_text())
    content["methods"][method]["perplexity_reference"] = over_seeds(values)
    write_json(path, content)


def compared(a: Path | str, b: Path | str, *methods: tuple[str, str]) -> RunComparison:
    """Two places compared."""
    with opened(str(a)) as first, opened(str(b)) as second:
        return compare_runs(read_run(first), read_run(second), methods)
