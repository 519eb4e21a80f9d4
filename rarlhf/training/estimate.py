"""Time, memory and disk that a run will need, estimated before anything runs.

The estimate is rough (a factor of two either way) and says so. It divides the matrix products of every stage by
this machine's speed, which is measured briefly, and adds a fixed cost per forward pass and per process.
"""

import shutil
import time
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

from rarlhf.config.baselines import BestOfNParams, HeadParams, QuarkParams, RegularisedParams
from rarlhf.config.counts import learning_rounds, warmup_rollouts
from rarlhf.config.errors import UserError
from rarlhf.config.judging import BASE, ScorerParams
from rarlhf.config.methods import methods_of
from rarlhf.config.params import Params
from rarlhf.training.memory import (
    BYTES,
    GIB,
    Shape,
    episode_tokens,
    model_shape,
    training_memory,
    transformer_shape,
)

if TYPE_CHECKING:
    from rarlhf.system.machine import Machine

LAYER_SECONDS = 0.0002  # fixed cost of one layer's forward pass in eager mode, whatever its size; measured on CPUs
STAGE_SECONDS = 6.0  # start of a process with its imports
LENGTHS = 3  # that a calibrated fit tries, about
EFFICIENCY = 0.3  # share of the bare matrix-product rate that training reaches
PROCESS_BYTES = 1.5 * GIB  # of a stage's process with its libraries


@dataclass(frozen=True)
class Needs:
    """An estimate: seconds, and bytes of memory, disk and the accelerator's memory."""

    seconds: float
    memory: float
    disk: float
    accelerator: float = 0.0

    def text(self) -> str:
        """One line for the user."""
        accelerator = f", {self.accelerator / GIB:.1f} GiB of the accelerator's" if self.accelerator else ""
        return (
            f"estimate for the whole pipeline, if nothing is cached (within a factor of two): {_time(self.seconds)}, "
            f"{self.memory / GIB:.1f} GiB of memory{accelerator}, {self.disk / GIB:.1f} GiB of disk"
        )


def _time(seconds: float) -> str:
    if seconds < 3 * 3600:
        return f"{max(1, round(seconds / 60))} min"
    return f"{round(seconds / 3600)} h" if seconds < 3 * 86400 else f"{round(seconds / 86400):,} days"


def estimate(params: Params) -> Needs | None:
    """Estimates the whole pipeline; None if the base model's shape is not known.

    Raises: UserError if the requested device is missing, or no such model can exist.
    """
    rate = matmul_rate(params) * EFFICIENCY  # first, because it checks the device
    shape = model_shape(params)
    if shape is None:
        return None
    methods = params.methods
    fits, by_ppo, tuned = (len(params.seeds) * len(of) for of in (methods.fit, methods.ppo, methods.tuned))
    runs = by_ppo + fits + tuned + len(params.seeds) * len(methods.heads)
    seconds = _training_seconds(params, shape, rate) * by_ppo + _supervised_seconds(params, shape, rate)
    seconds += _planning_seconds(params, shape, rate) + _fit_seconds(params, shape, rate) * fits
    seconds += _tuned_seconds(params, shape, rate) + _rules_seconds(params, shape, rate)
    seconds += _head_seconds(params, shape, rate)
    seconds += _generation_seconds(params, shape, rate) + _judging_seconds(params, shape, rate)
    seconds += _utility_seconds(params, shape, rate)
    seconds += STAGE_SECONDS * (10 + runs + len(params.methods.names))
    disk = _disk_bytes(params, shape, runs)
    if _on_accelerator(params):
        loading = shape.parameters * BYTES[params.model.dtype]
        return Needs(seconds, PROCESS_BYTES + loading, disk, training_memory(params, shape).total)
    return Needs(seconds, _host_bytes(params, shape), disk)


def stage_memory(params: Params) -> float | None:
    """Bytes of memory that the largest stage takes on a CPU; None if the base model's shape is not known.

    Raises: UserError if no such model can exist.
    """
    shape = model_shape(params)
    return None if shape is None else _host_bytes(params, shape)


def _host_bytes(params: Params, shape: Shape) -> float:
    return PROCESS_BYTES + max(training_memory(params, shape).total, shape.parameters * BYTES[params.model.dtype])


def _disk_bytes(params: Params, shape: Shape, runs: int) -> float:
    """Bytes of models in the workspace and in DVC's cache, in the hub's cache, and in the current checkpoint."""
    numbers = 4.0 * (5 + 1.2 * runs + (1 if params.ppo.averaged else 0))
    if params.model.adapter == "lora":
        numbers = 2.0 * BYTES[params.model.dtype]
    on_hub = params.model.source != "scratch" and not Path(params.model.source).is_dir()
    return 0.2 * GIB + shape.parameters * (numbers + (4.0 if on_hub else 0.0))


