"""Stage `ppo`: PPO from the SFT model, one run per method of `methods.ppo` and seed."""

from pathlib import Path
from typing import cast

from tasks.running.figures import track_training
from tasks.running.stage import Run, stage
from tasks.tracking.record import all_params


@stage
def ppo(
    run: Run, method: str, seed: int, plan: Path, sft: Path, reward: Path, prompts: Path, out: Path, curve: Path
) -> None:
    """Train the SFT model by PPO with one seed, going on from the checkpoint of a killed run if there is one."""
    from rarlhf.data.prompts import Query, plain_prompts
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.risk.planned import with_planned_eta
    from rarlhf.rl.parts import Session
    from rarlhf.system.distributed import refuse_unlike, world
    from rarlhf.system.files import read_jsonl, write_curve
    from rarlhf.system.machine import prepare
    from rarlhf.training.rlhf import Places, train_policy

    risk, ppo_params = with_planned_eta(run.params.risk_of(method), plan), run.params.ppo_of(method)
    params = run.params.model_copy(update={"risk": risk, "ppo": ppo_params})
    run.tracker.params(all_params(params))  # as this method takes them
    processes = world(cpu=params.runtime.device == "cpu")
    refuse_unlike(processes, run.inputs_hash)
    session = Session(prepare(params.runtime), run.recorder, processes)
    rows = cast("list[Query]", read_jsonl(prompts / "train.jsonl"))
    queries, messages = [row["input_ids"] for row in rows], plain_prompts(rows, params.prompts.chat_template)
    score = load_reward_model(reward, params.reward, session.machine)
    with run.output(out) as folder, run.output(curve) as csv:
        places = Places(sft, folder, run.checkpoints / "checkpoint.safetensors")
        records = train_policy(queries, places, score, params, session, seed=seed, plain_prompts=messages)
        write_curve(records, csv)
        track_training(run, method, seed, csv)


if __name__ == "__main__":
    ppo()
