"""Stage `base`: the base model with its tokenizer."""

from pathlib import Path

from tasks.stage import Run, stage


@stage
def base(run: Run, raw: Path, out: Path, curve: Path) -> None:
    """Fetch the base model, or train one on the rows."""
    from rarlhf.base_model import make_base_model
    from rarlhf.card import Card, base_of_params
    from rarlhf.data.files import read_rows, write_curve
    from rarlhf.runtime import prepare

    texts = [row.text for row in read_rows(raw / "train.jsonl")]
    with run.output(out) as folder, run.output(curve) as csv:
        points = make_base_model(texts, folder, run.params.model, prepare(run.params.runtime), run.recorder)
        write_curve(points, csv)
        origin = base_of_params(run.params.model, run.params.data)
        Card("base", None, origin, run.params.data, run.params.model, {}).write(folder)


if __name__ == "__main__":
    base()
