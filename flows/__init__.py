"""Prefect's door to the pipeline: the same stages and the same cache as `dvc repro`."""

from tasks.running.interpreter import PACKAGES, use_own

use_own([*PACKAGES, "prefect"])
