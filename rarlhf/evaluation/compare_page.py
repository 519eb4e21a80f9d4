"""A comparison of two runs as one page of HTML, in the style of the report."""

from importlib import resources

from jinja2 import Environment, StrictUndefined

from rarlhf.evaluation.compare import A, B, RunComparison
from rarlhf.evaluation.compare_tables import (
    NO_CHANGE,
    changed_rows,
    equal_methods,
    heading,
    notes,
    pair_name,
    pairs_shown,
    rows_of,
    sentences,
    title,
)
from rarlhf.evaluation.words import counted, listed


def page(comparison: RunComparison) -> str:
    """The page: without scripts, outside addresses or times, equal for equal comparisons."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = resources.files("rarlhf.evaluation").joinpath("compare.html.j2").read_text("utf-8")
    confidence = comparison.params.evaluate.confidence
    return environment.from_string(source).render(
        title=title(comparison),
        names=dict(zip((A, B), comparison.names, strict=True)),
        facts={
            "Seeds": listed(comparison.seeds),
            "Test prompts": comparison.test["prompts"],
            "Samples per prompt": comparison.test["samples"],
            "Prompt tail": f"{counted(comparison.test['tail_prompts'], 'prompt')}: {comparison.test['tail_rule']}",
        },
        sentences=sentences(comparison),
        heading=heading(comparison),
        pairs=[(pair_name(pair), rows_of(pair, confidence)) for pair in pairs_shown(comparison)],
        equal=equal_methods(comparison),
        changed=changed_rows(comparison),
        no_change=NO_CHANGE,
        sides=(A, B),
        notes=notes(comparison),
    )
