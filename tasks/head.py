"""Stage `head`: a head on the SFT model that rules of decoding read, one run per head of `methods.heads` and seed."""

from pathlib import Path

from tasks.running.stage import Run, stage
from tasks.tracking.record import all_params


@stage
def head(run: Run, method: str, seed: int, settings: Path, samples: Path, sft: Path, out: Path, curve: Path) -> None:
    """Train a head on the SFT model's answers to training prompts, with one seed."""
    from rarlhf.decoding.samples import read_samples
    from rarlhf.risk.planned import read_head
    from rarlhf.system.files import write_curve
    from rarlhf.system.machine import prepare
    from rarlhf.training.fit import Places
    from rarlhf.training.head import train_head

    run.tracker.params(all_params(run.params))
    machine = prepare(run.params.runtime)
    with run.output(out) as folder, run.output(curve) as csv:
        places = Places(sft, folder)
        learnt = train_head(read_head(settings), read_samples(samples), places, run.params, machine, run.recorder, seed)
        write_curve(learnt, csv)
        run.tracker.artifact(csv, "curve")


if __name__ == "__main__":
    head()
