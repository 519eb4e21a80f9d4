"""What a run will take: time, memory and disk, estimated before anything runs.

The estimate is rough (a factor of two either way) and says so. It counts the matrix products of every stage against the
speed of this machine's own, measured for a moment, plus a fixed cost per forward pass and per process.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rarlhf.errors import UserError
from rarlhf.params import Params

LAYER_SECONDS = 0.0002  # fixed cost of one layer's forward pass in eager mode, whatever its size; measured on CPUs
STAGE_SECONDS = 6.0  # start of a process with its imports
EFFICIENCY = 0.3  # share of the bare matrix-product rate that training reaches
GIB = 1024**3


@dataclass(frozen=True)
class Shape:
    """What the cost of a transformer hangs on."""

    parameters: int
    layers: int
    vocab_size: int


@dataclass(frozen=True)
class Needs:
    """An estimate: seconds, and bytes of memory and disk."""

    seconds: float
    memory: float
    disk: float

    def text(self) -> str:
        """One line for the person who waits."""
        minutes = max(1, round(self.seconds / 60))
        return (
            f"estimate for the whole pipeline, if nothing is cached (within a factor of two): {minutes} min, "
            f"{self.memory / GIB:.1f} GiB of memory, {self.disk / GIB:.1f} GiB of disk"
        )


def transformer_shape(vocab_size: int, context: int, layers: int, width: int) -> Shape:
    """Shape of a GPT-2 or BERT-like model: 12 width^2 weights a layer, and its embeddings."""
    return Shape(vocab_size * width + context * width + layers * 12 * width * width, layers, vocab_size)


def model_shape(params: Params) -> Shape | None:
    """Shape of the base model; None where it must first be fetched from the hub."""
    if params.model.source == "scratch":
        p = params.model.scratch
        return transformer_shape(p.vocab_size, p.context, p.layers, p.width)
    config = Path(params.model.source) / "config.json"
    if not config.is_file():
        return None
    values = json.loads(config.read_text(encoding="utf-8"))
    names = {"layers": ("n_layer", "num_hidden_layers"), "width": ("n_embd", "hidden_size")}
    found = {key: next((values[name] for name in options if name in values), 0) for key, options in names.items()}
    return transformer_shape(values.get("vocab_size", 0), 1024, found["layers"], found["width"])


def estimate(params: Params) -> Needs | None:
    """Estimates the whole pipeline; None where the base model's shape is not known yet."""
    shape = model_shape(params)
    if shape is None:
        return None
    rate = matmul_rate(params) * EFFICIENCY
    runs = len(params.seeds) * sum(method in ("rlhf", "ra_rlhf") for method in params.methods)
    seconds = _training_seconds(params, shape, rate) * runs + _supervised_seconds(params, shape, rate)
    seconds += _generation_seconds(params, shape, rate) + STAGE_SECONDS * (8 + runs + len(params.methods))
    weights = 4.0 * shape.parameters
    rows = params.ppo.micro_batch * (params.prompts.tokens + params.ppo.max_new_tokens)
    activations = (
        4.0 * rows * (3 * shape.vocab_size + 40 * shape.layers * (shape.parameters / 12 / max(shape.layers, 1)) ** 0.5)
    )
    copies, models = (5, 2 + 1.2 * runs) if params.model.adapter == "none" else (1, 1)
    memory = 1.5 * GIB + copies * weights + activations  # policy, reference, gradient, two Adam moments; or a backbone
    disk = weights * (models + 3) + 0.2 * GIB  # models, and the checkpoint of the run at hand
    return Needs(seconds, memory, disk)


def _training_seconds(params: Params, shape: Shape, rate: float) -> float:
    """One PPO run: decode, two forward passes, and the epochs, forward and backward."""
    ppo = params.ppo
    tokens = ppo.batch_size * (params.prompts.tokens + ppo.max_new_tokens)
    passes = 1 + 1 + 1 + 3 * ppo.epochs
    fixed = shape.layers * LAYER_SECONDS * (ppo.max_new_tokens + 10 * ppo.epochs)
    return (ppo.iterations + ppo.value_warmup) * (2.0 * shape.parameters * tokens * passes / rate + fixed)


def _supervised_seconds(params: Params, shape: Shape, rate: float) -> float:
    """SFT, and the making of base and reward model where they start from nothing; the rows are a guess of 20,000."""
    rows = params.data.train_rows or 20_000
    tokens = rows / 2 * params.sft.tokens * params.sft.epochs
    if params.model.source == "scratch":
        tokens += rows * params.model.scratch.context * params.model.scratch.epochs
    reward = params.reward.scratch
    scorer = transformer_shape(reward.vocab_size, params.reward.max_length, reward.layers, reward.width)
    cost = 6.0 * shape.parameters * tokens
    if params.reward.source == "scratch":
        cost += (
            6.0
            * (scorer.parameters - reward.vocab_size * reward.width)
            * rows
            * params.reward.max_length
            * reward.epochs
        )
    return cost / rate


def _generation_seconds(params: Params, shape: Shape, rate: float) -> float:
    rows = params.prompts.test * params.generate.samples * len(params.seeds) * len(params.methods)
    length = params.prompts.tokens + params.ppo.max_new_tokens
    return 6.0 * shape.parameters * rows * length / rate


def matmul_rate(params: Params) -> float:
    """Floating-point operations a second of a matrix product here, in the run's precision."""
    import torch

    from rarlhf.runtime import prepare

    machine = prepare(params.runtime)
    left = torch.ones(1024, 512, device=machine.device, dtype=machine.dtype)
    right = torch.ones(512, 512, device=machine.device, dtype=machine.dtype)
    for _ in range(3):
        left @ right
    start = time.perf_counter()
    products = 20
    for _ in range(products):
        result = left @ right
    result[0, 0].item()  # waits for a device that runs ahead
    return products * 2.0 * 1024 * 512 * 512 / (time.perf_counter() - start)


def available_memory() -> float | None:
    """Bytes that new processes can still take; None where the system does not tell."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines())
    return float(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def refuse_if_short(needs: Needs, folder: Path, free_memory: float | None) -> None:
    """Refuses a run that clearly cannot end well: half the estimate is already more than there is.

    Raises: UserError naming what is short, by how much, and which keys to lower.
    """
    free_disk = float(shutil.disk_usage(folder).free)
    if needs.disk / 2 > free_disk:
        raise UserError(
            f"about {needs.disk / GIB:.1f} GiB of disk are needed and {free_disk / GIB:.1f} GiB are free in "
            f"{folder.resolve()}; free some room, or lower the number of seeds or the model's size"
        )
    if free_memory is not None and needs.memory / 2 > free_memory:
        raise UserError(
            f"about {needs.memory / GIB:.1f} GiB of memory are needed and {free_memory / GIB:.1f} GiB are free; "
            "lower ppo.micro_batch_size or the model's size"
        )
