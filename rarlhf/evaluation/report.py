"""reports/report.html: one file with its style and pictures inside, which opens anywhere without a network."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from unicodedata import category

import numpy as np
from jinja2 import Environment, StrictUndefined

from rarlhf.config.methods import colours_of, label_of
from rarlhf.config.params import Params
from rarlhf.evaluation import figures
from rarlhf.evaluation.attainable import SHARES, sentences
from rarlhf.evaluation.comparisons import COMPARED, Evaluation, any_table
from rarlhf.evaluation.curves import TrainingCurves, cvar_curves, quantile_curves
from rarlhf.evaluation.findings import SIGN, best_methods, findings, headlines, mark_explained, pair_label
from rarlhf.evaluation.generations import BoolArray, Tables, stacked
from rarlhf.evaluation.statistics import distinguishable
from rarlhf.evaluation.tables import (
    COLUMNS,
    ORACLE_COLUMNS,
    cell_text,
    columns_of,
    difference_text,
    number,
    oracle_rows,
    result_rows,
)
from rarlhf.evaluation.words import counted, listed, percent

KEPT = "\n\t\u200c\u200d\u200e\u200f"  # line feed, tab, zero-width joiners, direction marks
LIGHTER = 0.45  # share of white in a colour on a dark page
CAPTIONS: Mapping[str, tuple[str, str]] = {
    "reward_quantile": (
        "Reward by prompt difficulty",
        "Mean reward over the first x % of the test prompts, those with the lowest score of their own first (the "
        "paper's curve). The left end is the prompt tail, the right end the mean. Bands: lowest and highest seed.",
    ),
    "cvar_curve": (
        "Outcome CVaR",
        "Mean of the worst alpha % of all continuations, whatever their prompt. It rises to the mean reward at 100 %. "
        "A line that is ahead far to the left prevents rare failures. Bands: lowest and highest seed.",
    ),
    "reward_distribution": (
        "Shift of the reward distribution",
        "Rewards of all continuations of all seeds, the base model in grey. Shaded: below the 10 % quantile (VaR); "
        "dashed: the mean of that tail (CVaR).",
    ),
    "trade_off": (
        "Reward against KL",
        "Dots are seeds, discs their mean, the dashed line is the KL target. Further up is better; further right is "
        "further from the SFT model. The comparison of two methods is fair where their dots are at the same KL.",
    ),
    "attainable": (
        "Share of the attainable",
        "Dashed: the highest mean and the highest CVaR at 10 % that any policy of that KL could have, from weighted "
        "samples of the SFT model. Dots are seeds of the trained methods. The height of a dot over SFT, divided by the "
        "height of the dashed line over SFT at the same KL, is its share.",
    ),
    "kl_by_decile": (
        "Where the KL was spent",
        "Mean KL of the answers to each tenth of the test prompts, those with the lowest score of their own first. "
        "Bands: lowest and highest seed.",
    ),
    "training": (
        "Training",
        "Per iteration, over the training prompts of that batch. KL should stay at its target. The episodes kept "
        "follow the risk schedule. The CVaR is the mean of the worst 10 % of the whole batch's scores, for every "
        "method and risk level. Bands: lowest and highest seed.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report."""

    name: str  # file name in plots/ without suffix
    title: str
    caption: str  # how to read it
    png: bytes


@dataclass(frozen=True)
class Answer:
    """What one method wrote to a prompt."""

    method: str
    text: str
    score: str


@dataclass(frozen=True)
class TailSample:
    """One tail prompt with every method's answer beside each other."""

    prompt: str
    prompt_score: str
    answers: tuple[Answer, ...]


def draw_pictures(tables: Tables, training: TrainingCurves, evaluation: Evaluation, params: Params) -> list[Picture]:
    """Every figure of the report, in reading order, without those of which nothing was measured."""
    colours = colours_of(tables)
    rewards = {method: stacked(by_seed, "scores").reshape(-1) for method, by_seed in tables.items()}
    drawn = {
        "reward_quantile": figures.reward_quantiles(quantile_curves(tables), colours),
        "cvar_curve": figures.outcome_cvar(cvar_curves(tables), colours),
        "reward_distribution": figures.reward_distribution(rewards, colours),
        "trade_off": figures.trade_off(evaluation, colours),
        "attainable": figures.attainable(evaluation, colours),
        "kl_by_decile": figures.kl_by_decile(evaluation, colours),
        "training": figures.training_curves(training, colours, params.kl.target),
    }
    return [Picture(name, *CAPTIONS[name], figures.png(figure)) for name, figure in drawn.items() if figure is not None]


def tail_samples(tables: Tables, tail: BoolArray, count: int, seed: int) -> list[TailSample]:
    """Prompts of the tail drawn at random, with the first seed's first continuation of every method.

    Args:
        tables: generations of every method and seed.
        tail: (P,) bool, the prompt tail.
        count: prompts to draw, fewer where the tail is smaller.
        seed: of the draw, so that nobody picks the samples.

    Returns: prompts by ascending id, methods in the order of `tables`.
    """
    candidates = np.flatnonzero(tail)
    drawn = np.random.default_rng(seed).choice(candidates, size=min(count, len(candidates)), replace=False)
    return [_tail_sample(tables, int(index)) for index in np.sort(drawn)]


