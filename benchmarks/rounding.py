"""How far log-probabilities kept from decoding are from recomputed ones, in each precision."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import make_models
from benchmarks.ours import trainer
from benchmarks.setting import Setting, Work
from benchmarks.worker import Reporter
from rarlhf.config.params import RuntimeParams
from rarlhf.system.machine import prepare

INIT_STD = 0.1  # distributions far from uniform, as a trained model's are


def rounding(folder: Path, work: Work, micro_batch: int, threads: int) -> dict[str, Any]:
    """Differences of one rollout's log-probabilities in nats, by precision."""
    make_models(folder, work, INIT_STD)
    base = Setting("rounding", "ours", work, str(folder), threads, "float32", micro_batch, rollout_logprobs="decode")
    return {setting.precision: differences(setting) for setting in (base, replace(base, precision="bfloat16"))}


@torch.no_grad()
def differences(setting: Setting) -> dict[str, float]:
    """Kept minus recomputed, token by token and summed over responses; `ratio_*` is what PPO's first ratio would be."""
    runtime = RuntimeParams(
        device="cpu", threads=setting.threads, precision=setting.precision, decode="eager", sharding="none"
    )
    machine = prepare(runtime)
    engine = trainer(setting, machine, Reporter(worker=False))
    work = setting.work
    draws = torch.Generator().manual_seed(2)
    queries = torch.randint(1, work.vocab_size, (work.episodes, work.query_tokens), generator=draws).tolist()
    kept = engine.collect_rollout(queries, 1)
    recomputed = engine.rollout(kept.episodes, kept.scores)
    token = kept.logprobs - recomputed.logprobs
    ratio = (-token).exp()
    return {
        "entropy": float(recomputed.entropy.mean()),
        "token_mean_absolute": float(token.abs().mean()),
        "token_largest": float(token.abs().max()),
        "response_mean": float(token.sum(dim=1).mean()),
        "response_mean_absolute": float(token.sum(dim=1).abs().mean()),
        "ratio_smallest": float(ratio.min()),
        "ratio_largest": float(ratio.max()),
    }
