"""Stage `prompts`: queries with their own score, SFT texts, perplexity texts."""

from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def prompts(run: Run, raw: Path, base: Path, reward: Path, out: Path) -> None:
    """Choose rows, cut them to queries, score the bare prompts."""
    from rarlhf.data.prompts import make_prompts, warn_of_ends
    from rarlhf.data.rows import read_rows
    from rarlhf.models.lengths import refuse_too_long
    from rarlhf.models.loading import load_tokenizer
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.system.files import write_json, write_jsonl
    from rarlhf.system.machine import prepare

    refuse_too_long(base, run.params)  # the context of a model from the hub is first known here
    score = load_reward_model(reward, run.params.reward, prepare(run.params.runtime))
    train, test = read_rows(raw / "train.jsonl"), read_rows(raw / "test.jsonl")
    tokenizer = load_tokenizer(str(base))
    p = run.params
    sets = make_prompts(train, test, tokenizer, score, p.prompts, run.recorder, p.sft.texts)
    with run.output(out) as folder:
        write_jsonl(folder / "train.jsonl", sets.train)
        write_jsonl(folder / "validation.jsonl", sets.validation)
        write_jsonl(folder / "test.jsonl", sets.test)
        write_jsonl(folder / "sft.jsonl", sets.sft)
        write_jsonl(folder / "perplexity.jsonl", [{"text": text} for text in sets.perplexity])
        write_json(folder / "counts.json", sets.counts)
    for name, counts in sets.counts.items():
        run.log(f"{name}: {counts}")
    if warning := warn_of_ends(sets.sft, tokenizer, run.params.prompts, run.params.sft):
        run.log(warning)


if __name__ == "__main__":
    prompts()
