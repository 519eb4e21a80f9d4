"""The engine beside the peer: each side's best micro-batch by trial, then all in turn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.race import Report, Told, nobody, race, summary
from benchmarks.setting import Setting, Work

WORK = Work(layers=4, width=256, heads=4, vocab_size=8000, episodes=64, query_tokens=64, response_tokens=48, epochs=4)
ALPHA = 0.4


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    micro_batches: Sequence[int]
    trial_rounds: int
    warmup: int
    rounds: int
    growth_rounds: int
    only: tuple[str, ...] = ()  # names of the settings that are run; all where there are none


FULL = Effort(micro_batches=(8, 16, 64), trial_rounds=2, warmup=1, rounds=5, growth_rounds=2)


def compare(  # noqa: PLR0913, PLR0917, each is a different thing
    folder: Path, work: Work, effort: Effort, threads: int, pythons: dict[str, str], told: Told = nobody
) -> dict[str, Any]:
    """Races the settings; without an interpreter for the peer, this project's alone. `told` is told of each turn.

    Returns: `ratios`, peer's median seconds by ours, and all that they come from.
    """
    sides = ["ours", "peer"] if "peer" in pythons else ["ours"]
    bases = [base for side in sides for base in _bases(folder, work, threads, side)]
    trials = {base.name: _trial(base, effort, pythons, told) for base in bases}
    chosen = [replace(base, micro_batch=_fastest(trials[base.name], base)) for base in bases]
    settings = [setting for setting in (*chosen, *_averse(chosen)) if not effort.only or setting.name in effort.only]
    runs = race(settings, pythons, effort.warmup, effort.rounds, told)
    return ratios(runs) | {"runs": runs, "trials": trials}


def _bases(folder: Path, work: Work, threads: int, side: Any) -> Iterable[Setting]:
    plain = Setting(f"{side}_fp32_full", side, work, str(folder), threads, "float32", work.episodes, 1.0, "decode")
    yield plain
    yield replace(plain, name=f"{side}_bf16_full", precision="bfloat16")
    if side == "ours":  # the peer keeps the log-probabilities of decoding in any case
        yield replace(plain, name="ours_fp32_recompute_full", rollout_logprobs="recompute")


def _averse(settings: Iterable[Setting]) -> list[Setting]:
    """This project's settings once more with the worst share kept."""
    ours = [setting for setting in settings if setting.side == "ours"]
    return [replace(setting, name=setting.name.replace("full", "alpha_0_4"), keep=ALPHA) for setting in ours]


def turns(effort: Effort, sides: int) -> int:
    """How many turns `compare` takes."""
    bases = 3 + 2 * (sides - 1)
    settings = len(effort.only) or bases + 3
    return bases * len(effort.micro_batches) * (1 + effort.trial_rounds) + settings * (effort.warmup + effort.rounds)


def ratios_so_far(reports: Mapping[str, list[Report]]) -> str:
    """The two main ratios by the turns so far, in words; empty while a setting has none, or there is no peer."""
    if not all(reports.values()) or "peer_fp32_full" not in reports or "ours_fp32_alpha_0_4" not in reports:
        return ""
    now = ratios({name: summary(of_one) for name, of_one in reports.items()})
    return (
        f"so far {now['ratio_best_alpha_0_4']:.2f} times faster at the worst 40 %, {now['ratio_best_full']:.2f} on all"
    )


def _trial(base: Setting, effort: Effort, pythons: dict[str, str], told: Told) -> dict[str, float]:
    """Median seconds of each micro-batch size."""
    settings = [replace(base, name=str(size), micro_batch=size) for size in effort.micro_batches]
    runs = [
        race([setting], pythons, 1, effort.trial_rounds, lambda size, _: told(f"{base.name}, {size} at once", {}))
        for setting in settings
    ]
    return {name: report["median"] for run in runs for name, report in run.items()}


def _fastest(trial: dict[str, float], base: Setting) -> int:
    return int(min(trial, key=lambda name: trial[name])) if trial else base.micro_batch


def ratios(runs: dict[str, Report]) -> dict[str, float | None]:
    """How many times faster; `best` takes each side's fastest precision. None without the peer.

    `ratio_fp32` keeps the log-probabilities of decoding as the peer does, `ratio_fp32_recompute` recomputes them.
    """
    return {
        f"ratio_{name}_{share}{suffix}": _ratio(runs, name, share, without)
        for name in ("fp32", "fp32_recompute", "best")
        for share in ("full", "alpha_0_4")
        for suffix, without in (("", False), ("_without_score", True))
    }


def _ratio(runs: dict[str, Report], name: str, share: str, without_score: bool) -> float | None:
    def seconds(run: Report) -> float:
        return float(run["median"] - (run["phases"]["score"] if without_score else 0.0))

    peer = {key: seconds(run) for key, run in runs.items() if key.startswith("peer")}
    ours = {key: seconds(run) for key, run in runs.items() if key.startswith("ours") and key.endswith(share)}
    if not peer:
        return None
    if name == "best":
        return min(peer.values()) / min(ours.values())
    return peer["peer_fp32_full"] / ours[f"ours_{name}_{share}"]
