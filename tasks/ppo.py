"""Stage `ppo`: PPO from the SFT model, one run per method of `methods.ppo` and seed."""

from pathlib import Path

from tasks.running.figures import track_training
from tasks.running.stage import Run, stage
from tasks.tracking.record import all_params


@stage
def ppo(run: Run, method: str, seed: int, sft: Path, reward: Path, prompts: Path, out: Path, curve: Path) -> None:
    """Train the SFT model by PPO with one seed, going on from the checkpoint of a killed run if there is one."""
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.system.distributed import world
    from rarlhf.system.files import read_jsonl, write_curve
    from rarlhf.system.machine import prepare
    from rarlhf.training.rlhf import train_policy

    params = run.params.model_copy(update={"risk": run.params.risk_of(method)})
    run.tracker.params(all_params(params))  # as this method takes them
    processes = world(cpu=params.runtime.device == "cpu")
    machine = prepare(params.runtime)
    rows = read_jsonl(prompts / "train.jsonl")
    queries = [row["input_ids"] for row in rows]
    messages = {tuple(row["input_ids"]): row["prompt"] for row in rows} if params.prompts.chat_template else None
    score = load_reward_model(reward, params.reward, machine)
    arguments = (score, params, seed, machine, run.recorder, processes, messages)
    with run.output(out) as folder, run.output(curve) as csv:
        records = train_policy(queries, sft, folder, run.checkpoints / "checkpoint.safetensors", *arguments)
        write_curve(records, csv)
        track_training(run, method, seed, csv)


if __name__ == "__main__":
    ppo()
