"""The command `rarlhf`: uses models that the pipeline made.

A command is a function that adds its own parser; `COMMANDS` lists them.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarlhf.commands.compare import add_compare
from rarlhf.commands.rules import add_rule_options, chosen_rule, open_rule
from rarlhf.config.errors import UserError

if TYPE_CHECKING:
    from rarlhf.system.machine import Machine

Commands = Any  # what argparse's add_subparsers returns has no public type
STOPPED, BROKEN_PIPE = 130, 141  # a shell's exit statuses for SIGINT and SIGPIPE


def add_generate(commands: Commands) -> None:
    """`rarlhf generate`: continuations of prompts."""
    parser = commands.add_parser(
        "generate",
        help="continue prompts by a trained model",
        description="Continue prompts by a model that the pipeline trained, whole or an adapter. Prompts are "
        "arguments, lines of --file, or lines of standard input. One line is printed for each continuation, in the "
        "prompts' order; what is not printable in it is written as an escape, such as \\n.",
        epilog="example: rarlhf generate models/ra_rlhf/1 'the film was' 'we saw the' --samples 2",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model, such as models/ra_rlhf/1")
    parser.add_argument("texts", nargs="*", metavar="PROMPT", help="what to continue")
    _add_file(parser, "prompt", "key prompt")
    parser.add_argument("--samples", type=_count, default=1, help="continuations of each prompt (default: 1)")
    parser.add_argument(
        "--max-new-tokens",
        type=_count,
        help="longest continuation, in tokens (default: 48, or less if the model's context is short)",
    )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=1.0,
        help="above 0, at most 10; below 1: less random (default: 1)",
    )
    parser.add_argument("--seed", type=_seed, default=1, help="equal seeds draw equal continuations (default: 1)")
    parser.add_argument(
        "--batch-size", type=_count, default=32, help="continuations at once: speed and memory (default: 32)"
    )
    parser.add_argument("--base", type=Path, help="folder of an adapter's base, if it is not the one it names")
    _add_device(parser)
    parser.add_argument("--json", action="store_true", help="JSON lines: prompt, sample, continuation, tokens, ended")
    add_rule_options(parser)
    parser.set_defaults(run=_generate, refuse=parser.error)


def _generate(arguments: argparse.Namespace) -> None:
    from rarlhf.commands.texts import given_texts
    from rarlhf.models.folders import refuse_no_language_model

    refuse_no_language_model(arguments.model, arguments.base)  # before slow imports
    chosen = chosen_rule(arguments)
    prompts = given_texts(arguments.texts, arguments.file, "prompt", [("prompt",)])
    machine = _machine(arguments.device)
    from rarlhf.decoding.writing import Choices, open_model, write

    model = open_model(arguments.model, machine.device, arguments.base)
    rule = open_rule(chosen, model, machine, arguments.temperature) if chosen else None
    how = (arguments.samples, arguments.max_new_tokens, arguments.temperature, arguments.seed, arguments.batch_size)
    for written in write(model, [prompt.text for prompt in prompts], Choices(*how), rule):
        prompt = prompts[written.prompt]
        if arguments.json:
            found = {"sample": written.sample, "continuation": written.text}
            _print_json({**prompt.record, **found, "tokens": written.tokens, "ended": written.ended})
        else:
            _print_text(prompt.text, written.text)


def _print_text(prompt: str, continuation: str) -> None:
    """Both as one line, the prompt in bold on a terminal."""
    from rarlhf.config.escapes import one_line

    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    print(f"{bold}{one_line(prompt)}{plain}{one_line(continuation)}", flush=True)


def add_score(commands: Commands) -> None:
    """`rarlhf score`: the reward model's scores of texts."""
    parser = commands.add_parser(
        "score",
        help="score texts by the reward model",
        description="Score texts by a reward model; higher is better. Texts are arguments, lines of --file, or lines "
        "of standard input. JSON lines hold a text, or a prompt and a continuation, as `rarlhf generate --json` prints "
        "them. Without --reward, section reward of params.yaml says which output is the score, and its sign.",
        epilog="example: rarlhf generate models/ra_rlhf/1 'the film was' --json | rarlhf score",
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to score")
    _add_file(parser, "text", "key text, or keys prompt and continuation")
    parser.add_argument("--reward", type=Path, help="folder of a classifier (default: models/reward)")
    parser.add_argument("--label", help="the output whose raw logit is the score, by name or index")
    parser.add_argument("--sign", type=int, choices=[1, -1], help="-1 for a classifier of the unwanted class")
    parser.add_argument("--max-length", type=_count, help="tokens that the classifier reads of a text")
    parser.add_argument("--batch-size", type=_count, help="texts at once: speed and memory")
    _add_device(parser)
    parser.add_argument("--json", action="store_true", help="JSON lines: what came in, with a score")
    parser.set_defaults(run=_score, refuse=parser.error)


def _score(arguments: argparse.Namespace) -> None:
    from rarlhf.commands.score import ScoreOptions, chosen_scorer, open_reward_model
    from rarlhf.commands.texts import given_texts
    from rarlhf.config.escapes import one_line

    options = ScoreOptions(arguments.label, arguments.sign, arguments.max_length, arguments.batch_size)
    folder, params = chosen_scorer(arguments.reward, options)  # before slow imports
    fields = [("text",), ("prompt", "continuation")]
    texts = given_texts(arguments.texts, arguments.file, "text", fields)
    score = open_reward_model(folder, params, _machine(arguments.device))
    for given, value in zip(texts, score([given.text for given in texts]).tolist(), strict=True):
        if arguments.json:
            _print_json({**given.record, "score": value})
        else:
            print(f"{value:.4f}\t{one_line(given.text)}")


def add_merge(commands: Commands) -> None:
    """`rarlhf merge`: an adapter and its base as one model."""
    parser = commands.add_parser(
        "merge",
        help="merge an adapter into its base model",
        description="Merge an adapter into its base model, as one model with plain weights.",
        epilog="example: rarlhf merge models/ra_rlhf/1 merged",
    )
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder of the adapter, such as models/ra_rlhf/1")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; plain transformers loads it")
    parser.add_argument("--base", type=Path, help="folder of the base model, if it is not the one the adapter names")
    parser.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> None:
    from rarlhf.models.folders import refuse_no_merge

    refuse_no_merge(arguments.adapter, arguments.out, arguments.base)  # before slow imports
    _quieten()
    from rarlhf.commands.merge import merge_adapter

    difference = merge_adapter(arguments.adapter, arguments.out, arguments.base)
    print(f"{arguments.out}: {arguments.adapter} with its base, in float32. {difference.text()}.")


