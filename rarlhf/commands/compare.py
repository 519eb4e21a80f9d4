"""`rarlhf compare`: two evaluations side by side, with paired differences."""

import argparse
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarlhf.config.errors import UserError
from rarlhf.config.escapes import one_line

if TYPE_CHECKING:
    from rarlhf.evaluation.compare import RunComparison

FORMATS = {"terminal": (), "markdown": (".md", ".markdown"), "html": (".html", ".htm")}  # with endings of --out
METHOD = re.compile(r"(?P<place>.+):(?P<method>[a-z][a-z0-9_]*)")


def add_compare(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "compare",
        help="compare two evaluations by paired differences",
        description="Compare run B with run A: numbers of both, B less A with intervals, and the params that differ. "
        "A run is a folder with params.yaml and generations/ (such as a clone of the project), a git revision, or a "
        "DVC experiment. Methods that both runs have are compared with each other.",
        epilog="examples: rarlhf compare main alpha-0.5   |   rarlhf compare .:ra_rlhf .:cvar_rlhf --out compared.html",
    )
    parser.add_argument(
        "a", metavar="A[:METHOD]", help="folder, git revision or DVC experiment, and one of its methods"
    )
    parser.add_argument("b", metavar="B[:METHOD]", help="the other run")
    parser.add_argument("--methods", metavar="X,Y", help="compare these methods alone (default: all that both have)")
    parser.add_argument("--format", choices=list(FORMATS), help="default: by the ending of --out, else terminal")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there; an existing file is replaced")
    parser.set_defaults(run=_compare, refuse=parser.error)


def _compare(arguments: argparse.Namespace) -> None:
    (place_a, method_a), (place_b, method_b) = map(_parted, (arguments.a, arguments.b))
    if arguments.methods and (method_a or method_b):
        arguments.refuse("argument --methods: not together with a method of A or B")
    named = [name for name in (arguments.methods or "").split(",") if name]
    pairs = [(name, name) for name in named]
    if method_a or method_b:
        pairs = [(method_a or method_b, method_b or method_a)]
    chosen = arguments.format or _format_of(arguments.out)
    if arguments.out and not arguments.out.absolute().parent.is_dir():
        raise UserError(f"--out {arguments.out}: there is no folder {arguments.out.parent}; make it first")
    from rarlhf.evaluation.compare_sources import opened

    with ExitStack() as stack:
        sources = [stack.enter_context(opened(place)) for place in (place_a, place_b)]  # before slow imports
        from rarlhf.evaluation.compare import compare_runs
        from rarlhf.evaluation.compare_runs import read_run

        a, b = map(read_run, sources)
        comparison = replace(compare_runs(a, b, pairs), names=(one_line(arguments.a), one_line(arguments.b)))
    text = _written(comparison, chosen)
    if arguments.out is None:
        print(text.rstrip("\n"))
        return
    from rarlhf.system.files import replaced

    with replaced(arguments.out) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
    print(f"{arguments.out}: {comparison.names[1]} less {comparison.names[0]}, as {chosen}")


def _parted(text: str) -> tuple[str, str]:
    """A run's place, and the method behind its last colon or an empty string."""
    found = METHOD.fullmatch(text)
    return (found["place"], found["method"]) if found and not Path(text).exists() else (text, "")


def _format_of(out: Path | None) -> str:
    ending = out.suffix.lower() if out else ""
    return next((name for name, endings in FORMATS.items() if ending in endings), "terminal")


def _written(comparison: "RunComparison", chosen: str) -> str:
    from rarlhf.evaluation import compare_tables

    if chosen == "html":
        from rarlhf.evaluation.compare_page import page

        return page(comparison)
    return compare_tables.markdown(comparison) if chosen == "markdown" else f"{compare_tables.terminal(comparison)}\n"
