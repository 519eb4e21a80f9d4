"""Stage `source`: fingerprint of the data files, read in every repro, so that a change reruns what depends on them."""

from pathlib import Path

from rarlhf.data.sources import fingerprint
from rarlhf.system.files import write_json
from tasks.running.stage import Run, stage


@stage
def source(run: Run, out: Path) -> None:
    """Write the source's fingerprint."""
    with run.output(out) as file:
        write_json(file, fingerprint(run.params.data))


if __name__ == "__main__":
    source()
