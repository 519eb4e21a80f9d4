"""The pipeline as Prefect flows: the same stages and the same cache as `dvc repro`."""

from tasks.running.interpreter import PACKAGES, use_own

use_own([*PACKAGES, "prefect"])
