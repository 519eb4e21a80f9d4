"""The command `rarlhf`: what one does with models that the pipeline made.

A command is a function that adds its own parser; `COMMANDS` lists them.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rarlhf.errors import UserError

Commands = Any  # what argparse's add_subparsers returns has no public type


def add_merge(commands: Commands) -> None:
    """`rarlhf merge`: an adapter and its base as one model."""
    parser = commands.add_parser(
        "merge", help="make plain weights of an adapter", description="Make plain weights of an adapter and its base."
    )
    parser.add_argument("adapter", type=Path, help="folder of the adapter, such as models/ra_rlhf/1")
    parser.add_argument("out", type=Path, help="folder to make; plain transformers loads it")
    parser.add_argument("--base", type=Path, help="folder of the base model, where it is not the one the adapter names")
    parser.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> None:
    from rarlhf.merge import merge_adapter

    difference = merge_adapter(arguments.adapter, arguments.out, arguments.base)
    print(f"{arguments.out}: {arguments.adapter} with its base, in float32. {difference.text()}.")


COMMANDS: tuple[Callable[[Commands], None], ...] = (add_merge,)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = argparse.ArgumentParser("rarlhf", description="Use models that the pipeline trained.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    arguments = parser.parse_args(argv)
    _quieten()
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _quieten() -> None:
    """Leaves the bars and advice of libraries out."""
    from rarlhf.runtime import quieten_libraries

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advises optional kernels at import
    quieten_libraries()