def _training_seconds(params: Params, shape: Shape, rate: float) -> float:
    """Seconds of one PPO run: decoding, two forward passes, and the epochs with forward and backward passes."""
    ppo = params.ppo
    tokens = ppo.batch_size * episode_tokens(params)
    passes = 1 + 1 + 1 + 3 * ppo.epochs
    fixed = shape.layers * LAYER_SECONDS * (ppo.max_new_tokens + 10 * ppo.epochs)
    return (ppo.iterations + warmup_rollouts(ppo)) * (2.0 * shape.parameters * tokens * passes / rate + fixed)


def _supervised_seconds(params: Params, shape: Shape, rate: float) -> float:
    """Seconds of SFT, and of base model and scorers from scratch; an unknown number of rows is taken as 20,000."""
    rows = params.data.train_rows or 20_000
    tokens = rows / (2 if params.sft.texts == "wanted" else 1) * params.sft.tokens * params.sft.epochs
    if params.model.source == "scratch":
        tokens += rows * params.model.scratch.context * params.model.scratch.epochs
    scorers = ((params.reward, rows), (params.judge.second_scorer, params.data.second_scorer_rows))
    cost = sum(6.0 * _scorer_matrices(scorer) * n * scorer.max_length * scorer.scratch.epochs for scorer, n in scorers)
    return (6.0 * shape.parameters * tokens + cost) / rate


def _scorer_matrices(scorer: ScorerParams) -> int:
    """Parameters of the matrices of a classifier from scratch; 0 for any other, whose shape is not known here."""
    made = scorer.scratch
    shape = transformer_shape(made.vocab_size, scorer.max_length, made.layers, made.width)
    return shape.matrices if scorer.source == "scratch" else 0


def _answers(params: Params) -> int:
    return params.prompts.test * params.generate.samples * len(params.seeds) * len(params.methods.names)


def _generation_seconds(params: Params, shape: Shape, rate: float) -> float:
    return 6.0 * shape.parameters * _answers(params) * episode_tokens(params) / rate


def _tuned_seconds(params: Params, shape: Shape, rate: float) -> float:
    """Seconds of the trainings of `methods.tuned`, all seeds; an unknown number of rows is taken as 20,000."""
    seconds, rows = 0.0, params.data.train_rows or 20_000
    for name in params.methods.tuned:
        settings = params.chosen_of(name).settings
        if isinstance(settings, QuarkParams):
            learned = 3.0 * settings.rounds * settings.steps * settings.batch_size  # with the reference's pass and ours
            tokens = (learned + settings.rounds * settings.prompts) * episode_tokens(params)
        elif isinstance(settings, RegularisedParams):  # another pass by the frozen copy, and the answers of each round
            answers = len(learning_rounds(settings)) * settings.prompts * settings.samples
            tokens = 4.0 * rows * params.sft.tokens * params.sft.epochs + answers * episode_tokens(params)
            seconds += _learning_seconds(params, shape, rate, HeadParams.model_validate(settings.head), answers)
        else:
            tokens = 3.0 * rows / 2 * params.sft.tokens * params.sft.epochs
        seconds += 2.0 * shape.parameters * tokens / rate
    return seconds * len(params.seeds)


def _head_seconds(params: Params, shape: Shape, rate: float) -> float:
    """Seconds of the heads of `methods.heads`, all seeds."""
    answers = params.plan.train.prompts * params.plan.train.samples
    heads = map(params.head_of, params.methods.heads)
    return sum(_learning_seconds(params, shape, rate, head, answers) for head in heads) * len(params.seeds)


def _learning_seconds(params: Params, shape: Shape, rate: float, head: HeadParams, answers: int) -> float:
    """Seconds in which a head learns answers: a pass of the model, and three of the head."""
    size = 12 * head.layers * shape.width**2 + shape.vocab_size * shape.width
    passes = 2.0 * head.epochs * answers * episode_tokens(params) / rate
    fixed = 10 * head.epochs * answers / head.batch_size * (shape.layers + head.layers) * LAYER_SECONDS
    return passes * (shape.parameters + 3 * size) + fixed


