"""reports/report.html: one file with its style, script and figures inside, which opens anywhere without a network.

The page's Content-Security-Policy allows its own style sheet and script, by their hashes, and nothing else: no address,
no inline `style`, no handler in an attribute.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined

from rarlhf.config.methods import RLHF, colours_of, label_of
from rarlhf.config.params import Params
from rarlhf.evaluation.attainable import SFT, SHARES, sentences
from rarlhf.evaluation.browser import Browser
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.critical import cluster_rows, gains_of
from rarlhf.evaluation.findings import SIGN, best_methods, findings, kl_warnings, mark_explained, pair_label
from rarlhf.evaluation.headlines import headlines
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.pictures import CAPTIONS, Pictures
from rarlhf.evaluation.samples import TailSample, visible
from rarlhf.evaluation.second_opinion import second_opinions
from rarlhf.evaluation.statistics import distinguishable_over_seeds
from rarlhf.evaluation.tables import (
    COLUMNS,
    COST_COLUMNS,
    ORACLE_COLUMNS,
    cell_text,
    columns_of,
    cost_rows,
    difference_cells,
    flat,
    judged_columns,
    judged_notes,
    oracle_rows,
    result_rows,
    seed_rows,
    shown_pairs,
    utility_columns,
    utility_notes,
)
from rarlhf.evaluation.words import counted, listed, percent

LIGHTER = 0.45  # share of white in a colour on a dark page
TOP = (
    "trade_off",
    "differences",
    "critical_prompts",
)  # figures that stand with their numbers, before the section of figures
TITLES: Mapping[str, str] = {  # id of a heading -> its text
    "trade-off": CAPTIONS["trade_off"][0],
    "results": "Results",
    "findings": "What the intervals say",
    "differences": "Paired differences",
    "by-seed": "Seed by seed",
    "judges": "By the judges",
    "utility": "Utility",
    "clusters": CAPTIONS["critical_prompts"][0],
    "oracle": "By the oracle",
    "figures": "Figures",
    "browse": "Browse the samples",
    "costs": "Costs",
    "samples": "Samples from the prompt tail",
    "metrics": "All metrics",
    "definitions": "Definitions",
    "data": "Data and parameters",
    "origin": "Where the numbers come from",
}


@dataclass(frozen=True)
class Texts:
    """What the report quotes of prompts and continuations.

    Attributes:
        samples: tail samples, shown without scripts too.
        browser: prompts to browse; None for no browser.
        offensive: whether the texts may offend: a notice comes first then, they are blurred, and samples are folded.
        prompts: id -> text of the test prompts.
    """

    samples: Sequence[TailSample]
    browser: Browser | None
    offensive: bool
    prompts: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where the numbers come from.

    Attributes:
        experiment: name of the experiment in MLflow.
        inputs_hash: tag of the run in MLflow that made the page.
        hashes: name -> hash of what the page was made from.
    """

    experiment: str
    inputs_hash: str
    hashes: Mapping[str, str]


