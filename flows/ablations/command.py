"""The command line of `python -m flows.ablation`."""

import argparse
from typing import Any

from flows.ablations.choice import NAMED
from flows.running.command import value_of, yaml_value

ABOUT = """\
Train and evaluate several cells, and compare them in one table. A cell is one
combination of values for params.yaml. params.yaml and your results stay as they
are. Cells that have run before are not run again. Give one of --grid, --cell,
--paper and --frontier. The results are in reports/ablation/NAME/ and in MLflow."""
EXAMPLES = """\
examples:
  python -m flows.ablation --grid risk.alpha=0.2,0.4 risk.warmup=1,30 --seeds 1,2
  python -m flows.ablation --cell risk.measure=none --cell risk.measure=cvar risk.alpha=0.2
  python -m flows.ablation --frontier 0.5,1,2 --methods rlhf,cvar_rlhf"""


def parser() -> argparse.ArgumentParser:
    """Reads the options of the flow, `--cell` as `cells`."""
    options = argparse.ArgumentParser(
        "python -m flows.ablation",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--grid",
        type=values_of,
        nargs="+",
        default=[],
        metavar="KEY=V1,V2",
        help="keys of params.yaml with their values; every combination is a cell",
    )
    options.add_argument(
        "--cell",
        type=value_of,
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="the values of one cell; repeat --cell for each cell",
        dest="cells",
    )
    options.add_argument("--paper", help=f"the cells of a table of the paper, or on its results: {', '.join(NAMED)}")
    options.add_argument(
        "--frontier",
        type=numbers_of,
        nargs="?",
        const=[],
        metavar="KL1,KL2",
        help="KL targets: methods are compared at common KL (default: half, once and twice kl.target)",
    )
    options.add_argument(
        "--methods",
        type=names_of,
        metavar="M1,M2",
        help="the methods that every cell trains (default: those of params.yaml)",
    )
    options.add_argument(
        "--seeds", type=seeds_of, metavar="S1,S2", help="the seeds of every cell (default: those of params.yaml)"
    )
    options.add_argument("--name", help="the folder in reports/ablation/ (default: made from the keys)")
    options.add_argument(
        "--jobs",
        type=int,
        help="how many cells run at the same time (default: one for each accelerator, or one on a CPU)",
    )
    return options


def values_of(text: str) -> tuple[str, list[Any]]:
    """A key with its values: `risk.alpha=0.2,0.4`.

    Raises: argparse.ArgumentTypeError if it is not of that form.
    """
    key, equals, values = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: expected KEY=V1,V2, such as risk.alpha=0.2,0.4")
    return key, yaml_value(f"[{values}]")


def seeds_of(text: str) -> list[int]:
    """Seeds: `1,2`.

    Raises: argparse.ArgumentTypeError if it is not of that form.
    """
    return values_of(f"seeds={text}")[1]


def numbers_of(text: str) -> list[float]:
    """Numbers: `0.5,1`.

    Raises: argparse.ArgumentTypeError if it is not of that form.
    """
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers, such as 0.5,1,2") from None


def names_of(text: str) -> list[str]:
    """Names: `rlhf,ra_rlhf`."""
    return text.split(",")
