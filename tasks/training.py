"""What the stages `rlhf` and `ra_rlhf` share: one code path, and only the risk parameters differ."""

from pathlib import Path

from rarlhf.config.params import Params
from tasks.running.figures import track_training
from tasks.running.stage import Run
from tasks.tracking.run import all_params


def train(run: Run, params: Params, seed: int, sft: Path, reward: Path, prompts: Path, out: Path, curve: Path) -> None:  # noqa: PLR0913
    """Train the SFT model by PPO with one seed, going on from a checkpoint where a killed run left one."""
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.rl.parts import Session
    from rarlhf.system.distributed import world
    from rarlhf.system.files import read_jsonl, write_curve
    from rarlhf.system.machine import prepare
    from rarlhf.training.rlhf import Places, train_policy

    run.tracker.params(all_params(params))  # all, as this method takes them
    processes = world(cpu=params.runtime.device == "cpu")
    session = Session(prepare(params.runtime), run.recorder, processes)
    rows = read_jsonl(prompts / "train.jsonl")
    queries = [row["input_ids"] for row in rows]
    messages = {tuple(row["input_ids"]): row["prompt"] for row in rows} if params.prompts.chat_template else None
    score = load_reward_model(reward, params.reward, session.machine)
    with run.output(out) as folder, run.output(curve) as csv:
        places = Places(sft, folder, run.checkpoints / "checkpoint.safetensors")
        records = train_policy(queries, places, score, params, session, seed=seed, plain_prompts=messages)
        write_curve(records, csv)
        method = run.name.partition("@")[0]
        track_training(run, method, seed, csv)
