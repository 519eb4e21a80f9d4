"""Tiny trainings by as many processes as the launcher started: several_processes.py FOLDER [CASE ...].

Writes weights, optimiser and records of each case and process to FOLDER/out/CASE-RANK.*. Where weights are divided,
these are the process's part, and the whole model is in FOLDER/out/CASE. A case `stopped` is stopped by a signal to the
last process, and goes on.
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
from rarlhf.models.loading import save_model
from rarlhf.models.policy import Policy, reset_value_head, sampling_of
from rarlhf.models.sharding import whole_weights
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
DIVIDED: dict[str, dict[str, object]] = {"runtime": {"sharding": "full"}}
CASES: dict[str, dict[str, dict[str, object]]] = {
    "cvar": {},
    "one_kept": {"risk": {"alpha": 0.15}},  # of 6 episodes: the other process has no row
    "clipped": {"ppo": {"max_grad_norm": 0.1}, "risk": {"measure": "evar"}},
    "critic_all": {"risk": {"critic": "all", "hard_share": 0.5}},
    "lora": {"model": {"adapter": "lora"}},
    "query": {"ppo": {"responses": 3, "baseline": "query", "averaged": 0.4}, "risk": {"measure": "cvar_ru"}},
    "local": {},  # negative control, see below
    "stopped": {},
    "sharded": DIVIDED,
    "sharded_one_kept": DIVIDED | {"risk": {"alpha": 0.15}},
    "sharded_clipped": DIVIDED | {"ppo": {"max_grad_norm": 0.1}, "risk": {"measure": "evar"}},
    "sharded_critic_all": DIVIDED | {"risk": {"critic": "all", "hard_share": 0.5}},
    "sharded_query": DIVIDED
    | {"ppo": {"responses": 3, "baseline": "query", "averaged": 0.4}, "risk": {"measure": "cvar_ru"}},
    "sharded_stopped": DIVIDED,
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


def stop(folder: Path, name: str, edits: dict[str, dict[str, object]], here: World) -> None:
    handler = signal.signal(signal.SIGTERM, terminate)
    try:
        make(folder, edits, here, terminating(here, 4)).train(QUERIES, folder / f"{name}.safetensors")
    except Terminated:
        (folder / "out" / f"{name}-{here.rank}").touch()
    signal.signal(signal.SIGTERM, handler)
    here.gather(None)  # all have written their checkpoint


def main(folder: Path, names: Sequence[str]) -> None:
    here = world()
    (folder / "out").mkdir(exist_ok=True)
    treat = HardSelection.treat
    for name in names:
        HardSelection.treat = local_treat if name == "local" else treat
        if name.endswith("stopped"):
            stop(folder, name, CASES[name], here)
        trainer = make(folder, CASES[name], here)
        trainer.train(QUERIES, folder / f"{name}.safetensors")
        write(folder, name, trainer, here)
        if trainer.machine.sharded:
            whole = whole_weights(trainer.policy.lm)
            if here.rank == 0:
                save_model(trainer.policy.lm, trainer.tokenizer, folder / "out" / name, whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
