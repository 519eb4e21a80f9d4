"""What the output head's float32 product costs in a pass of bfloat16: iterations with it and without it, in turn."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor
from transformers import PreTrainedModel

import rarlhf.decoding.sampling
import rarlhf.models.policy
from benchmarks.models import make_models, queries
from benchmarks.ours import trainer
from benchmarks.race import Report, Told, nobody, summary
from benchmarks.setting import Setting, Work
from benchmarks.worker import Reporter
from rarlhf.config.params import RuntimeParams
from rarlhf.system.machine import prepare

Head = Callable[[PreTrainedModel, Tensor], Tensor]


def rounded(lm: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits as autocast computes them, rounded to bfloat16."""
    return lm.get_output_embeddings()(states)


HEADS: dict[str, Head] = {"float32": rarlhf.models.policy.logits_of, "bfloat16": rounded}


def head_cost(  # noqa: PLR0913, PLR0917, each is a different thing
    folder: Path, work: Work, micro_batch: int, threads: int, rounds: int, told: Told = nobody
) -> dict[str, Any]:
    """Seconds of an iteration with each head, and `ratios` of float32's processor time to bfloat16's, one a round.

    One process and one engine run both ways in turn, so that each round meets one mood of the machine; processor time
    changes less than seconds where other jobs run beside.
    """
    make_models(folder, work)
    setting = Setting("head", "ours", work, str(folder), threads, "bfloat16", micro_batch, rollout_logprobs="decode")
    machine = prepare(
        RuntimeParams(device="cpu", threads=threads, precision="bfloat16", decode="eager", sharding="none")
    )
    reporter = Reporter(worker=False)
    engine = trainer(setting, machine, reporter)
    batch = queries(work, work.episodes)
    reports: dict[str, list[Report]] = {name: [] for name in HEADS}
    for index in range(rounds + 1):
        for name, head in HEADS.items():
            with (
                patch.object(rarlhf.models.policy, "logits_of", head),
                patch.object(rarlhf.decoding.sampling, "logits_of", head),
            ):
                start, cpu_start = time.perf_counter(), time.process_time()
                engine.step(engine.collect_rollout(batch, index + 1), index + 1)
                times = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
            told(f"{name} head", {})
            if index > 0:  # the first round does not count
                reports[name].append(times | {"phases": dict(reporter.phases), "baseline_bytes": 0, "above_bytes": 0})
    ratios = [full["cpu_seconds"] / other["cpu_seconds"] for full, other in zip(*reports.values(), strict=True)]
    runs = {name: _without_memory(summary(of_head)) for name, of_head in reports.items()}
    return {"runs": runs, "ratios": ratios, "ratio": statistics.median(ratios)}


def _without_memory(run: Report) -> Report:
    return {name: run[name] for name in ("median", "quartiles", "seconds", "cpu_seconds", "phases")}
