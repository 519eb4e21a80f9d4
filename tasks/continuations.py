"""What the stages `generate` and `generate_start` share: the models differ, and where they are."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from tasks.running.figures import track_samples
from tasks.running.stage import Run

if TYPE_CHECKING:
    from rarlhf.data.prompts import Query


def write_continuations(run: Run, method: str, model: Path, sft: Path, reward: Path, prompts: Path, out: Path) -> None:
    """Sample continuations of the test prompts, score them and measure their KL to the SFT model."""
    from rarlhf.decoding.scored import ScoredContinuations
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.system.files import read_jsonl, write_jsonl
    from rarlhf.system.machine import prepare

    machine = prepare(run.params.runtime)
    score = load_reward_model(reward, run.params.reward, machine)
    continuations = ScoredContinuations(sft, score, run.params, machine)
    queries = cast("list[Query]", read_jsonl(prompts / "test.jsonl"))
    with run.output(out) as folder:
        for seed in run.params.seeds:
            trained = model / str(seed)
            parts = run.checkpoints / f"{seed}.jsonl"
            rows = continuations(f"{method} seed {seed}", trained if trained.is_dir() else model, queries, seed, parts)
            write_jsonl(folder / f"{seed}.jsonl", rows)
            mean = sum(row["score"] for row in rows) / len(rows)
            run.log(f"{method} seed {seed}: {len(rows):,} continuations, mean score {mean:+.3f}")
            run.tracker.metrics({"reward_mean": mean}, seed)
            track_samples(run, seed, rows)
