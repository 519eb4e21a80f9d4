"""The pipeline's picture in Mermaid, a box for each stage: `python -m flows.stages`, or `make dag`.

`dvc dag` draws a box for each method and seed, which is wider than any screen.
"""

import sys
from collections import Counter

from flows.running.graph import Graph, read_graph
from rarlhf.config.errors import UserError

BESIDE = ("code", "check")  # every other stage waits for these, so that arrows from them would tell nothing


def main() -> int:
    """Prints the picture; 0 if DVC can read the pipeline."""
    try:
        print(mermaid(read_graph()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def mermaid(graph: Graph) -> str:
    """The stages and what each waits for; arrows that follow from others are left out.

    Args:
        graph: name of each run, such as `ppo@rlhf-1`, to those that it waits for.

    Returns: a flowchart, with the number of a stage's runs in its box if there are several.
    """
    runs = Counter(_stage(run) for run in graph)
    needs: dict[str, set[str]] = {stage: set() for stage in runs}
    for run, upstream in graph.items():
        needs[_stage(run)] |= {_stage(other) for other in upstream} - {_stage(run), *BESIDE}
    lines = [f'  {stage}["{stage}{f" x {count}" if count > 1 else ""}"]' for stage, count in sorted(runs.items())]
    arrows = [(other, stage) for stage, others in needs.items() for other in others - _further(others, needs)]
    return "\n".join(["flowchart TD", *lines, *(f"  {first} --> {second}" for first, second in sorted(arrows))])


def _stage(run: str) -> str:
    return run.partition("@")[0]


def _further(stages: set[str], needs: dict[str, set[str]]) -> set[str]:
    """All that these stages wait for."""
    found: set[str] = set()
    waiting = [other for stage in stages for other in needs[stage]]
    while waiting:
        stage = waiting.pop()
        if stage not in found:
            found.add(stage)
            waiting += needs[stage]
    return found


if __name__ == "__main__":
    sys.exit(main())
