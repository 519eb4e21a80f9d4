"""Stage `samples`: scored answers of the SFT model to prompts of one split."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from tasks.running.stage import Run, stage

if TYPE_CHECKING:
    from rarlhf.data.prompts import Query


@stage
def samples(run: Run, split: str, sft: Path, reward: Path, prompts: Path, out: Path) -> None:
    """Draw answers of the SFT model to some prompts of a split, and score them."""
    from rarlhf.decoding.samples import Model, Sampler, chosen_prompts, write_samples
    from rarlhf.models.backbone import ModelFolders
    from rarlhf.models.loading import load_tokenizer
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.system.files import read_jsonl
    from rarlhf.system.machine import prepare

    plan = run.params.plan
    wanted = plan.train if split == "train" else plan.test
    queries = chosen_prompts(cast("list[Query]", read_jsonl(prompts / f"{split}.jsonl")), wanted, split, plan.seed)
    machine = prepare(run.params.runtime)
    model = Model(ModelFolders(run.params.model, machine.device).open(sft), load_tokenizer(str(sft)))
    sampler = Sampler(load_reward_model(reward, run.params.reward, machine), run.params, machine)
    drawn = sampler(f"SFT, {split}", model, queries, wanted.samples, plan.seed, split)
    with run.output(out) as folder:
        write_samples(drawn, folder)
    mean = float(drawn.scores.mean())
    run.log(f"{drawn.scores.numel():,} answers to {len(queries):,} {split} prompts, mean score {mean:+.3f}")
    run.tracker.metrics({"score_mean": mean})


if __name__ == "__main__":
    samples()
