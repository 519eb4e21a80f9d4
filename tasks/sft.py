"""Stage `sft`: supervised fine-tuning on the texts of the wanted class, or on all."""

from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def sft(run: Run, base: Path, prompts: Path, out: Path, curve: Path) -> None:
    """Fine-tune the base model on the texts that stage `prompts` chose."""
    from rarlhf.system.files import read_jsonl, write_curve
    from rarlhf.system.machine import prepare
    from rarlhf.training.sft import train_sft

    records = read_jsonl(prompts / "sft.jsonl")
    with run.output(out) as folder, run.output(curve) as csv:
        machine = prepare(run.params.runtime)
        write_curve(train_sft(records, base, folder, run.params.model, run.params.sft, machine, run.recorder), csv)


if __name__ == "__main__":
    sft()
