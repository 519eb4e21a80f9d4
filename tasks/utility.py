"""Stage `utility`: what the models can still do beside the task that they were tuned for."""

import os
from pathlib import Path

from tasks.running.stage import Run, stage

OFF = "section utility of params.yaml is off: nothing is measured"


@stage
def utility(run: Run, raw: Path, models: Path, out: Path) -> None:
    """Measure the models that section `utility` asks about; with the section off, say so in a file."""
    asked = run.params.utility
    with run.output(out) as folder:
        if not asked.tasks and not asked.classification.rows:
            run.log(OFF)
            (folder / "off.txt").write_text(f"{OFF}\n", encoding="utf-8")  # DVC warns of a folder that is empty
            return
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries, which fill the log
        from rarlhf.system.machine import prepare
        from rarlhf.utility.methods import utilities
        from rarlhf.utility.results import write_utility

        for method, by_seed in utilities(raw, models, run.params, prepare(run.params.runtime), run.recorder).items():
            write_utility(by_seed, folder / f"{method}.json")
            for seed, found in by_seed.items():
                run.tracker.metrics({f"{method}/{seed}/{name}": value for name, value in found.metrics.items()})


if __name__ == "__main__":
    utility()
