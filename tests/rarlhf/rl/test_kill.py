"""Trainings killed by SIGKILL and started again by the same command end with the bytes of one never killed.

`make test` kills at three points, `make test-kill` at two dozen random ones.
"""

import json
import multiprocessing
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from rarlhf.config.params import Params
from tests.rarlhf.rl import killed_training

pytestmark = pytest.mark.slow
# Each training is a process forked from one that has imported torch, which takes longer than the training.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([killed_training.__name__])
QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
PPO = {
    "iterations": 8,
    "batch_size": 6,
    "mini_batch_size": 3,
    "micro_batch_size": 3,
    "epochs": 2,
    "value_warmup": 3,
    "max_new_tokens": 5,
    "checkpoint_every": 2,
}
RISK = {
    "measure": "cvar_ru",
    "eta": "running",
    "eta_rate": 0.5,
    "warmup": 1,
    "rho": 1.0,
    "alpha": 0.5,
}  # a measure with a state
SEED = 20
CHAINS = 8  # trainings in `make test-kill`, each killed three times
Start = tuple[str, int]  # name and call at which it kills itself


def edited(params: Params, precision: str, threads: int) -> Params:
    runtime = {"device": "cpu", "precision": precision, "threads": threads}
    sections = {"ppo": PPO, "risk": RISK, "runtime": runtime}
    return params.model_copy(
        update={name: getattr(params, name).model_copy(update=values) for name, values in sections.items()}
    )


def workplace(folder: Path, lm: Path, params: Params) -> Path:
    """The folder with all that the training reads."""
    shutil.copytree(lm, folder / "lm")
    (folder / "params.json").write_text(params.model_dump_json())
    (folder / "queries.json").write_text(json.dumps(QUERIES))
    return folder


def run(folder: Path, kill: Start | None = None) -> int:
    """Starts the training in a process of its own and returns its exit status, -9 where it was killed."""
    child = CONTEXT.Process(target=killed_training.main, args=(folder, *(map(str, kill) if kill else ())))
    child.start()
    child.join(280)
    status = child.exitcode
    child.kill()
    assert status in (0, -signal.SIGKILL)
    return status


def result(folder: Path) -> tuple[bytes, str]:
    """Weights and records, to the byte."""
    return (folder / "out" / "model.safetensors").read_bytes(), (folder / "records.json").read_text()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_training_killed_three_times_ends_with_the_bytes_of_one_never_killed(
    lm_folder: Path, params: Params, tmp_path: Path
) -> None:
    small = edited(params, "float32", 1)
    whole = workplace(tmp_path / "whole", lm_folder, small)
    assert run(whole) == 0
    calls = json.loads((whole / "calls.json").read_text())
    assert all(calls[name] > 0 for name in calls), calls
    killed = workplace(tmp_path / "killed", lm_folder, small)
    checkpoint = killed / "checkpoint.safetensors"

    assert run(killed, ("warm_up_value", calls["warm_up_value"] // 2)) == -signal.SIGKILL
    assert run(killed, ("train", random.Random().randint(calls["train"] * 4 // 10, calls["train"] * 7 // 10))) == -9
    before = checkpoint.read_bytes()
    assert run(killed, ("fsync", 1)) == -signal.SIGKILL  # the new checkpoint is whole and not yet in its place
    assert checkpoint.read_bytes() == before
    assert len(list(checkpoint.with_name(f".{checkpoint.name}.partial").iterdir())) == 1
    assert run(killed) == 0
    assert result(killed) == result(whole)
    assert not checkpoint.with_name(f".{checkpoint.name}.partial").exists()


def chain(calls: dict[str, int], rng: random.Random) -> list[Start]:
    """Three points to be killed at: in the warm-up or anywhere, and in a checkpoint, and in an iteration."""

    def within(name: str, share: float = 0.3) -> Start:
        return name, rng.randint(1, max(1, int(calls[name] * share)))

    early = within(rng.choice(("warm_up_value", "train")))
    writing = rng.choice((within("save_checkpoint"), ("fsync", rng.randint(1, 2)), ("half", rng.randint(1, 2))))
    later = within(rng.choice(("train", "update", "collect_rollout")))
    return [early, *rng.sample([writing, later], 2)]


@pytest.mark.kill
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("precision", "threads"), [("float32", 1), ("bfloat16", 2)])
def test_trainings_killed_at_random_end_with_the_same_bytes(
    precision: str, threads: int, lm_folder: Path, params: Params, tmp_path: Path
) -> None:
    small = edited(params, precision, threads)
    whole = workplace(tmp_path / "whole", lm_folder, small)
    assert run(whole) == 0
    calls = json.loads((whole / "calls.json").read_text())
    rng = random.Random(f"{SEED}/{precision}")
    kills: Counter[str] = Counter()
    for number in range(CHAINS // 2):
        killed = workplace(tmp_path / str(number), lm_folder, small)
        starts = chain(calls, rng)
        for start in starts:
            if run(killed, start) != 0:
                kills[start[0]] += 1
        assert run(killed) == 0, starts
        assert result(killed) == result(whole), starts
    how = f"{precision}, {threads} thread(s), seed {SEED}"
    print(f"\n{how}: {kills.total()} kills, all with the same bytes: {dict(kills)}")
    assert kills.total() >= 10
    assert kills["save_checkpoint"] + kills["fsync"] + kills["half"] >= 3
