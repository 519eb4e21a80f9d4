"""Prefect's door to the pipeline: the same stages and the same cache as `dvc repro`."""
