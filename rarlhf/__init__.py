"""Risk-averse fine-tuning of language models: a library that knows no DVC, Prefect or MLflow."""
