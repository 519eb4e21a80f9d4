import json

import numpy as np
import pytest

from rarlhf.evaluation import browser as module
from rarlhf.evaluation.browser import browser, chosen_prompts

TAIL = np.arange(40) < 8


def small(params, **values):
    return params.evaluate.model_copy(update={"browser_prompts": 10, **values})


def test_half_of_the_prompts_are_of_the_tail() -> None:
    chosen = chosen_prompts(TAIL, 10, seed=1)
    assert len(set(chosen.tolist())) == 10 and list(chosen) == sorted(chosen)
    assert TAIL[chosen].sum() == 5
    assert TAIL[chosen_prompts(TAIL, 20, 1)].sum() == 8  # all there are; 12 others
    assert TAIL[chosen_prompts(TAIL, 39, 1)].sum() == 8 and len(chosen_prompts(TAIL, 39, 1)) == 39
    assert chosen_prompts(~TAIL, 36, 1).tolist() != chosen_prompts(~TAIL, 36, 2).tolist()
    assert (~TAIL)[chosen_prompts(~TAIL, 36, 1)].sum() == 28  # 8 others alone
    assert len(chosen_prompts(TAIL, 99, 1)) == 40
    assert chosen.tolist() == chosen_prompts(TAIL, 10, 1).tolist()


def test_every_answer_that_is_shown_is_the_methods_own(tables, params) -> None:
    made = browser(tables, TAIL, small(params))
    assert made is not None
    content = json.loads(made.data)
    assert content["methods"] == [["base", "Base"], ["sft", "SFT"], ["rlhf", "RLHF"], ["ra_rlhf", "RA-RLHF"]]
    assert (content["first"], content["second"], content["seeds"]) == (3, 2, [1, 2, 3])
    for prompt in content["prompts"]:
        place = int(prompt["text"].removeprefix("prompt "))
        assert prompt["tail"] == int(TAIL[place])
        answers = prompt["answers"][2]
        assert len(answers) == 3 * 4
        number, score, text = answers[5]  # the second sample of the second seed
        table = tables["rlhf"][2]
        assert (number, text) == (1, table.continuations[place][1])
        assert score == pytest.approx(table.scores[place, 1], abs=0.005)
    assert made.told == (
        "10 prompts, 5 of them in the tail; 4 answers per prompt, method and seed, from 3 seeds. Left out: 30 of 40 "
        "test prompts."
    )


def test_the_page_stays_small(tables, params, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = browser(tables, TAIL, small(params))
    assert whole is not None
    told = []
    for limit in (len(whole.data) - 1, len(whole.data) // 5, len(whole.data) // 10, 1):
        monkeypatch.setattr(module, "LIMIT", limit)
        made = browser(tables, TAIL, small(params))
        assert made is not None and (len(made.data) <= limit or limit == 1)
        told.append(made.told)
    assert "3 answers per prompt, method and seed, from 3 seeds." in told[0]
    assert "1 of 4 samples of each seed" in told[0]
    assert "1 answer per prompt, method and seed, from 2 seeds." in told[1]
    assert "1 of 3 seeds" in told[1]
    assert told[2].startswith("5 prompts, 3 of them in the tail; ")
    assert told[3].startswith("1 prompt, ")


def test_no_text_ends_the_element_or_reorders_the_page(make_table, params) -> None:
    hostile = "</script><!--&\u202e\x00\ud800"
    tables = {"sft": {1: make_table([[1.0], [2.0]], texts=[[hostile], ["plain"]])}}
    made = browser(tables, np.array([True, False]), small(params))
    assert made is not None
    assert not set("<>&\u202e\x00\ud800") & set(made.data)
    content = json.loads(made.data)
    assert content["prompts"][0]["answers"][0][0][2] == "</script><!--&\\u202e\\x00\\ud800"
    assert (content["first"], content["second"]) == (0, 0)  # there is one method alone


def test_no_prompts_no_browser(tables, params) -> None:
    assert browser(tables, TAIL, small(params, browser_prompts=0)) is None
