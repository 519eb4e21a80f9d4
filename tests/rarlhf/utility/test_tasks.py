"""Tasks of lm-evaluation-harness: what they measure, checked question by question, and what is refused."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

import rarlhf.utility.tasks
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.config.utility import UtilityParams
from rarlhf.system.machine import Machine
from rarlhf.utility.harness import run_tasks
from rarlhf.utility.results import TaskResult
from rarlhf.utility.tasks import Tasks, refuse_unready, refuse_without_package
from tests.rarlhf.utility.own_tasks import write_task

NEEDED = importlib.util.find_spec("lm_eval") is not None
harness = pytest.mark.skipif(not NEEDED, reason="lm-eval is not installed: pip install -e '.[utility]'")
warned = pytest.mark.filterwarnings("default")  # lm-eval's own imports warn
CHOICES = ["liked", "regret"]


def section(params: Params, *tasks: str, **values: object) -> UtilityParams:
    return params.utility.model_copy(update={"tasks": list(tasks), **values})


@torch.no_grad()
def slowly(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, question: str) -> int:
    """Which choice the model finds likelier after the question and a space."""
    found = []
    for choice in CHOICES:
        before = tokenizer(question.rstrip(), add_special_tokens=False)["input_ids"]
        after = tokenizer(f"{question.rstrip()} {choice}", add_special_tokens=False)["input_ids"]
        after = after[-(lm.config.n_positions + 1) :]
        new = len(tokenizer(f"{question.rstrip()} {choice}", add_special_tokens=False)["input_ids"]) - len(before)
        logits = lm(torch.tensor([after[:-1]])).logits[0]
        picked = logits.log_softmax(dim=1)[range(len(after) - 1), after[1:]]
        found.append(float(picked[-new:].sum()))
    return int(found[1] > found[0])


@harness
@warned
@pytest.mark.slow
def test_twenty_questions_of_our_own(
    lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, params: Params, machine: Machine, tmp_path: Path
) -> None:
    task = write_task(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    right = [slowly(lm, tokenizer, row["question"]) == row["answer"] for row in rows]
    share, tasks = sum(right) / 20, Tasks(section(params, task), tmp_path / "scratch")
    (found,) = run_tasks(lm, tokenizer, tasks, (), machine).values()
    assert found.accuracy == share and found.questions == 20
    assert found.error == pytest.approx((share * (1 - share) / 19) ** 0.5)
    assert run_tasks(lm, tokenizer, tasks, (), machine) == {"own": found}


@harness
@warned
@pytest.mark.slow
def test_tokens_that_a_model_never_draws_have_no_probability(
    lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, params: Params, machine: Machine, tmp_path: Path
) -> None:
    chosen = slowly(lm, tokenizer, "we saw the film")
    asked = section(params, write_task(tmp_path, answers=[chosen] * 3), limit=1)
    tasks = Tasks(asked, tmp_path / "scratch")
    assert run_tasks(lm, tokenizer, tasks, (), machine) == {"own": TaskResult(1.0, None, 1)}
    ids = [set(tokenizer(f"we saw the film {choice}")["input_ids"]) for choice in CHOICES]
    never = sorted(ids[chosen] - ids[1 - chosen])
    assert never
    assert run_tasks(lm, tokenizer, tasks, never, machine) == {"own": TaskResult(0.0, None, 1)}


@harness
@warned
@pytest.mark.slow
def test_tasks_that_lm_eval_brings_read_local_files(
    lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, params: Params, machine: Machine, tmp_path: Path
) -> None:
    data = tmp_path / "boolq"
    data.mkdir()
    rows = [{"passage": "we saw", "question": "is it so", "label": number % 2} for number in range(6)]
    for split in ("train", "validation-00000"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    science = tmp_path / "mmlu"
    names = ["elementary_mathematics", "high_school_mathematics"]
    for name in ("abstract_algebra", *names):
        (science / name).mkdir(parents=True)
        row = {"question": "we saw", "choices": ["a", "b", "c", "d"], "answer": 2}
        for split in ("dev", "test"):
            (science / name / f"{split}.jsonl").write_text((json.dumps(row) + "\n") * 5)
    files = {"boolq": str(data), "mmlu_abstract_algebra": str(science)}
    asked = section(params, "boolq", "mmlu_abstract_algebra", files=files, fewshot={"boolq": 2})
    tasks = Tasks(asked, tmp_path / "scratch")
    loaded, _ = tasks.load()
    assert {name: task.get_config("num_fewshot") for name, task in loaded["tasks"].items()} == {
        "boolq": 2,
        "mmlu_abstract_algebra": 0,
    }
    found = run_tasks(lm, tokenizer, tasks, (), machine)
    assert list(found) == ["boolq", "mmlu_abstract_algebra"]
    assert found["boolq"].accuracy == 0.5 and found["boolq"].questions == 6
    assert found["mmlu_abstract_algebra"].accuracy in (0.0, 1.0)
    (data / "train.jsonl").unlink()
    for key, place, said in (
        ("boolq", str(data), r"utility\.files\.boolq: .* has no file of split train"),
        ("boolq", str(tmp_path / "nowhere"), r"utility\.files\.boolq: .*nowhere is not there"),
        ("mmlu", str(science), r"utility\.files\.mmlu: .* has no file of split"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            refuse_unready(section(params, key, files={key: place}), tmp_path / "scratch")
        assert "\n" not in str(caught.value)


@harness
@warned
@pytest.mark.slow
def test_what_cannot_be_asked_is_refused(params: Params, tmp_path: Path) -> None:
    good = write_task(tmp_path)
    missing = write_task(tmp_path / "missing", data=str(tmp_path / "nowhere.jsonl"))
    unmeasured = write_task(tmp_path / "other", "other", metric="brier_score")
    broken = tmp_path / "broken.yaml"
    broken.write_text("dataset_path: json\n")
    for tasks, said in (
        (["nosuch_task"], "utility.tasks: 'nosuch_task' is no task or group of lm-evaluation-harness"),
        ([str(tmp_path / "absent.yaml")], "utility.tasks: .*absent.yaml is not there"),
        ([missing], "utility.tasks: .*own.yaml cannot be loaded .*nowhere.jsonl"),
        ([unmeasured], "utility.tasks: other measures no accuracy"),
        ([str(broken)], "utility.tasks: .*broken.yaml cannot be loaded"),
        ([good, write_task(tmp_path / "again")], "utility.tasks: own is in two of its entries"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            refuse_unready(section(params, *tasks), tmp_path / "scratch")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is a task of your own, whose YAML file names its data"):
        refuse_unready(section(params, good, files={good: str(tmp_path)}), tmp_path / "scratch")
    alone = tmp_path / "alone.yaml"
    alone.write_text(Path(good).read_text() + "num_fewshot: 0\n")
    with pytest.raises(
        UserError, match=r"utility\.fewshot\..*alone.yaml = 2: own is made to be asked without examples"
    ):
        refuse_unready(section(params, str(alone), fewshot={str(alone): 2}), tmp_path / "scratch")
    refuse_unready(section(params, str(alone), fewshot={str(alone): 0}), tmp_path / "scratch")
    refuse_unready(section(params, good), tmp_path / "scratch")


def test_without_lm_eval_tasks_are_refused(
    params: Params, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rarlhf.utility.tasks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"utility\.tasks = \['boolq'\]: lm-eval is not installed; `pip install -c"):
        refuse_unready(section(params, "boolq"), tmp_path)
    refuse_without_package(section(params))
    refuse_unready(section(params), tmp_path)
