"""Seconds by phase, how they grow with each size, and the distance to the machine's own products."""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import make_models
from benchmarks.race import Told, nobody, race
from benchmarks.setting import Setting, Work

FACTORS: dict[str, tuple[int, ...]] = {"episodes": (16, 128), "response_tokens": (24, 96), "width": (128, 512)}


def grown(work: Work, factors: dict[str, tuple[int, ...]]) -> dict[str, Work]:
    """The work itself, and one that differs in one size for each value of `factors`."""
    works = {f"{size}={value}": replace(work, **{size: value}) for size, values in factors.items() for value in values}
    return {"base": work} | works


def growth(  # noqa: PLR0913, PLR0917, each is a different thing
    folder: Path,
    works: dict[str, Work],
    micro_batch: int,
    threads: int,
    rounds: int,
    python: str,
    told: Told = nobody,
) -> dict[str, Any]:
    """Medians of each work's phases in both precisions, with the rate of its update."""
    results: dict[str, Any] = {}
    for name, work in works.items():
        place = folder / name.replace("=", "_")
        make_models(place, work)
        size = min(micro_batch, work.episodes)
        base = Setting(f"{name} float32", "ours", work, str(place), threads, "float32", size)
        reduced = replace(base, name=f"{name} bfloat16", precision="bfloat16", rollout_logprobs="decode")
        for setting in (base, reduced):
            run = race([setting], {"ours": python}, 1, rounds, told)[setting.name]
            results[setting.name] = run | {"update": rates(setting, run["phases"]["update"])}
    return results


def rates(setting: Setting, update_seconds: float) -> dict[str, float]:
    """Floating-point operations a second: of the update's products, and of bare products of the same shapes."""
    achieved = 3 * setting.work.epochs * setting.kept * episode_flops(setting.work) / update_seconds
    bare = matmul_rate(setting)
    return {"flops_per_second": achieved, "matmul_flops_per_second": bare, "share": achieved / bare}


def products(work: Work) -> list[tuple[int, int, int, int]]:
    """Matrix products of one episode's forward pass, without attention's: rows, inner size, columns, how many."""
    length, w = work.query_tokens + work.response_tokens - 1, work.width
    layer = [(length, w, 3 * w), (length, w, w), (length, w, 4 * w), (length, 4 * w, w)]
    return [(*shape, work.layers) for shape in layer] + [(work.response_tokens, w, work.vocab_size, 1)]


def episode_flops(work: Work) -> float:
    """Floating-point operations of those products; a backward pass takes twice as many."""
    return sum(2.0 * rows * inner * columns * count for rows, inner, columns, count in products(work))


def matmul_rate(setting: Setting, repeats: int = 5) -> float:
    """Operations a second of the products of one micro-batch, nothing between them: the median of some passes."""
    torch.set_num_threads(setting.threads)
    dtype = getattr(torch, setting.precision)
    pairs = [
        (torch.randn(setting.micro_batch * rows, inner).to(dtype), torch.randn(inner, columns).to(dtype), count)
        for rows, inner, columns, count in products(setting.work)
    ]
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for left, right, count in pairs:
            for _ in range(count):
                left @ right
        seconds.append(time.perf_counter() - start)
    return setting.micro_batch * episode_flops(setting.work) / statistics.median(seconds[1:])
