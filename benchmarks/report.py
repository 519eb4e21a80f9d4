"""Writes docs/benchmarks.md and its figure from benchmarks/results/: `python -m benchmarks.report`."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import accelerator
from benchmarks.race import ROOT
from benchmarks.run import RESULTS

PAGE = ROOT / "docs" / "benchmarks.md"
FIGURE = ROOT / "docs" / "benchmarks.png"
PHASES = ("decode", "score", "policy", "reference", "update")
Json = dict[str, Any]


def main() -> None:
    """Reads the results files, writes page and figure."""
    parts = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in PARTS]
    PAGE.write_text("\n\n".join((page(*parts).rstrip(), accelerator_part())) + "\n", encoding="utf-8")
    draw(parts[0], parts[1], FIGURE)


PARTS = ("compare", "growth", "head", "rounding")


def page(compared: Json, grown: Json, heads: Json, rounded: Json) -> str:
    """The markdown page."""
    speed = (about(compared), ratio_table(compared), run_table(compared))
    return "\n\n".join((*speed, growth_table(grown), head_table(heads), rounding_table(rounded))) + "\n"


def accelerator_part() -> str:
    """What `make accelerator` has found, or that it has not run."""
    about = "`make accelerator` checks what an accelerator computes, and times the paper's model shapes on it with\n"
    about += "random weights.\n\n"
    if not accelerator.RESULTS.is_file():
        return f"## On an accelerator\n\n{about}It has not run on one yet: none was at hand."
    found = json.loads(accelerator.RESULTS.read_text(encoding="utf-8"))
    return f"## On an accelerator\n\n{about}{accelerator.markdown(found).rstrip()}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table, its first column text and the others numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def about(compared: Json) -> str:
    """What was measured, and on what."""
    work = next(iter(compared["runs"].values()))["setting"]["work"]
    versions = "; ".join(
        f"{side}: " + ", ".join(f"{name} {version}" for name, version in packages.items())
        for side, packages in compared["versions"].items()
    )
    return f"""# Speed and memory

Written by `python -m benchmarks.report` from `benchmarks/results/*.json`, which `make bench` measures.

The work is one PPO iteration of a GPT-2 shape ({work["layers"]} layers x {work["width"]}, {work["heads"]} heads,
vocabulary {work["vocab_size"]}): {work["episodes"]} episodes of
{work["query_tokens"]} + {work["response_tokens"]} tokens, none of which ends early, and
{work["epochs"]} PPO epochs with one optimiser step each. The peer is the last PPO of TRL (`trl.experimental.ppo` of
1.12.0), without gradient checkpointing, logging or extra samples. In bfloat16 runs its frozen models are bfloat16. Both
sides score with the same one-layer classifier, and each uses the micro-batch that was fastest for it in a trial. All
runs take turns, with one iteration each per round.

The two sides do not do the same. The peer trains a second backbone as its critic; this project trains a value head on
the policy. The peer keeps the log-probabilities of decoding; this project computes them again unless
`ppo.rollout_logprobs` is `decode`.

