"""Tiny trainings by as many processes as the launcher started: several_processes.py FOLDER.

Writes weights, optimiser and records of each case and process to FOLDER/out/CASE-RANK.*.
"""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import torch
from safetensors.torch import save_file

from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.backbone import load_trainable
from rarlhf.models.policy import Policy, reset_value_head, sampling_of
from rarlhf.risk.measures.base import Batch, Treatment
from rarlhf.risk.measures.cvar import HardSelection
from rarlhf.risk.schedule import RiskLevel
from rarlhf.risk.tail import worst_episodes
from rarlhf.rl.checkpoint import training_tensors
from rarlhf.rl.parts import Models, Recipe, Session
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.distributed import World, world
from rarlhf.system.machine import prepare
from rarlhf.system.streams import generator

QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
CASES: dict[str, dict[str, dict[str, object]]] = {
    "cvar": {},
    "one_kept": {"risk": {"alpha": 0.15}},  # of 6 episodes: the other process has no row
    "clipped": {"ppo": {"max_grad_norm": 0.1}, "risk": {"measure": "evar"}},
    "critic_all": {"risk": {"critic": "all", "hard_share": 0.5}},
    "lora": {"model": {"adapter": "lora"}},
    "query": {"ppo": {"responses": 3, "baseline": "query", "averaged": 0.4}, "risk": {"measure": "cvar_ru"}},
    "local": {},  # negative control, see below
}
Score = Callable[[Sequence[str]], torch.Tensor]


def letters(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([float(sum(c.isascii() and c.isalpha() for c in text)) for text in texts])


def make(folder: Path, edits: dict[str, dict[str, object]], world: World, score: Score = letters) -> PPOTrainer:
    params = Params.model_validate_json((folder / "params.json").read_text())
    changes = {name: getattr(params, name).model_copy(update=values) for name, values in edits.items()}
    p = params.model_copy(update=changes)
    machine = prepare(p.runtime)
    start = load_trainable(folder / "lm", p.model, 1, machine.device)
    reference = start.ref_policy()
    policy = Policy(start.lm, sampling_of(p, start.tokenizer.eos_token_id))
    reset_value_head(policy.value_head, generator("value_head", 1))
    models = Models(policy, reference, start.tokenizer, score)
    return PPOTrainer(models, Recipe(p.ppo, p.kl, p.risk, 1), Session(machine, SilentRecorder(), world))


def local_treat(self: HardSelection, batch: Batch, level: RiskLevel) -> Treatment:
    """The worst of each half of the batch, as if each process chose from its own episodes."""
    halves = batch.ranking.chunk(2)
    return Treatment(torch.cat([worst_episodes(half, level.kept(len(half))) for half in halves]))


class Terminated(BaseException):
    pass


def terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def terminating(world: World, call: int) -> Score:
    """A score in which the last process alone gets SIGTERM at the `call`-th call."""
    seen = 0

    def score(texts: Sequence[str]) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == call and world.rank == world.size - 1:
            signal.raise_signal(signal.SIGTERM)
        return letters(texts)

    return score


def write(folder: Path, name: str, trainer: PPOTrainer, world: World) -> None:
    path = folder / "out" / f"{name}-{world.rank}"
    tensors = {
        key: value.detach().contiguous() for key, value in training_tensors(trainer.policy, trainer.optimizer).items()
    }
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(trainer.records))


def main(folder: Path) -> None:
    here = world()
    (folder / "out").mkdir(exist_ok=True)
    treat = HardSelection.treat
    for name, edits in CASES.items():
        HardSelection.treat = local_treat if name == "local" else treat
        trainer = make(folder, edits, here)
        trainer.train(QUERIES, folder / f"{name}.safetensors")
        write(folder, name, trainer, here)
    HardSelection.treat = treat
    signal.signal(signal.SIGTERM, terminate)
    try:
        make(folder, {}, here, terminating(here, 4)).train(QUERIES, folder / "stopped.safetensors")
    except Terminated:
        (folder / "out" / f"stopped-{here.rank}").touch()
    here.gather(None)  # the first process has written the checkpoint
    trainer = make(folder, {}, here)
    trainer.train(QUERIES, folder / "stopped.safetensors")
    write(folder, "resumed", trainer, here)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
