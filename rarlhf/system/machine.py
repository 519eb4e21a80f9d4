"""Device, threads and precision: the settings of the machine that the bytes of a result depend on."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from rarlhf.config.errors import UserError
from rarlhf.config.params import RuntimeParams


class Advice(logging.Filter):
    """A filter that drops one log message of a library."""

    def __init__(self, module: str, beginning: str) -> None:
        super().__init__(module)
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to keep a log record."""
        return not str(record.msg).startswith(self.beginning)


# Of bitsandbytes: what it says at import of an optional package that would bring code from the hub, and at every 8-bit
# product of the rounding that LLM.int8 consists of.
ADVICE = (
    Advice("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
    Advice("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast"),
)


@dataclass(frozen=True)
class Machine:
    """The device of all tensors and the precision of forward passes."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool = False  # whether each new token is decoded by a compiled pass
    sharded: bool = False  # whether the processes of a PPO training hold a part of its weights each

    def autocast(self) -> AbstractContextManager[object]:
        """Context of every forward pass: bfloat16 autocast, or nothing in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def prepare(runtime: RuntimeParams) -> Machine:
    """Sets threads and determinism for this process and resolves `auto`.

    Raises: UserError if a CUDA device is asked for and there is none.
    """
    torch.set_num_threads(runtime.threads)
    machine = machine_of(runtime)
    # Some CUDA operations have no deterministic kernel, such as a running sum of floats; these warn and go on.
    torch.use_deterministic_algorithms(True, warn_only=machine.device.type == "cuda")
    # Filling uninitialised memory costs time, and nothing here reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    quieten_libraries()
    return machine


def machine_of(runtime: RuntimeParams) -> Machine:
    """Resolves `auto` without changing the process.

    Raises: UserError as `prepare`.
    """
    device = _device(runtime.device)
    dtype = torch.bfloat16 if _reduced(runtime.precision, device) else torch.float32
    return Machine(device, dtype, runtime.decode == "compiled", runtime.sharding == "full")


def quieten_libraries() -> None:
    """Turns off the progress bars and advice of libraries; the stages show their own progress.

    One piece of advice of transformers waits for an accelerator at every token: whether a text without a mask has
    padding. Every text with padding has a mask here.
    """
    for advice in ADVICE:
        logging.getLogger(advice.name).addFilter(advice)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.PreTrainedModel.warn_if_padding_and_no_attention_mask = _nothing


def _nothing(*_: object) -> None:
    pass


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "runtime.device = 'cuda': no CUDA device is visible here; run where there is one, or set cpu in "
            "params.yaml (stage check then says how long it takes)"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _reduced(precision: str, device: torch.device) -> bool:
    """Whether to run in bfloat16; `auto` does so only where the processor multiplies it faster than float32."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
