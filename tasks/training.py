"""What the stages `rlhf` and `ra_rlhf` share: one code path, and only the risk parameters differ."""

from pathlib import Path

from rarlhf.params import Params
from tasks.figures import track_training
from tasks.stage import Run
from tasks.tracking import all_params


def train(run: Run, params: Params, seed: int, sft: Path, reward: Path, prompts: Path, out: Path, curve: Path) -> None:  # noqa: PLR0913
    """Train the SFT model by PPO with one seed, going on from a checkpoint where a killed run left one."""
    from rarlhf.card import Card, base_of_folder
    from rarlhf.data.files import read_jsonl, write_curve
    from rarlhf.distributed import world
    from rarlhf.reward_model import load_reward_model
    from rarlhf.rlhf import train_policy
    from rarlhf.runtime import prepare

    run.tracker.params(all_params(params))  # all, as this method takes them
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
        method = run.name.partition("@")[0]
        sections = {"ppo": params.ppo, "kl": params.kl, "risk": params.risk, "reward": params.reward}
        Card(method, seed, base_of_folder(sft), params.data, params.model, sections).write(folder)
        track_training(run, method, seed, csv)