def add_convert(commands: Commands) -> None:
    """`rarlhf convert`: a model with pickled weights as one with safetensors."""
    about = "Convert a model that has only pickled weights to safetensors. Convert only what you trust."
    parser = commands.add_parser(
        "convert",
        help="convert pickled weights to safetensors",
        description=about,
        epilog="example: rarlhf convert lvwerra/distilbert-imdb distilbert-imdb",
    )
    parser.add_argument("source", metavar="SOURCE", help="local folder or hub name")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make, for model.source or reward.source")
    parser.add_argument("--revision", help="commit, branch or tag of a hub model")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from rarlhf.models.folders import refuse_no_conversion

    refuse_no_conversion(arguments.source, arguments.out, arguments.revision)  # before slow imports
    _quieten()
    from rarlhf.commands.convert import convert

    names = convert(arguments.source, arguments.out, arguments.revision)
    print(f"{arguments.out}: {arguments.source} with {', '.join(names)}")


COMMANDS: tuple[Callable[[Commands], None], ...] = (add_generate, add_score, add_compare, add_merge, add_convert)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    0 done, 1 failed, 2 wrong arguments, 130 stopped by Ctrl-C, 141 the reader of the output closed it.
    """
    if sys.stdout is None:  # as under `>&-`
        print("error: standard output is closed, and results are written there", file=sys.stderr)
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # like the input, in every locale
    try:
        arguments = _parse(argv)
        arguments.run(arguments)
        sys.stdout.flush()
    except UserError as error:
        from rarlhf.config.escapes import safe

        print(f"error: {safe(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        where = f"{error.filename} cannot be used" if error.filename else "the output cannot be written"
        print(f"error: {where} ({error.strerror or error}); check the room and the permissions there", file=sys.stderr)
        if not error.filename:
            _drop_output()
        return 1
    return 0


def _drop_output() -> None:
    """Discards the rest of the output, which Python writes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Version(argparse.Action):
    """Prints the version of the installed package, which is looked up only for this option."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"rarlhf {version('rarlhf')}")
        except PackageNotFoundError:
            parser.exit(1, "error: rarlhf runs from a folder that is not installed, and has no version here\n")
        parser.exit()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "rarlhf",
        description="Use models that the pipeline trained.",
        epilog="`rarlhf COMMAND --help` describes a command. The pipeline is run by `make repro` or `dvc repro`.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    try:
        arguments, rest = parser.parse_known_args(argv)
    except SystemExit:
        sys.stdout.flush()  # the output of --help and --version, whose reader may be gone
        raise
    if rest and ("texts" not in arguments or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if "texts" in arguments:
        arguments.texts += rest  # texts behind an option, which argparse leaves
        if arguments.texts and arguments.file:
            arguments.refuse("argument --file: not together with texts as arguments")
    return arguments


def _add_file(parser: argparse.ArgumentParser, name: str, keys: str) -> None:
    parser.add_argument(
        "--file",
        type=Path,
        help=f"file to read, one {name} a line; if its name ends in .jsonl, one JSON object a line, with {keys}",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one (default: auto)"
    )


def _machine(device: str) -> "Machine":
    """The device in float32, so that equal seeds write equal texts for all params."""
    _quieten()
    import torch

    from rarlhf.system.machine import Machine

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UserError("--device cuda: no CUDA device is visible here")
    return Machine(torch.device("cpu" if device == "cpu" or not there else "cuda"), torch.float32)


def _print_json(record: dict[str, Any]) -> None:
    """Prints a line of JSON, with escapes for characters that are not printable: they could control a terminal."""
    line = json.dumps(record, ensure_ascii=False)
    print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line), flush=True)


def _count(text: str) -> int:
    return _number(text, int, "a whole number, at least 1", lambda value: value >= 1)


def _seed(text: str) -> int:
    return _number(text, int, "a whole number, at least 0", lambda value: value >= 0)


def _temperature(text: str) -> float:
    return _number(text, float, "above 0 and at most 10", lambda value: 0 < value <= 10)


def _number(text: str, kind: Callable[[str], Any], rule: str, holds: Callable[[Any], bool]) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"{text!r}: must be {rule}")
    return value


def _quieten() -> None:
    """Switches off progress bars and advice of libraries."""
    from rarlhf.system.machine import quieten_libraries

    quieten_libraries()
