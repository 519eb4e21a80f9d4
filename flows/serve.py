"""Serves the deployment `full` from this process: `python -m flows.serve`, with the server of `make ui` running."""

import sys

from flows.pipeline import rarlhf
from flows.server import server_answers


def main() -> int:
    """Waits for runs until it is stopped; returns the exit status."""
    if not server_answers():
        print("error: no Prefect server answers; start one with `make ui`", file=sys.stderr)
        return 1
    rarlhf.serve(name="full", limit=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