def _rules_seconds(params: Params, shape: Shape, rate: float) -> float:
    """Seconds of what rules of decoding do besides one response to each answer.

    Rejection at a KL of k nats accepts about one response in exp(k).
    """
    each, accepted = _generation_seconds(params, shape, rate) / len(params.methods.names), exp(params.kl.target)
    seconds = 0.0
    for chosen in (params.chosen_of(name) for name in params.methods.ruled):
        most = getattr(chosen.settings, "n", 1)
        draws = most if isinstance(chosen.settings, BestOfNParams) else min(most, accepted)
        further = len(chosen.models) - 1 + (2 if chosen.head else 0)  # a head reads the SFT model
        seconds += each * (draws - 1 + further)
    return seconds


def _judging_seconds(params: Params, shape: Shape, rate: float) -> float:
    """Seconds of the judges that the pipeline itself makes, with a pass over each answer."""
    judge = params.judge
    language = shape.parameters if judge.language_model.source == BASE else 0
    passes = (language + _scorer_matrices(judge.second_scorer)) * _answers(params)
    return 2.0 * passes * episode_tokens(params) / rate


def _utility_seconds(params: Params, shape: Shape, rate: float) -> float:
    """Seconds in which every model reads the classifier's rows; other tasks are of unknown length."""
    asked, methods = params.utility.classification, methods_of(params)
    models = sum(len(params.seeds) if method.per_seed else 1 for method in methods if method.has_model)
    texts = models * (asked.rows + asked.test_rows) if asked.rows else 0
    return 2.0 * shape.parameters * texts * asked.tokens / rate


def _planning_seconds(params: Params, shape: Shape, rate: float) -> float:
    """Seconds of drawing the SFT model's answers, each with a forward pass."""
    answers = sum(split.prompts * split.samples for split in (params.plan.train, params.plan.test))
    return 2.0 * shape.parameters * answers * episode_tokens(params) / rate


def _fit_seconds(params: Params, shape: Shape, rate: float) -> float:
    """Seconds of one fit: each round learns; further ones draw answers, and measure new and old ones by two models."""
    fit, train = params.fit, params.plan.train
    old, new, further = train.prompts * train.samples, train.prompts * fit.samples, fit.rounds - 1
    passes = 3 * fit.epochs * (old + further * (old + new)) + further * (2 * old + 3 * new)
    passes += 3 * LENGTHS * new if fit.calibrated else 0
    steps = fit.epochs * (old + further * (old + new)) / fit.batch_size
    return 2.0 * shape.parameters * passes * episode_tokens(params) / rate + 10 * steps * shape.layers * LAYER_SECONDS


def matmul_rate(params: Params) -> float:
    """Floating-point operations per second of a matrix product here, with the run's precision and threads."""
    import torch

    from rarlhf.system.machine import machine_of

    machine, threads = machine_of(params.runtime), torch.get_num_threads()
    torch.set_num_threads(params.runtime.threads)
    try:
        return _rate(machine)
    finally:
        torch.set_num_threads(threads)


def _rate(machine: "Machine") -> float:
    import torch

    left = torch.ones(1024, 512, device=machine.device, dtype=machine.dtype)
    right = torch.ones(512, 512, device=machine.device, dtype=machine.dtype)
    for _ in range(3):
        left @ right
    start = time.perf_counter()
    products = 20
    for _ in range(products):
        result = left @ right
    result[0, 0].item()  # waits until the device has finished
    return products * 2.0 * 1024 * 512 * 512 / (time.perf_counter() - start)


def _on_accelerator(params: Params) -> bool:
    from rarlhf.system.machine import machine_of

    return machine_of(params.runtime).device.type != "cpu"


def accelerator_memory(params: Params) -> float | None:
    """Bytes that are free on the accelerator of the run; None on a CPU."""
    import torch

    return float(torch.cuda.mem_get_info()[0]) if _on_accelerator(params) else None


def available_memory() -> float | None:
    """Bytes that new processes can still take; None if the system does not say."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines())
    return float(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def refuse_if_short(
    needs: Needs, folder: Path, free_memory: float | None, free_accelerator: float | None = None
) -> None:
    """Refuses a run that clearly does not fit: even half the estimate is more than the machine has.

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
    if free_accelerator is not None and needs.accelerator / 2 > free_accelerator:
        raise UserError(
            f"about {needs.accelerator / GIB:.1f} GiB of the accelerator's memory are needed and "
            f"{free_accelerator / GIB:.1f} GiB are free; lower ppo.micro_batch_size and sft.micro_batch_size, set "
            "model.gradient_checkpointing, model.adapter: lora and model.quantization: int8, or take a smaller model"
        )
