"""An adapter and its base made into one plain model."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarlhf.adapters import POLICY, attach, base_of, quantization_of
from rarlhf.errors import UserError
from rarlhf.loading import load_causal_lm, load_tokenizer, save_model

# Measured on tiny models on a CPU (docs/lora.md): the largest differences, in nats per token, rounded up.
TOLERANCE = {"none": 1e-5, "int8": 0.04}


def merge_adapter(adapter: Path, out: Path, base: Path | None = None) -> str:
    """Writes base and adapter as one model to `out`, in float32, as plain transformers loads it.

    The folder appears whole or not at all.

    Args:
        adapter: folder of an adapter.
        out: folder to make; an empty one may be there.
        base: folder of the base model, where it is not the one that the adapter names.
    Returns: a sentence that says how far the merged model's log-probabilities are from the adapter's.
    Raises: UserError if `out` is taken, `adapter` is none, its base is not there, or the two do not fit.
    """
    _refuse_taken(out)
    quantization = quantization_of(adapter)
    place = base_of(adapter) if base is None else base
    lm, _ = load_causal_lm(str(place))
    try:
        merged = attach(lm, adapter, POLICY).merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"{adapter} cannot be merged into {place}: its weights are not finite") from error
    with _whole(out) as folder:
        save_model(merged, load_tokenizer(str(adapter)), folder)
    return _tolerance(quantization)


def _tolerance(quantization: str | None) -> str:
    if quantization is None:
        return (
            "The adapter does not say how its backbone was stored; if it was quantised, log-probabilities differ from "
            "the adapter's by what quantisation rounds away"
        )
    nats = f"up to {TOLERANCE[quantization]:g} nats per token in trials on tiny models (docs/lora.md)"
    if quantization == "none":
        return f"Log-probabilities are those of the adapter but for rounding: {nats}"
    return (
        f"The adapter was trained on an {quantization} backbone, and these weights are not quantised: "
        f"log-probabilities differ by {nats}"
    )


def _refuse_taken(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a folder that is not there yet")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder that is not there yet")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write to, which takes its place at the end."""
    target = out.absolute()
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
