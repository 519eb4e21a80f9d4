"""Stage `code`: the code as other stages depend on it."""

from pathlib import Path

from tasks.running.code import write_silent
from tasks.running.stage import Run, stage


@stage
def code(run: Run, out: Path) -> None:
    """Copy the code without comments, docstrings and messages, so that rewording them makes nothing run again."""
    with run.output(out) as folder:
        for package in ("rarlhf", "tasks"):
            write_silent(Path(package), folder / package)


if __name__ == "__main__":
    code()
