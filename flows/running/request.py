"""A request to the flow: preset, values and targets, put into params.yaml as a whole or not at all."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.running.graph import Graph, read_graph
from flows.serving.workspace import HOME
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from tasks.preset import PARAMS, apply_preset, override

WRITTEN = Path(HOME, "params.sha256")  # SHA-256 of the params.yaml that a run wrote last


def prepare(
    targets: Sequence[str], overrides: Mapping[str, Any], preset: str | None, say: Callable[[str], None]
) -> tuple[Graph, Params]:
    """Puts a preset and single values into params.yaml and reads the resulting graph.

    A preset replaces a params.yaml that an earlier run wrote, overrides included; it does not replace an edited one.

    Raises: UserError for a preset, key, value or target that is not allowed; params.yaml then stays as it was.
    """
    before = PARAMS.read_bytes() if PARAMS.is_file() else b""
    try:
        if preset:
            say(apply_preset(preset, force=_digest(before) == _written()))
        load_params()
        if overrides:
            override(overrides)
        prepared = read_graph(targets), load_params()
    except UserError:
        if before and PARAMS.read_bytes() != before:
            PARAMS.write_bytes(before)
        raise
    if (after := PARAMS.read_bytes()) != before:
        WRITTEN.parent.mkdir(exist_ok=True)
        WRITTEN.write_text(_digest(after), encoding="utf-8")
    return prepared


def _written() -> str:
    return WRITTEN.read_text(encoding="utf-8") if WRITTEN.is_file() else ""


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
