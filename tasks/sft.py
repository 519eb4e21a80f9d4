"""Stage `sft`: supervised fine-tuning on the texts of the wanted class."""

from pathlib import Path

from tasks.stage import Run, stage


@stage
def sft(run: Run, base: Path, prompts: Path, out: Path, curve: Path) -> None:
    """Fine-tune the base model on the texts of the wanted class."""
    from rarlhf.card import Card, base_of_folder
    from rarlhf.data.files import read_jsonl, write_curve
    from rarlhf.runtime import prepare
    from rarlhf.sft import train_sft

    records = read_jsonl(prompts / "sft.jsonl")
    with run.output(out) as folder, run.output(curve) as csv:
        machine = prepare(run.params.runtime)
        write_curve(train_sft(records, base, folder, run.params.model, run.params.sft, machine, run.recorder), csv)
        sections = {"sft": run.params.sft}
        Card("sft", None, base_of_folder(base), run.params.data, run.params.model, sections).write(folder)


if __name__ == "__main__":
    sft()
