"""A comparison of two runs as text: what all three forms say, for the terminal, and as Markdown."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rarlhf.config.escapes import one_line
from rarlhf.config.methods import is_trained, label_of
from rarlhf.config.refusals import shown
from rarlhf.evaluation.compare import A, B, ComparedPair, RunComparison, differs, pair_label, seeds_named
from rarlhf.evaluation.findings import MARK, METRIC_LABELS, SIGN, Verdict, mark_explained, verdict
from rarlhf.evaluation.judged import SECOND
from rarlhf.evaluation.statistics import distinguishable_over_seeds
from rarlhf.evaluation.tables import COLUMNS, NONE, aligned, with_half_width
from rarlhf.evaluation.words import counted, joined, percent
from rarlhf.messages.markdown import escaped
from rarlhf.messages.markdown import table as markdown_table

WIDTH = 100  # columns of a terminal
VALUE = 30  # columns of a parameter's value there
PLACES: Mapping[Verdict, str] = {
    "better": "ahead of {other} on",
    "worse": "behind {other} on",
    "open": "not distinguishable from {other} on",
}


@dataclass(frozen=True)
class Row:
    """One metric of a pair of methods.

    Attributes:
        metric: its short heading.
        cells: A, B, B less A, and the interval of that.
        apart: whether the interval leaves out zero; False for one seed.
    """

    metric: str
    cells: tuple[str, str, str, str]
    apart: bool


def title(comparison: RunComparison) -> str:
    """`alpha-0.5 less main`."""
    return f"{comparison.names[1]} less {comparison.names[0]}"


def tested(comparison: RunComparison) -> str:
    """Seeds, prompts, samples and the prompt tail, in one line."""
    test = comparison.test
    return (
        f"{seeds_named(comparison.seeds)}; {counted(test['prompts'], 'test prompt')} x "
        f"{counted(test['samples'], 'sample')}; prompt tail: {counted(test['tail_prompts'], 'prompt')}, "
        f"{test['tail_rule']}"
    )


def heading(comparison: RunComparison) -> list[str]:
    """Headings of the columns of `rows_of`, without that of the first."""
    return [A, B, f"{B} - {A}", f"{percent(comparison.params.evaluate.confidence)} interval"]


def pairs_shown(comparison: RunComparison) -> list[ComparedPair]:
    """The pairs of which something differs."""
    return [pair for pair in comparison.pairs if not pair.equal]


def equal_methods(comparison: RunComparison) -> str:
    """A sentence on the pairs in which nothing differs; empty if there is none."""
    equal = [pair_name(pair) for pair in comparison.pairs if pair.equal]
    return f"Equal in {A} and {B}, in every seed: {joined(equal)}." if equal else ""


def pair_name(pair: ComparedPair) -> str:
    """`RA-RLHF`, or `CVaR-RLHF less RA-RLHF` for two methods; with `MARK` where the two are not at like KL."""
    return pair_label(pair.methods) + ("" if pair.like_kl else f" {MARK}")


def rows_of(pair: ComparedPair, confidence: float) -> list[Row]:
    """A row for each metric that both have."""
    return [Row(heading, _cells(pair, m, confidence), _apart(pair, m)) for m, heading in _columns(pair).items()]


def _columns(pair: ComparedPair) -> dict[str, str]:
    names = {**COLUMNS, **{second: f"second scorer: {COLUMNS[first]}" for second, first in SECOND.items()}}
    return {metric: names.get(metric, metric) for metric in pair.differences}


def _cells(pair: ComparedPair, metric: str, confidence: float) -> tuple[str, str, str, str]:
    one, other = (with_half_width(spreads[metric], confidence) for spreads in pair.spreads)
    difference = pair.differences[metric]
    interval = difference["interval"]
    return one, other, f"{difference['mean']:+.2f}", f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else NONE


def _apart(pair: ComparedPair, metric: str) -> bool:
    difference = pair.differences[metric]
    return differs(difference) and distinguishable_over_seeds(difference)


def sentences(comparison: RunComparison) -> list[str]:
    """What the intervals say of each pair in which something differs."""
    return [_sentence(pair) for pair in pairs_shown(comparison)]


def _sentence(pair: ComparedPair) -> str:
    first, second = map(label_of, pair.methods)
    one, other = (A, B) if first == second else (f"{first} of {A}", f"{second} of {B}")
    lead = f"{first}: " if first == second else ""
    if not pair.like_kl and all(map(is_trained, pair.methods)):
        return f"{lead}{one} and {other} are not at like KL, so the rewards do not show which is better."
    measured = [pair.differences[metric] for metric in SIGN if metric in pair.differences]
    if not any(difference["interval"] and difference["n"] > 1 for difference in measured):
        return f"{lead}without intervals over seeds nothing is concluded about {one} and {other}."
    parts = _verdicts(pair, SIGN, METRIC_LABELS, one)
    labels = {second: METRIC_LABELS[first] for second, first in SECOND.items()}
    by_second = _verdicts(pair, dict.fromkeys(SECOND, 1), labels, one)
    told = [f"{lead}{other} is {'; '.join(parts)}."]
    if by_second:
        told.append(f"By the second scorer, {other} is {'; '.join(by_second)}.")
    return " ".join(told)


def _verdicts(pair: ComparedPair, signs: Mapping[str, int], labels: Mapping[str, str], other: str) -> list[str]:
    """`ahead of A on mean reward`, and so on; nothing of metrics without an interval."""
    measured = {metric: pair.differences[metric] for metric in signs if metric in pair.differences}
    found = {metric: verdict(value, signs[metric]) for metric, value in measured.items() if value["interval"]}
    parts = []
    for value, words in PLACES.items():
        metrics = [labels[metric] for metric, is_value in found.items() if is_value == value]
        if metrics:
            parts.append(f"{words.format(other=other)} {joined(metrics)}")
    return parts


def notes(comparison: RunComparison) -> list[str]:
    """How to read the numbers, and what was left out."""
    settings = comparison.params.evaluate
    level = percent(settings.confidence)
    by, several = "seed and test prompt" if comparison.by_prompts else "seed", len(comparison.seeds) > 1
    lines = [
        f"Mean ± half-width of the {level} t interval over seeds. Reward and tails: higher is better.",
        f"{B} - {A} is paired by {by}." + (f" *: the {level} interval leaves out zero." if several else ""),
    ]
    if any(not pair.like_kl for pair in comparison.pairs):
        lines.append(mark_explained(settings))
    return [*lines, *comparison.notes]


def changed_rows(comparison: RunComparison) -> list[list[str]]:
    """Each parameter that differs: its key, its value in A and in B; a dash where a run does not have the key."""
    return [[one_line(key), _value(first), _value(second)] for key, first, second in comparison.changed]


def _value(value: object) -> str:
    if value is None:
        return "null"
    return one_line(value if isinstance(value, str) else shown(value))


def terminal(comparison: RunComparison) -> str:
    """For a terminal of 100 columns."""
    parts = [
        "\n".join(
            [title(comparison), *(f"{side}: {name}" for side, name in zip((A, B), comparison.names, strict=True))]
        ),
        _wrapped([tested(comparison)]),
        _wrapped(sentences(comparison)),
    ]
    lines: list[list[str]] = []
    for pair in pairs_shown(comparison):
        lines.append([pair_name(pair), "", "", "", ""])
        for row in rows_of(pair, comparison.params.evaluate.confidence):
            one, other, difference, interval = row.cells
            lines.append([f"  {row.metric}", one, other, difference, interval + (" *" if row.apart else "  ")])
    if lines:
        parts.append(_trimmed(aligned([["", *heading(comparison)[:3], f"{heading(comparison)[3]}  "], *lines])))
    parts.append(equal_methods(comparison))
    changed = [[key, *(_cut(value) for value in values)] for key, *values in changed_rows(comparison)]
    parts.append(_trimmed(aligned([["parameter", A, B], *changed])) if changed else NO_CHANGE)
    return "\n\n".join(part for part in [*parts, _wrapped(notes(comparison))] if part)


NO_CHANGE = f"{A} and {B} have the same params.yaml."


def _cut(value: str) -> str:
    return value if len(value) <= VALUE else f"{value[: VALUE - 3]}..."


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n"))


def _wrapped(lines: Sequence[str]) -> str:
    return "\n".join(textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False) for line in lines)


def markdown(comparison: RunComparison) -> str:
    """As Markdown, for a pull request."""
    names = [f"- {side}: {escaped(name)}" for side, name in zip((A, B), comparison.names, strict=True)]
    parts = [f"## {escaped(title(comparison))}", "\n".join([*names, f"- {escaped(tested(comparison))}"])]
    parts.append("\n".join(f"- {escaped(sentence)}" for sentence in sentences(comparison)))
    lines = []
    for pair in pairs_shown(comparison):
        for number, row in enumerate(rows_of(pair, comparison.params.evaluate.confidence)):
            one, other, difference, interval = row.cells
            mark = " *" if row.apart else ""
            lines.append(["" if number else pair_name(pair), row.metric, one, other, difference, interval + mark])
    if lines:
        parts.append(markdown_table(["method", "metric", *heading(comparison)], lines, RULES))
    parts.append(escaped(equal_methods(comparison)))
    changed = changed_rows(comparison)
    parts.append(markdown_table(["parameter", A, B], changed) if changed else NO_CHANGE)
    parts.append("\n".join(f"- {escaped(line)}" for line in notes(comparison)))
    return "\n\n".join(part for part in parts if part) + "\n"


RULES = ["---", "---", "--:", "--:", "--:", "--:"]  # numbers to the right
