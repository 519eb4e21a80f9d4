"""docs/evaluation.md defines every metric, and no other."""

import re
from pathlib import Path

import numpy as np

from rarlhf.data.acceptance import nats_of_draws
from rarlhf.decoding.sampling import Responses
from rarlhf.evaluation.judged import measure_judgement
from rarlhf.evaluation.judgements import Judgement
from rarlhf.evaluation.metrics import PROMPT_CVAR_MIN_SAMPLES, measure
from tests.rarlhf.evaluation.conftest import MakeTable

PAGE = Path(__file__).parents[3].joinpath("docs", "evaluation.md").read_text(encoding="utf-8")


def test_every_metric_has_a_row_and_every_row_is_a_metric(make_table: MakeTable) -> None:
    table = make_table([list(range(PROMPT_CVAR_MIN_SAMPLES))] * 2)
    measured = {*measure(table, np.array([True, False]), max_new_tokens=9), "perplexity_reference"}
    tables = re.findall(r"^\| name \|.*\n\| ---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    cells = [row.split("|")[1] for rows in tables for row in rows.splitlines()]
    defined = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(defined) == sorted(measured)


def test_every_judged_metric_has_a_row_and_every_row_is_a_metric() -> None:
    one = np.ones((2, 3))
    measured = measure_judgement(Judgement(one, one, one.astype(np.int64), one / 2), np.array([True, False]), 0.5)
    (table,) = re.findall(r"^\| judged \|.*\n\| ---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    cells = [row.split("|")[1] for row in table.splitlines()]
    assert sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell)) == sorted(measured)


def test_the_bound_in_the_kl_of_a_choice_is_told_by_its_name() -> None:
    assert "choice_nats" in Responses._fields
    assert callable(nats_of_draws)
    assert nats_of_draws.__module__ == "rarlhf.data.acceptance"
    told = r"\(`rarlhf\.data\.acceptance`\)\.\s+`kl_sft` is then an upper bound in the mean"
    assert re.search(told, PAGE)
