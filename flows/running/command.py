"""What the command lines of the flows share: values for params.yaml, and how a run in this process ends."""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any

from prefect.client.schemas.objects import State
from ruamel.yaml import YAML

from rarlhf.config.errors import UserError

SHOWN = 100  # characters of a wrong value in a message


def value_of(text: str) -> tuple[str, Any]:
    """A key with its value: `risk.alpha=0.2`.

    Raises: argparse.ArgumentTypeError if it is not of that form.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text[:SHOWN]}: expected KEY=VALUE, such as risk.alpha=0.2")
    return key, yaml_value(value)


def yaml_value(text: str) -> Any:
    """A value as YAML reads it.

    Raises: argparse.ArgumentTypeError if it is not readable.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except Exception as error:  # odd numbers and dates raise errors of many classes
        raise argparse.ArgumentTypeError(f"{text[:SHOWN]}: the value is not readable as YAML") from error


def status_of(run: Callable[[], State[Any]], stopped: str) -> int:
    """Runs a flow, ends Prefect's temporary server on SIGTERM too, and returns the exit status.

    Args:
        run: refuses wrong values with a UserError before it starts anything.
        stopped: what is printed after a Ctrl-C.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # without it the server would live on
    try:
        state = run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"error: {stopped}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0 if state.is_completed() else 1