Processor: {compared["processor"]}, {compared["threads"]} threads;
load before the run {compared["load_before"]:.1f}. {versions}."""


def ratio_table(compared: Json) -> str:
    """How many times faster."""
    head = [
        "peer's seconds by ours",
        "all episodes",
        "worst 40 %",
        "all, without scoring",
        "40 %, without scoring",
    ]
    names = {
        "fp32": "float32, kept log-probabilities on both sides",
        "fp32_recompute": "float32, ours recomputed",
        "best": "each at its fastest",
    }
    shares = [f"{share}{suffix}" for suffix in ("", "_without_score") for share in ("full", "alpha_0_4")]
    rows = [[text, *(number(compared[f"ratio_{name}_{share}"]) for share in shares)] for name, text in names.items()]
    return "## How many times faster\n\n" + table(head, rows)


def rounds(results: Json) -> str:
    """How many iterations were counted of every run."""
    count = len(next(iter(results["runs"].values()))["seconds"])
    return "one counted round" if count == 1 else f"{count} counted rounds"


def number(value: float | None) -> str:
    """Two decimals, or a dash where nothing was measured."""
    return "-" if value is None else f"{value:.2f}"


def run_table(compared: Json) -> str:
    """Seconds and memory of every run."""
    head = ["run", "micro-batch", "seconds", "quartiles", *PHASES, "peak memory, MiB"]
    rows = [
        [
            name,
            str(run["setting"]["micro_batch"]),
            number(run["median"]),
            " to ".join(number(value) for value in run["quartiles"]),
            *(number(run["phases"].get(phase)) for phase in PHASES),
            f"{run['peak_above_baseline_bytes'] / 2**20:.0f}",
        ]
        for name, run in compared["runs"].items()
    ]
    note = f"Medians of {rounds(compared)}; memory is the process's peak above what it holds with its models loaded."
    return f"## Seconds an iteration\n\n{note}\n\n" + table(head, rows)


def growth_table(grown: Json) -> str:
    """Phases of this project against each size."""
    head = ["work, precision", "seconds", *PHASES, "update, GFLOP/s", "bare products, GFLOP/s", "share"]
    rows = [
        [
            name,
            number(run["median"]),
            *(number(run["phases"][phase]) for phase in PHASES),
            f"{run['update']['flops_per_second'] / 1e9:.0f}",
            f"{run['update']['matmul_flops_per_second'] / 1e9:.0f}",
            number(run["update"]["share"]),
        ]
        for name, run in grown["runs"].items()
    ]
    note = (
        f"One size changes at a time; all episodes are kept; {rounds(grown)}; bfloat16 keeps log-probabilities.\n"
        "The update's rate counts its matrix products only, without attention. Bare products have the same shapes, "
        "with nothing between them."
    )
    return f"## By size\n\n{note}\n\n![Seconds by phase](benchmarks.png)\n\n" + table(head, rows)


def head_table(heads: Json) -> str:
    """What logits in float32 cost in bfloat16."""
    rows = [
        [name, number(statistics.median(run["cpu_seconds"])), number(run["median"])]
        for name, run in heads["runs"].items()
    ]
    low, high = min(heads["ratios"]), max(heads["ratios"])
    note = f"""In passes of bfloat16 the output head's product is float32 (`rarlhf.models.policy.logits_of`).
Iterations with that product and with a product in bfloat16 took turns in one process,
{rounds(heads)}. Float32 takes {heads["ratio"]:.2f} times the processor time (median of the
rounds' ratios, {low:.2f} to {high:.2f}). Seconds also depend on the machine's other work: see its load.

Processor: {heads["processor"]}, {heads["threads"]} threads; load before the run {heads["load_before"]:.1f};
torch {heads["versions"]["ours"]["torch"]}."""
    return "## Logits in float32\n\n" + note + "\n\n" + table(["head", "processor seconds", "seconds"], rows)


def rounding_table(rounded: Json) -> str:
    """Kept against recomputed log-probabilities."""
    both = {name: rounded[name] for name in ("float32", "bfloat16")}
    rows = [[field.replace("_", " "), *(f"{both[name][field]:.3g}" for name in both)] for field in both["float32"]]
    note = (
        "Kept minus recomputed, in nats, on a model whose distributions are far from uniform. The ratios are those of "
        "the first PPO step with kept\nlog-probabilities; with `recompute` they are exactly 1."
    )
    return f"## Log-probabilities kept from decoding\n\n{note}\n\n" + table(["", *both], rows)


def draw(compared: Json, grown: Json, path: Path) -> None:
    """Two panels: the runs beside the peer's, and this project's phases by size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5))
    for panel, runs in zip(panels, (compared["runs"], grown["runs"]), strict=True):
        left = [0.0] * len(runs)
        for phase in (*PHASES, "other"):
            widths = [_phase(run, phase) for run in runs.values()]
            panel.barh(list(runs), widths, left=left, label=phase)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        panel.invert_yaxis()
        panel.set_xlabel("seconds an iteration")
    panels[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _phase(run: Json, phase: str) -> float:
    """Seconds of a phase; `other` is what no phase counted."""
    phases = {name: seconds for name, seconds in run["phases"].items() if name in PHASES}
    return max(0.0, run["median"] - sum(phases.values())) if phase == "other" else phases.get(phase, 0.0)


if __name__ == "__main__":
    main()
