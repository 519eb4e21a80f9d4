"""The stage on answers made up: what each method's file holds, what changes it, and what is drawn and told."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.decoding.samples import Samples, write_samples
from rarlhf.risk.planned import read_plan, with_planned_eta
from tasks.inputs import Inputs
from tasks.plan import plan
from tasks.running.stage import Run
from tests.tasks.silent import Silent

PRESET = load_params(Path(__file__).parents[2] / "presets" / "tiny.yaml")
Stage = Callable[..., dict[str, str]]


def edited(methods: dict[str, dict[str, object]], kl_target: float = 0.5, **risk: object) -> Params:
    """The preset with other methods by PPO and values of section `risk`."""
    return PRESET.model_copy(
        update={
            "methods": PRESET.methods.model_copy(update={"ppo": methods, "fit": FITS}),
            "kl": PRESET.kl.model_copy(update={"target": kl_target}),
            "plan": PRESET.plan.model_copy(update={"kl": [0.25, 1.0]}),
            "risk": PRESET.risk.model_copy(update=risk),
        }
    )


FITS = {"cvar_fit": {"measure": "cvar_ru", "of": "score", "eta": "plan"}, "mean_fit": {"measure": "none"}}
METHODS: dict[str, dict[str, object]] = {
    "rlhf": {"measure": "none"},
    "ra_rlhf": {},
    "cvar_rlhf": {"measure": "cvar_ru", "of": "score", "eta": "plan"},
    "fixed": {"measure": "cvar_ru", "of": "score", "eta": 0.5},
}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Runs the stage on scores drawn from a seed; gives the text of each method's file."""
    monkeypatch.chdir(tmp_path)

    def run(params: Params, seed: int = 1, scores: torch.Tensor | None = None) -> dict[str, str]:
        if scores is None:
            scores = torch.randn(40, 16, generator=torch.Generator().manual_seed(seed))
        Path("samples").mkdir(exist_ok=True)
        lengths = torch.ones(scores.shape, dtype=torch.int32)
        write_samples(Samples(lengths.unsqueeze(-1).clone(), lengths, scores, []), Path("samples"))
        here = Run(params, Inputs("plan", {}, {}), Silent())  # type: ignore[arg-type]
        plan.__wrapped__(here, Path("samples"), Path("plan"))  # type: ignore[attr-defined]
        here._outputs.commit()
        return {path.stem: path.read_text() for path in Path("plan/methods").glob("*.json")}

    return run


def test_methods_that_need_a_plan_have_one_at_the_target(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: json.loads(text) for name, text in stage(edited(METHODS)).items()}
    assert {name for name, values in files.items() if "plan" in values} == {"cvar_rlhf", "cvar_fit", "mean_fit"}
    assert files["rlhf"] == {"measure": "none", "critic": "kept"}
    for name in ("cvar_rlhf", "cvar_fit", "mean_fit"):
        assert files[name]["plan"]["kl"] == pytest.approx(0.5)
    assert files["cvar_rlhf"]["plan"] == files["cvar_fit"]["plan"]
    assert files["mean_fit"]["plan"]["eta"] is None
    assert files["mean_fit"]["plan"]["mean"] > files["cvar_fit"]["plan"]["mean"]
    assert files["mean_fit"]["plan"]["cvar"] is None  # the only number of it that risk.alpha decides
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["plan", "sft", "cvar_rlhf", "cvar_fit", "mean_fit"]


def test_other_answers_change_the_files_of_planned_methods_alone(stage: Stage) -> None:
    first, second = stage(edited(METHODS), seed=1), stage(edited(METHODS), seed=2)
    assert {name for name in first if first[name] != second[name]} == {"cvar_rlhf", "cvar_fit", "mean_fit"}


def test_a_value_changes_the_files_of_the_methods_that_read_it(stage: Stage) -> None:
    first, second = stage(edited(METHODS)), stage(edited(METHODS, alpha=0.2))
    assert {name for name in first if first[name] != second[name]} == {"ra_rlhf", "cvar_rlhf", "fixed", "cvar_fit"}
    later = stage(edited(METHODS, warmup=3))
    assert {name for name in first if first[name] != later[name]} == {"ra_rlhf", "cvar_rlhf", "fixed"}


def test_the_frontier_is_written_and_drawn(stage: Stage) -> None:
    stage(edited(METHODS))
    table = json.loads(Path("plan/frontier.json").read_text())
    assert [row["kl_target"] for row in table["rows"]] == [0.25, 1.0]
    assert [row["best_mean"]["kl"] for row in table["rows"]] == pytest.approx([0.25, 1.0])
    assert set(table["methods"]) == {"cvar_rlhf", "cvar_fit", "mean_fit"}
    assert table["alpha"] == PRESET.risk.alpha
    drawn = Path("plan/frontier.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    stage(edited(METHODS))
    assert Path("plan/frontier.png").read_bytes() == drawn


def test_every_cvar_of_the_frontier_is_at_the_first_plans_level(stage: Stage) -> None:
    methods = {"first": {**METHODS["cvar_rlhf"], "alpha": 0.1}, "second": {**METHODS["cvar_rlhf"], "alpha": 0.5}}
    files = {name: json.loads(text) for name, text in stage(edited(methods)).items()}
    table = json.loads(Path("plan/frontier.json").read_text())
    assert table["alpha"] == 0.1
    assert table["methods"]["first"]["cvar"] == files["first"]["plan"]["cvar"]
    assert table["methods"]["second"]["cvar"] < files["second"]["plan"]["cvar"]
    assert table["methods"]["second"]["cvar"] < table["methods"]["first"]["cvar"]


def test_too_high_a_target_is_told(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage(edited(METHODS, kl_target=4.0))
    assert "warning: cvar_rlhf: planned for 1.66 nats instead of kl.target = 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.ones(5, 4), "cvar_rlhf: all answers to each prompt have the same score"),
        (torch.tensor([[math.nan, 1.0], [0.0, 2.0]]), "1 of 4 scores of the answers are not finite"),
    ],
)
def test_scores_without_a_plan_are_refused(scores: torch.Tensor, message: str, stage: Stage) -> None:
    with pytest.raises(UserError, match=message):
        stage(edited(METHODS), scores=scores)
    assert not Path("plan").exists()


def test_training_takes_the_number_of_its_plan(stage: Stage) -> None:
    params = edited(METHODS)
    files = stage(params)
    file = Path("plan/methods/cvar_rlhf.json")
    eta = with_planned_eta(params.risk_of("cvar_rlhf"), file).eta
    assert eta == json.loads(files["cvar_rlhf"])["plan"]["eta"] == read_plan(file)["eta"]
    for name in ("rlhf", "ra_rlhf", "fixed"):
        risk = params.risk_of(name)
        assert with_planned_eta(risk, Path(f"plan/methods/{name}.json")) == risk
    with pytest.raises(UserError, match=r"rlhf.json holds no plan; `dvc repro plan` makes it"):
        with_planned_eta(params.risk_of("cvar_rlhf"), Path("plan/methods/rlhf.json"))


def test_without_methods_that_need_a_plan_the_frontier_is_still_there(stage: Stage) -> None:
    params = edited({"rlhf": {"measure": "none"}})
    params = params.model_copy(update={"methods": params.methods.model_copy(update={"fit": {}})})
    assert set(stage(params)) == {"rlhf"}
    assert json.loads(Path("plan/frontier.json").read_text())["methods"] == {}
