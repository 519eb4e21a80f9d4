"""A task of lm-evaluation-harness of our own: twenty questions in a file of JSON lines, and its YAML file."""

import json
from collections.abc import Sequence
from pathlib import Path

YAML = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {data}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: {metric}
"""


def write_task(
    folder: Path, name: str = "own", answers: Sequence[int] = (0, 1) * 10, metric: str = "acc", data: str = ""
) -> str:
    """Writes questions with two choices, of which `answers` are right; returns the path of the YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = [
        {"question": f"we saw the film {'and ' * number}", "choices": ["liked", "regret"], "answer": answer}
        for number, answer in enumerate(answers)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    path = folder / f"{name}.yaml"
    path.write_text(YAML.format(name=name, data=data or folder / f"{name}.jsonl", metric=metric))
    return str(path)