def render_report(
    evaluation: Evaluation,
    pictures: Pictures,
    texts: Texts,
    counts: Mapping[str, object],
    params: Params,
    origin: Origin,
    second_scorer: Mapping[str, float],
) -> str:
    """The report as one HTML page without outside addresses, times or the commit.

    Args:
        evaluation: content of metrics/evaluate.json.
        pictures: figures in reading order.
        texts: what it quotes; all of it is escaped, made `visible`, and kept apart from the page's own text.
        counts: rows read, used and dropped, nested by name.
        params: all params, shown in full.
        origin: for the foot.
        second_scorer: content of metrics/second_scorer.json.

    Returns: HTML, equal for equal arguments.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_source)
    )
    environment.filters |= {"visible": visible, "headings": _headings}
    colours = {method: (colour, _on_dark(colour)) for method, colour in colours_of(evaluation["methods"]).items()}
    sheet = environment.get_template("report.css.j2").render(colours=colours, figures_sheet=pictures.sheet)
    script = _source("report.js")
    return environment.get_template("report.html.j2").render(
        evaluation=evaluation,
        policy=_policy(sheet, script),
        sheet=sheet,
        script=script,
        titles=TITLES,
        label_of=label_of,
        counted=counted,
        mark_explained=mark_explained(params.evaluate),
        headlines=headlines(evaluation, params.evaluate),
        opinions=second_opinions(evaluation),
        clusters=cluster_rows(evaluation, texts.prompts),
        warnings=list(kl_warnings(evaluation, params.evaluate)),
        findings={label_of(other): findings(evaluation, params.evaluate, other) for other in (RLHF, SFT)},
        seeds=listed(evaluation["seeds"]),
        confidence=percent(evaluation["confidence"]),
        pictures={name: pictures.shown.get(name) for name in TOP},
        further=[picture for name, picture in pictures.shown.items() if name not in TOP],
        judged_notes=judged_notes(evaluation, params.judge, second_scorer),
        utility_notes=utility_notes(evaluation),
        **_tables(evaluation),
        samples=texts.samples,
        browser=texts.browser,
        offensive=texts.offensive,
        counts=_lines(counts),
        params=_lines(params.model_dump(mode="json")),
        experiment=origin.experiment,
        inputs_hash=origin.inputs_hash,
        provenance=origin.hashes,
    )


def _source(name: str) -> str:
    return resources.files("rarlhf.evaluation").joinpath(name).read_text("utf-8")


def _headings(body: str) -> list[tuple[str, str]]:
    """(id, text) of the headings of a page, for its table of contents."""
    return re.findall(r'<h2 id="([\w-]+)">(.*?)</h2>', body)


def _policy(sheet: str, script: str) -> str:
    """The Content-Security-Policy: this style sheet, this script, and nothing else."""
    of_sheet, of_script = (
        f"'sha256-{b64encode(sha256(text.encode('utf-8')).digest()).decode('ascii')}'" for text in (sheet, script)
    )
    return f"default-src 'none'; style-src {of_sheet}; script-src {of_script}; base-uri 'none'; form-action 'none'"


def _on_dark(colour: str) -> str:
    """A colour `#rrggbb` mixed with as much white as makes it readable on a dark page."""
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part + LIGHTER * (255 - part)):02x}" for part in parts)


def _tables(evaluation: Evaluation) -> dict[str, object]:
    """The tables of the page and their headings."""
    columns = columns_of(evaluation)
    return {
        "results": _results(evaluation),
        "result_headings": list(columns.values()),
        "by_seed": seed_rows(evaluation, list(columns)),
        "attainable": _attainable(evaluation),
        "differences": _differences(evaluation),
        "difference_headings": [COLUMNS[metric] for metric in COMPARED],
        "judged": result_rows(evaluation, list(judged_columns(evaluation))),
        "judged_headings": list(judged_columns(evaluation).values()),
        "utility": result_rows(evaluation, list(utility_columns(evaluation))),
        "utility_headings": list(utility_columns(evaluation).values()),
        "cluster_methods": [label_of(method) for method in gains_of(evaluation)],
        "costs": cost_rows(evaluation),
        "cost_headings": list(COST_COLUMNS.values()),
        "pairs_left_out": len(evaluation["comparisons"]) - len(shown_pairs(evaluation)),
        "oracle": oracle_rows(evaluation),
        "oracle_headings": list(ORACLE_COLUMNS.values()),
        "all_metrics": _all_metrics(evaluation),
        "method_labels": [label_of(method) for method in evaluation["methods"]],
    }


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
    """Rows of (text, is marked) cells: `RA-RLHF - RLHF`, then the difference of each compared metric."""
    return [
        [
            (pair_label(c), False),
            *zip(
                difference_cells(c, COMPARED),
                (m in c["metrics"] and distinguishable_over_seeds(c["metrics"][m]) for m in COMPARED),
                strict=True,
            ),
        ]
        for c in shown_pairs(evaluation)
    ]


def _all_metrics(evaluation: Evaluation) -> list[list[str]]:
    """One row per metric: its name, then each method's `mean ±half-width`."""
    methods, confidence = list(evaluation["methods"].values()), evaluation["confidence"]
    metrics = dict.fromkeys(metric for spreads in methods for metric in spreads)
    return [[metric, *(cell_text(spreads, metric, confidence) for spreads in methods)] for metric in metrics]


def _lines(values: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(key, "null" if value is None else str(value)) for key, value in flat(values).items()]
