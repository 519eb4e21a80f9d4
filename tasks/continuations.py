"""What the stages share that draw continuations: the models differ, where they are, and how they are decoded."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from tasks.running.figures import track_samples
from tasks.running.stage import Run

if TYPE_CHECKING:
    from rarlhf.data.prompts import Query
    from rarlhf.decoding.rules import DecodingRule
    from rarlhf.decoding.scored import ScoredContinuations
    from rarlhf.models.reference import RefPolicy

    Ruled = Callable[[ScoredContinuations, RefPolicy, list[Query], int], DecodingRule]


class Places(NamedTuple):
    """What is read and written."""

    model: Path  # a model, or the folder of a model for each seed
    sft: Path
    reward: Path
    prompts: Path
    out: Path


def write_continuations(run: Run, method: str, places: Places, ruled: "Ruled | None" = None) -> None:
    """Samples continuations of the test prompts, scores them and measures their KL to the SFT model.

    Args:
        run: of the stage.
        method: name of the method.
        places: folders.
        ruled: makes the rule that decodes the model for a seed; None for plain sampling, or the model's own way.
    """
    from rarlhf.decoding.conditioned import rule_of
    from rarlhf.decoding.scored import ScoredContinuations
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.system.files import read_jsonl, write_jsonl
    from rarlhf.system.machine import prepare

    machine = prepare(run.params.runtime)
    score = load_reward_model(places.reward, run.params.reward, machine)
    continuations = ScoredContinuations(places.sft, score, run.params, machine)
    queries = cast("list[Query]", read_jsonl(places.prompts / "test.jsonl"))
    with run.output(places.out) as folder:
        for seed in run.params.seeds:
            policy = continuations.open(of_seed(places.model, seed))
            asked = ruled(continuations, policy, queries, seed) if ruled else None
            rule = rule_of(of_seed(places.model, seed), asked)
            parts = run.checkpoints / f"{seed}.jsonl"
            rows = continuations(f"{method} seed {seed}", policy, queries, seed, parts, rule)
            write_jsonl(folder / f"{seed}.jsonl", rows)
            mean = sum(row["score"] for row in rows) / len(rows)
            run.log(f"{method} seed {seed}: {len(rows):,} continuations, mean score {mean:+.3f}")
            run.tracker.metrics({"reward_mean": mean}, seed)
            track_samples(run, seed, rows)


def of_seed(model: Path, seed: int) -> Path:
    """The folder of a seed's model, or the model's own where all seeds share one."""
    trained = model / str(seed)
    return trained if trained.is_dir() else model
