"""What one worker runs. Standard library alone: the peer's environment reads it too."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Work:
    """The task, the same for both sides: a GPT-2 shape, and the sizes of one PPO iteration."""

    layers: int
    width: int
    heads: int
    vocab_size: int
    episodes: int  # per iteration
    query_tokens: int
    response_tokens: int  # no response ends early
    epochs: int  # one optimiser step each


@dataclass(frozen=True)
class Setting:
    """How one worker does it."""

    name: str
    side: Literal["ours", "peer"]
    work: Work
    folder: str  # holds the models, see benchmarks/models.py
    threads: int
    precision: Literal["float32", "bfloat16"]
    micro_batch: int  # episodes per forward and backward pass
    keep: float = 1.0  # share of the episodes that is trained on; ours only
    rollout_logprobs: Literal["recompute", "decode"] = "recompute"  # ours only; the peer keeps those of decoding

    @property
    def kept(self) -> int:
        """Episodes that are trained on."""
        return math.ceil(round(self.keep * self.work.episodes, 9))

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str) -> "Setting":
        """The setting that `text` wrote."""
        values = json.loads(text)
        return Setting(**(values | {"work": Work(**values["work"])}))