def _tail_sample(tables: Tables, index: int) -> TailSample:
    first = {method: next(iter(by_seed.values())) for method, by_seed in tables.items()}
    answers = tuple(
        Answer(method, table.continuations[index][0], number(float(table.scores[index, 0])))
        for method, table in first.items()
    )
    table = any_table(tables)
    return TailSample(table.prompts[index], number(float(table.prompt_scores[index])), answers)


def render_report(
    evaluation: Evaluation,
    pictures: Sequence[Picture],
    samples: Sequence[TailSample],
    counts: Mapping[str, object],
    params: Params,
    provenance: Mapping[str, str],
    offensive: bool,
) -> str:
    """The report as one HTML page without scripts, outside addresses or times.

    Args:
        evaluation: content of metrics/evaluate.json.
        pictures: figures in reading order.
        samples: tail samples; their texts are escaped, made `visible`, and kept apart from the page's own.
        counts: rows read, used and dropped, nested by name.
        params: all params, shown in full.
        provenance: name -> hash or version, for the foot.
        offensive: whether samples quote text that may offend; if so, a notice comes first and the samples are folded.

    Returns: HTML, equal for equal arguments.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    source = resources.files("rarlhf.evaluation").joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(source).render(
        evaluation=evaluation,
        label_of=label_of,
        counted=counted,
        colours={method: (colour, _on_dark(colour)) for method, colour in colours_of(evaluation["methods"]).items()},
        mark_explained=mark_explained(params.evaluate),
        headlines=headlines(evaluation, params.evaluate),
        findings=findings(evaluation, params.evaluate),
        seeds=listed(evaluation["seeds"]),
        confidence=percent(evaluation["confidence"]),
        results=_results(evaluation),
        result_headings=list(columns_of(evaluation).values()),
        attainable=_attainable(evaluation),
        differences=_differences(evaluation),
        difference_headings=[COLUMNS[metric] for metric in COMPARED],
        oracle=oracle_rows(evaluation),
        oracle_headings=list(ORACLE_COLUMNS.values()),
        all_metrics=_all_metrics(evaluation),
        pictures=[(p, b64encode(p.png).decode("ascii")) for p in pictures],
        samples=samples,
        counts=list(_flat(counts)),
        params=list(_flat(params.model_dump(mode="json"))),
        provenance=provenance,
        offensive=offensive,
    )


def _on_dark(colour: str) -> str:
    """A colour `#rrggbb` mixed with as much white as makes it readable on a dark page."""
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part + LIGHTER * (255 - part)):02x}" for part in parts)


def visible(text: str) -> str:
    """The text with every character that would change how it is displayed written as an escape in hexadecimal.

    Those are control characters but for line feed and tab, the invisible format characters of Unicode (overrides of
    writing direction, zero-width spaces, tags), and halves of surrogate pairs, which cannot be written as UTF-8. The
    joiners and direction marks that scripts and emoji need stay as they are.
    """
    return "".join(c if _is_plain(c) else c.encode("unicode_escape").decode() for c in text)


def _is_plain(character: str) -> bool:
    return character in KEPT or category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _results(evaluation: Evaluation) -> list[list[tuple[str, bool]]]:
    """Rows of (text, is best) cells."""
    columns = list(columns_of(evaluation))
    best = {metric: best_methods(evaluation, metric) if metric in SIGN else [] for metric in columns}
    return [
        [(row[0], False), *((cell, method in best[metric]) for cell, metric in zip(row[1:], columns, strict=True))]
        for method, row in zip(evaluation["methods"], result_rows(evaluation, columns), strict=True)
    ]


def _attainable(evaluation: Evaluation) -> list[str]:
    """What the shares of the attainable are, in sentences; empty where none was computed."""
    if "attainable" not in evaluation:
        return []
    having = [method for method, spreads in evaluation["methods"].items() if set(SHARES.values()) & set(spreads)]
    return sentences(evaluation["attainable"], having)


def _differences(evaluation: Evaluation) -> list[list[tuple[str, bool]]]:
    """Rows of (text, leaves out zero) cells: `RA-RLHF - RLHF`, then the difference of each compared metric."""
    return [
        [
            (pair_label(c), False),
            *((difference_text(d), distinguishable(d["interval"])) for d in (c["metrics"][m] for m in COMPARED)),
        ]
        for c in evaluation["comparisons"].values()
    ]


def _all_metrics(evaluation: Evaluation) -> list[list[str]]:
    """One row per metric: its name, then each method's `mean ±half-width`."""
    methods, confidence = list(evaluation["methods"].values()), evaluation["confidence"]
    metrics = dict.fromkeys(metric for spreads in methods for metric in spreads)
    return [[metric, *(cell_text(spreads, metric, confidence) for spreads in methods)] for metric in metrics]


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys joined by dots with their values as text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)
