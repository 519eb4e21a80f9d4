"""Stage `scorer`: fingerprint of the Python scorers' code, read in every repro to notice a change."""

from pathlib import Path

from rarlhf.rewards.functions import code_fingerprint
from rarlhf.system.files import write_json
from tasks.running.stage import Run, stage


@stage
def scorer(run: Run, out: Path) -> None:
    """Write the fingerprints of the functions that score."""
    with run.output(out) as file:
        write_json(file, [code_fingerprint(source) for source in run.params.functions])


if __name__ == "__main__":
    scorer()
