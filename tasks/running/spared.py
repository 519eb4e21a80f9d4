"""Optional packages that a stage's process does without, though they are installed.

transformers' Trainer and trl import peft with bitsandbytes (1.5 s) wherever they find it, and the Trainer imports
datasets with pandas (0.6 s). A stage hides those that it has no use for. `None` in `sys.modules` is Python's own mark
of a module that cannot be imported (https://docs.python.org/3/reference/import.html#the-module-cache), so that
libraries take the package for one that is not installed.
"""

import sys

from rarlhf.config.params import Params

WITH_DATASETS = ("download", "sft", "tuned")  # stages; other trainings give the Trainer data sets of torch
WITH_HARNESS = ("check", "utility")  # stages that load lm-evaluation-harness where tasks are asked for


def unused(stage: str, params: Params) -> list[str]:
    """Names of packages that nothing in a stage can need."""
    # A scorer of a user's own and the harness's tasks may import anything.
    if params.functions or (params.utility.tasks and stage in WITH_HARNESS):
        return []
    return ["peft"] * (params.model.adapter == "none") + ["datasets"] * (stage not in WITH_DATASETS)


def spare(stage: str, params: Params) -> None:
    """Hides such packages from this process, for good. Packages that are imported already stay."""
    for name in unused(stage, params):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
