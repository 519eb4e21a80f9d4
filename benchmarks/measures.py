"""Every risk measure on the models that a run of the pipeline left here.

    python -m benchmarks.measures [--seeds 1 2 3]     # after `make repro`; writes benchmarks/results/measures.json

Each measure trains the same SFT model against the same reward model on the same queries and seeds, and answers the same
test prompts, so that differences are paired. `none` is plain RLHF.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.data.prompts import Query
from rarlhf.decoding.scored import ScoredContinuations
from rarlhf.evaluation.comparisons import Evaluation, compare_methods
from rarlhf.evaluation.generations import read_tables
from rarlhf.evaluation.perplexity import BATCH, reference_perplexity
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.loading import load_causal_lm
from rarlhf.rewards.scorers import load_reward_model
from rarlhf.rl.parts import Session
from rarlhf.system.files import read_jsonl, write_json, write_jsonl
from rarlhf.system.machine import Machine, prepare
from rarlhf.training.rlhf import Places, train_policy

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"measure": "none"},
    "cvar": {"measure": "cvar"},
    "cvar, critic of all": {"measure": "cvar", "critic": "all"},
    "cvar, hard prompts": {"measure": "cvar", "hard_share": 0.5},
    "cvar_ru": {"measure": "cvar_ru"},
    "cvar_ru, running eta": {"measure": "cvar_ru", "eta": "running", "eta_rate": 0.2},
    "entropic": {"measure": "entropic"},
    "evar": {"measure": "evar"},
    "mean_cvar": {"measure": "mean_cvar"},
}
COLUMNS = ("reward_mean", "reward_prompt_tail", "reward_cvar_10", "kl_sft", "perplexity_reference")
RESULTS = Path("benchmarks/results/measures.json")


class Workbench:
    """What all variants share."""

    def __init__(self, params: Params, seeds: Sequence[int]) -> None:
        self.params, self.seeds = params, list(seeds)
        self.machine: Machine = prepare(params.runtime)
        self.score = load_reward_model(Path("models/reward"), params.reward, self.machine)
        self.generate = ScoredContinuations(Path("models/sft"), self.score, params, self.machine)
        self.queries = [row["input_ids"] for row in read_jsonl(Path("data/prompts/train.jsonl"))]
        self.test = cast("list[Query]", read_jsonl(Path("data/prompts/test.jsonl")))
        self.texts = [row["text"] for row in read_jsonl(Path("data/prompts/perplexity.jsonl"))]

    def run(self, name: str, seed: int, generations: Path) -> tuple[float, float]:
        """Trains and samples one variant with one seed; returns its perplexity and the seconds of training."""
        risk = self.params.risk.model_copy(update=VARIANTS[name])
        params = self.params.model_copy(update={"risk": risk})
        with TemporaryDirectory() as scratch:
            model = Path(scratch, "model")
            places = Places(Path("models/sft"), model, Path(scratch, "checkpoint.safetensors"))
            session = Session(self.machine, SilentRecorder())
            start = time.perf_counter()
            train_policy(self.queries, places, self.score, params, session, seed=seed)
            seconds = time.perf_counter() - start
            generations.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(generations, self.generate(f"{name} seed {seed}", self.generate.open(model), self.test, seed))
            return self.perplexity(model), seconds

    def perplexity(self, model: Path) -> float:
        """Of the reference texts under the model in a folder."""
        lm, tokenizer = load_causal_lm(str(model))
        with self.machine.autocast():
            start = self.params.evaluate.add_start_token
            return reference_perplexity(lm.to(self.machine.device), tokenizer, self.texts, BATCH, start)


def compare(bench: Workbench, names: Sequence[str]) -> tuple[Evaluation, dict[str, list[float]]]:
    """Runs every variant with every seed; returns the evaluation and each variant's seconds by seed."""
    perplexities: dict[str, dict[int, float]] = {name: {} for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with TemporaryDirectory() as folder:
        for seed in bench.seeds:
            for name in names:
                path = Path(folder, name, f"{seed}.jsonl")
                perplexities[name][seed], taken = bench.run(name, seed, path)
                seconds[name].append(taken)
        return compare_methods(read_tables(Path(folder), names, bench.seeds), perplexities, bench.params), seconds


def table(evaluation: Evaluation, seconds: dict[str, list[float]]) -> str:
    """The results as a Markdown table: mean and 95 % half-width over seeds, and seconds of one training."""
    head = ["measure", *COLUMNS, "seconds"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, spreads in evaluation["methods"].items():
        cells = [_cell(spreads[column]) for column in COLUMNS]
        taken = sum(seconds[name]) / len(seconds[name])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {taken:.0f} |")
    return "\n".join(lines)


def _cell(spread: Any) -> str:
    ends = spread["ci95"]
    return f"{spread['mean']:.2f}" + (f" ± {(ends[1] - ends[0]) / 2:.2f}" if ends else "")


def main() -> None:
    """Runs the comparison in the current workspace."""
    parser = argparse.ArgumentParser(description="Compare the risk measures on the models in this workspace.")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of params.yaml")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants to run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results file")
    options = parser.parse_args()
    params = load_params()
    bench = Workbench(params, options.seeds or params.seeds)
    evaluation, seconds = compare(bench, options.only)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {"evaluation": evaluation, "seconds": seconds, "variants": VARIANTS})
    print(table(evaluation, seconds))


if __name__ == "__main__":
    main()
