"""A tiny training, for a process of its own, which can be told to kill itself: `main(folder, name, call)`.

It dies of SIGKILL at the CALL-th Python or C call made inside the function NAME, or of the C function NAME itself, or
for NAME `half` with half of its CALL-th checkpoint written. What it would be in a killed machine's disk cache is not
tried. A run that ends writes how many calls there were in each function of WITHIN.
"""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import rarlhf.rl.checkpoint
from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.rl.parts import Session
from rarlhf.system.machine import prepare
from rarlhf.training.rlhf import Places, train_policy

WITHIN = ("train", "warm_up_value", "collect_rollout", "update", "save_checkpoint", "restore")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Profile:
    """Counts calls, and dies at one of them. Each call of the training comes by here, so it does little."""

    def __init__(self, name: str, call: int) -> None:
        self.name, self.call = name, call
        self.seen = 0  # calls anywhere
        self.own = 0  # calls of the C function `name`
        self.depth: Counter[str] = Counter()
        self.entered: dict[str, int] = {}  # calls that were seen before the function was entered
        self.calls: Counter[str] = Counter()  # inside each function that has been left

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "return"):
            name = frame.f_code.co_name
            if name in WITHIN and frame.f_globals["__name__"].startswith("rarlhf."):
                self._passed(name, event)
        if event in ("call", "c_call"):
            self.seen += 1
            if self.call and self._due(event, argument):
                die()

    def _passed(self, name: str, event: str) -> None:
        if event == "call" and not self.depth[name]:
            self.entered[name] = self.seen
        self.depth[name] += 1 if event == "call" else -1
        if event == "return" and not self.depth[name]:
            self.calls[name] += self.seen - self.entered[name]

    def _due(self, event: str, argument: Any) -> bool:
        if self.name in WITHIN:
            return self.depth[self.name] > 0 and self.inside() == self.call
        self.own += event == "c_call" and argument.__name__ == self.name
        return self.own == self.call

    def inside(self) -> int:
        return self.calls[self.name] + self.seen - self.entered[self.name]


def dying_half_way(save_file: Callable[..., None], call: int) -> Callable[..., None]:
    """`save_file` that at its `call`-th use leaves half of the file, under both names that it goes by, and dies."""
    left = call

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        nonlocal left
        save_file(tensors, path, metadata)
        left -= 1
        if left == 0:
            whole = path.read_bytes()
            for name in (path, path.with_name(".tmpHalf")):
                name.write_bytes(whole[: len(whole) // 2])
            die()

    return save


def letters(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([float(sum(c.isascii() and c.isalpha() for c in text)) for text in texts])


def main(folder: Path, name: str = "", call: str = "0") -> None:
    params = Params.model_validate_json((folder / "params.json").read_text())
    queries = json.loads((folder / "queries.json").read_text())
    machine = prepare(params.runtime)
    if name == "half":
        rarlhf.rl.checkpoint.save_file = dying_half_way(rarlhf.rl.checkpoint.save_file, int(call))
    profile = Profile(name, int(call))
    sys.setprofile(profile)
    places = Places(folder / "lm", folder / "out", folder / "checkpoint.safetensors")
    records = train_policy(queries, places, letters, params, Session(machine, SilentRecorder()), seed=1)
    sys.setprofile(None)
    (folder / "records.json").write_text(json.dumps(records))
    (folder / "calls.json").write_text(json.dumps({name: profile.calls[name] for name in WITHIN}))
