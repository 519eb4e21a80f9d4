"""Checks of what an accelerator computes: `python -m benchmarks.checks NAME [--small]` prints JSON.

Each runs on the device at hand with random weights of GPT-2's shape, or of a tiny one, and says what it found, what it
wanted, and whether that is good.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gptj import CASES, SMALL_SHAPE, Times, case_params, iterate, make_model, new_trainer
from rarlhf.decoding.compiled import CompiledSteps
from rarlhf.decoding.prompts import Prompts, left_pad
from rarlhf.decoding.sampling import Decoding, sample_with_logprobs, uniform_numbers
from rarlhf.models.backbone import load_trainable
from rarlhf.models.policy import logits_of, response_states
from rarlhf.system.machine import Machine, prepare

if TYPE_CHECKING:
    from rarlhf.models.episodes import Episodes
    from rarlhf.rl.ppo import PPOTrainer


class Found(NamedTuple):
    """What a check found."""

    figures: Mapping[str, float]
    wanted: str
    good: bool


class World:
    """A model of random weights, and trainers on it."""

    def __init__(self, folder: Path, small: bool) -> None:
        self.params, self.sizes = case_params("gpt2", small, None, 2, "eager")
        self.folder = folder
        architecture, shape, _, _ = CASES["gpt2"]
        torch.manual_seed(1)
        shape = {key: SMALL_SHAPE[key] for key in shape} if small else shape
        make_model(architecture, shape, "float32", folder)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def trainer(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "PPOTrainer":
        """A new trainer, always of the same weights."""
        prepare(self.params.runtime.model_copy(update={"device": device.type, "precision": "float32"}))
        torch.manual_seed(2)  # of the value head
        trained = load_trainable(self.folder, self.params.model, 1, device)
        return new_trainer(trained, self.params, self.sizes["query"], Machine(device, dtype), Times())

    def queries(self, trainer: "PPOTrainer") -> list[list[int]]:
        """A batch of queries of random tokens."""
        draws = torch.Generator().manual_seed(3)
        shape, count = (self.sizes["batch"], self.sizes["query"]), trainer.policy.lm.config.vocab_size
        return torch.randint(1, count, shape, generator=draws).tolist()

    def episodes(self, trainer: "PPOTrainer") -> "Episodes":
        """One response to each of a batch of queries."""
        return trainer.generate(self.queries(trainer), 1)

    def asked(self, trainer: "PPOTrainer") -> tuple[Prompts, Tensor]:
        """The batch as prompts, and the random numbers (B, T) of their responses."""
        queries, sampling = self.queries(trainer), trainer.policy.sampling
        uniforms = uniform_numbers(("check",), (len(queries), sampling.max_new_tokens))[0]
        return left_pad(queries, sampling.end_id, self.device), uniforms.to(self.device)


def same_bytes(world: World) -> Found:
    """Two trainings of the same seed end in the same weights."""
    ends = []
    for _ in range(2):
        trainer = world.trainer(world.device, torch.bfloat16 if world.device.type == "cuda" else torch.float32)
        iterate(trainer, world.sizes, 1)
        ends.append([weight.detach().cpu().clone() for weight in trainer.policy.parameters()])
    differing = sum(not torch.equal(one, other) for one, other in zip(*ends, strict=True))
    return Found({"weights that differ": float(differing)}, "0", differing == 0)


def agrees_with_the_cpu(world: World) -> Found:
    """Log-probabilities and values of the same episodes in float32, on the device and on the CPU."""
    there, here = world.trainer(world.device), world.trainer(torch.device("cpu"))
    here.policy.load_state_dict({name: value.cpu() for name, value in there.policy.state_dict().items()})
    episodes = world.episodes(there)
    found, expected = there.policy.measure(episodes), here.policy.measure(type(episodes)(*(x.cpu() for x in episodes)))
    real = episodes.response_mask.cpu()
    worst = max(_worst(one.cpu(), other, real) for one, other in zip(found, expected, strict=True))
    return Found({"largest difference": worst}, "below 1e-3", worst < 1e-3)


def compiled_decoding(world: World) -> Found:
    """Tokens and log-probabilities drawn by compiled passes and by eager ones, from the same random numbers."""
    trainer = world.trainer(world.device)
    lm, sampling = trainer.policy.lm, trainer.policy.sampling
    prompts, uniforms = world.asked(trainer)
    with torch.no_grad():
        eager, logprobs = sample_with_logprobs(Decoding(lm, sampling), prompts, uniforms)
        compiled, others = sample_with_logprobs(Decoding(lm, sampling, compiled=CompiledSteps(lm)), prompts, uniforms)
    same = (eager.responses == compiled.responses).cumprod(dim=1).bool()  # later tokens have other prefixes
    worst = _worst(others.cpu(), logprobs.cpu(), (same & eager.response_mask).cpu())
    share = same.float().mean().item()
    figures = {"share of equal tokens": share, "largest difference of a log-probability": worst}
    return Found(figures, "above .98, below 1e-3", share > 0.98 and worst < 1e-3)


def float32_head(world: World) -> Found:
    """In passes of bfloat16 the output head computes in float32: its logits are those of a float32 product."""
    trainer = world.trainer(world.device, torch.bfloat16)
    lm, episodes = trainer.policy.lm, world.episodes(trainer)
    with torch.no_grad(), trainer.machine.autocast():
        states = response_states(lm, episodes)
        found = logits_of(lm, states)
        rounded = lm.get_output_embeddings()(states)
    expected = states.double() @ lm.get_output_embeddings().weight.double().T
    exact, plain = ((logits.double() - expected).abs().max().item() for logits in (found, rounded))
    scale = expected.abs().max().item()
    figures = {"largest relative error": exact / scale, "of a bfloat16 product": plain / scale}
    return Found(figures, "below 1e-5", exact / scale < 1e-5)


def kept_logprobs(world: World) -> Found:
    """Log-probabilities kept from decoding, and computed again in one pass, in float32."""
    trainer = world.trainer(world.device)
    lm, sampling = trainer.policy.lm, trainer.policy.sampling
    prompts, uniforms = world.asked(trainer)
    with torch.no_grad():
        episodes, kept = sample_with_logprobs(Decoding(lm, sampling), prompts, uniforms)
        again = trainer.policy.measure(episodes).logprobs
    worst = _worst(kept.cpu(), again.cpu(), episodes.response_mask.cpu())
    return Found({"largest difference, nats": worst}, "below 1e-3", worst < 1e-3)


def _worst(one: Tensor, other: Tensor, where: Tensor) -> float:
    return float(torch.where(where, (one - other).abs(), 0.0).max())


CHECKS: Mapping[str, Callable[[World], Found]] = {
    "same bytes twice": same_bytes,
    "agrees with the CPU": agrees_with_the_cpu,
    "compiled decoding": compiled_decoding,
    "float32 head": float32_head,
    "kept log-probabilities": kept_logprobs,
}


def check(name: str, small: bool) -> dict[str, Any]:
    """Runs one check."""
    with TemporaryDirectory() as folder:
        return CHECKS[name](World(Path(folder), small))._asdict()


def main() -> int:
    """Prints what one check found."""
    parser = argparse.ArgumentParser(description="One check of what the device computes.")
    parser.add_argument("name", choices=CHECKS)
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    options = parser.parse_args()
    print(json.dumps(check(options.name, options.small)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
