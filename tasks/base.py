"""Stage `base`: the base model with its tokenizer."""

from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def base(run: Run, raw: Path, out: Path, curve: Path) -> None:
    """Fetch the base model, or train one on the rows."""
    from rarlhf.data.rows import read_rows
    from rarlhf.system.files import write_curve
    from rarlhf.system.machine import prepare
    from rarlhf.training.base import make_base_model

    texts = [row.text for row in read_rows(raw / "train.jsonl")]
    with run.output(out) as folder, run.output(curve) as csv:
        points = make_base_model(texts, folder, run.params.model, prepare(run.params.runtime), run.recorder)
        write_curve(points, csv)


if __name__ == "__main__":
    base()
