"""What stage `check` refuses and says before anything runs."""

from pathlib import Path

import pytest

import rarlhf.training.preflight
import rarlhf.utility.tasks
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.training.preflight import Made, refuse_missing
from tests.rarlhf.small import changed

MADE = Made()


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)

    def unreachable(name: str, revision: str | None, key: str) -> None:
        raise UserError(f"{key} = {name!r}: not there at {revision}")

    monkeypatch.setattr(rarlhf.training.preflight, "fetch_config", unreachable)


def model(folder: str, file: str = "config.json") -> str:
    Path(folder).mkdir(parents=True)
    Path(folder, file).write_text("{}")
    return folder


def with_data(params: Params, **values: object) -> Params:
    data = params.data.model_copy(update={"source": "file", "path": "mine"} | values)
    return params.model_copy(update={"data": data})


def test_the_default_preset_needs_nothing(params: Params) -> None:
    refuse_missing(params, MADE)


def test_data_files_that_are_not_there(params: Params) -> None:
    with pytest.raises(UserError, match="data.path: there is no folder mine"):
        refuse_missing(with_data(params), MADE)
    Path("mine").mkdir()
    Path("mine/train.csv").write_text("text,label\n")
    with pytest.raises(UserError, match="data.path: mine has no test file"):
        refuse_missing(with_data(params), MADE)
    refuse_missing(with_data(params, test_share=0.2), MADE)
    Path("mine/test.csv").write_text("text,label\n")
    refuse_missing(with_data(params), MADE)


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ("model", MADE.base),
        ("reward", MADE.reward),
        ("judge.second_scorer", MADE.second_scorer),
        ("judge.language_model", MADE.judgements),
    ],
)
def test_models_that_are_not_there(section: str, place: Path, params: Params) -> None:
    named = changed(params, {f"{section}.source": "own/one", f"{section}.revision": "abc"})
    with pytest.raises(UserError, match=rf"{section}.source = 'own/one': not there at abc"):
        refuse_missing(named, MADE)
    Path("own/one").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{section}.source = 'own/one': the folder has no config.json"):
        refuse_missing(named, MADE)
    Path("own/one").rmdir()
    Path("own/one").write_text("")
    with pytest.raises(UserError, match=rf"{section}.source = 'own/one': is a file"):
        refuse_missing(named, MADE)
    Path("own/one").unlink()
    refuse_missing(changed(params, {f"{section}.source": model("own/one")}), MADE)
    Path("own/one/config.json").unlink()
    model(str(place))  # it was made before, from what need not be there any more
    refuse_missing(named, MADE)


def test_a_judge_that_compares_is_there_and_has_a_chat_template(params: Params, lm_folder: Path) -> None:
    def refused(source: str) -> str:
        with pytest.raises(UserError) as caught:
            refuse_missing(changed(params, {"judge.preference.source": source}), MADE)
        return str(caught.value)

    assert refused("own/one") == "judge.preference.source = 'own/one': not there at None"
    assert f"judge.preference.source = '{lm_folder}': its tokenizer has no chat template" in refused(str(lm_folder))
    (lm_folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    refuse_missing(changed(params, {"judge.preference.source": str(lm_folder)}), MADE)
    model(str(MADE.judgements))
    refuse_missing(changed(params, {"judge.preference.source": "own/one"}), MADE)


def test_tasks_that_cannot_be_asked(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rarlhf.utility.tasks, "find_spec", lambda name: None)
    asked = changed(params, {"utility.tasks": ["boolq"]})
    with pytest.raises(UserError, match="lm-eval is not installed"):
        refuse_missing(asked, MADE)
    model(str(MADE.utility))
    refuse_missing(asked, MADE)


def test_scorers_that_are_not_there(params: Params) -> None:
    others = [{"source": model("toxicity"), "weight": 1.0}, {"source": "nowhere", "weight": 1.0}]
    section = type(params.reward).model_validate(params.reward.model_dump() | {"others": others})
    with pytest.raises(UserError, match=r"reward\.others\.1\.source = 'nowhere'"):
        refuse_missing(params.model_copy(update={"reward": section}), MADE)
    with pytest.raises(UserError, match="there is no module nosuch"):
        refuse_missing(changed(params, {"reward.source": "python:nosuch.module:f"}), MADE)


def test_a_copy_of_the_repository_looks_in_the_main_one(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    model("main/own")
    model("main/data/raw", "counts.json")
    monkeypatch.setenv("DVC_ROOT", str(Path("main").absolute()))
    refuse_missing(with_data(changed(params, {"model.source": "own"})), MADE)
