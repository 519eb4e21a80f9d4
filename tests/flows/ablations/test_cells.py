from pathlib import Path

import pytest

from flows.ablations.cells import PAPER, grid_values, make_cells, shared_stages, varying
from rarlhf.config.errors import UserError

REPOSITORY = Path(__file__).parents[3]
START = ["generate_start@base", "generate_start@sft"]
FITS = ["generate_fit@cvar_fit", "generate_fit@mean_fit"]  # they need samples@train, which is not named beside them


@pytest.fixture(autouse=True)
def _tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the preset tiny and the real dvc.yaml."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("params.yaml", "presets/tiny.yaml"), ("dvc.yaml", "dvc.yaml")):
        Path(name).write_text((REPOSITORY / source).read_text(encoding="utf-8"), encoding="utf-8")


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    points = grid_values({"risk.alpha": [0.2, 0.4], "risk.warmup": [1, 30]})
    assert [tuple(point.values()) for point in points] == [(0.2, 1), (0.2, 30), (0.4, 1), (0.4, 30)]


def test_names_are_the_keys_ends_with_their_values() -> None:
    points = grid_values({"risk.alpha": [0.2], "risk.warmup": [30]})
    assert [cell.name for cell in make_cells(points, {})] == ["alpha-0.2-warmup-30"]
    points = [{"ppo.epochs": 1, "sft.epochs": 0.5}, {"kl.rate": 1e-05, "ppo.value_clip": None}]
    names = [cell.name for cell in make_cells(points, {})]
    assert names == ["ppo-epochs-1-sft-epochs-0.5", "rate-1e-05-value_clip-null"]
    (cell,) = make_cells([{"reward.sign": -1, "reward.label": "a/b ..c"}], {})
    assert cell.name == "sign-minus-1-label-a-b-c"


def test_cells_have_their_params_over_the_common_ones() -> None:
    (cell,) = make_cells([{"risk.alpha": 0.25}], {"seeds": [5]})
    assert (cell.params.risk.alpha, cell.params.seeds, cell.params.risk.warmup) == (0.25, [5], 10)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "an ablation needs cells"),
        ([{}], "an ablation needs cells"),
        ([{"risk.alhpa": 0.2}], "risk.alhpa is not a key of params.yaml"),
        (
            [{"methods.ppo.ra_rlhf.alpha": 0.1}],
            "the entry ra_rlhf under methods.ppo has no key alpha; write alpha with",
        ),
        ([{"risk.alpha": 0.2}, {"risk.alpha": 2.0}], "params.yaml with cell alpha-2.0: 1 problem:\n  risk.alpha = 2.0"),
        ([{"risk.warmup": 70}], r"params.yaml with cell warmup-70: . problems:\n  risk.warmup = 70, risk.rho = 0.8"),
        ([{"seeds": [1]}, {"seeds": [2]}], "seeds cannot differ between cells"),
        ([{"risk.alpha": 0.2}, {"risk.alpha": 0.20}], "the cells alpha-0.2 and alpha-0.2 have the same params"),
    ],
)
def test_wrong_cells_are_refused(points: list[dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_cells(points, {})


@pytest.mark.parametrize("values", [[], [0.2, 0.3, 0.2]])
def test_a_grid_has_each_value_once(values: list[float]) -> None:
    with pytest.raises(UserError, match="risk.alpha = .*: give values, each once"):
        grid_values({"risk.alpha": values})


def test_what_varies_is_known_for_cells_with_other_keys() -> None:
    cells = make_cells([{"risk.alpha": 0.2, "risk.rho": 0.8}, {"risk.warmup": 1}], {})
    assert varying(cells) == ["risk.alpha", "risk.warmup"]  # 0.8 is what params.yaml has


def shared(params: dict[str, object], *points: dict[str, object]) -> list[str]:
    return shared_stages(params, make_cells(points, params))


def test_stages_that_no_key_changes_are_shared() -> None:
    assert shared({"seeds": [4]}, {"risk.alpha": 0.2}, {"risk.alpha": 0.3}) == [
        "generate@cvar_rlhf",  # its entry has an alpha of its own
        "generate@rlhf",
        *FITS,
        *START,
        "samples@test",
        "second_scorer",
    ]
    assert shared({"seeds": [4]}, {"generate.samples": 2}, {"generate.samples": 3}) == ["samples@test", "utility"]
    assert shared({}, {"ppo.lr": 1e-4, "prompts.seed": 1}, {"ppo.lr": 2e-4, "prompts.seed": 2}) == [
        "base",
        "reward",
        "second_scorer",
    ]
    assert shared({}, {"data.seed": 8}, {"data.seed": 9}) == ["check"]


def test_other_answers_change_the_methods_that_they_plan_alone() -> None:
    unplanned = ["generate@ra_rlhf", "generate@rlhf"]
    assert shared({"seeds": [4]}, {"plan.seed": 1}, {"plan.seed": 2}) == [*unplanned, *START, "second_scorer"]
    prompts = ({"plan.train.prompts": 100}, {"plan.train.prompts": 200})
    assert shared({"seeds": [4]}, *prompts) == [*unplanned, *START, "samples@test", "second_scorer"]


def test_neither_test_answers_nor_the_frontiers_kl_change_a_training() -> None:
    # Stages judge and utility need all that is generated, and all models.
    assert shared({"seeds": [4]}, {"plan.test.samples": 40}, {"plan.test.samples": 50}) == ["judge", "utility"]
    assert shared({"seeds": [4]}, {"plan.kl": [0.5]}, {"plan.kl": [1.0]}) == ["judge", "samples@test", "utility"]


def test_what_a_measure_does_not_read_changes_no_training() -> None:
    assert shared({"seeds": [4]}, {"risk.mix": 0.2}, {"risk.mix": 0.3}) == ["judge", "samples@test", "utility"]


def test_a_key_of_one_methods_entry_changes_that_method_alone() -> None:
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("    ra_rlhf: {}", "    ra_rlhf: {}\n    cautious: {alpha: 0.2}"))
    points = ({"methods.ppo.cautious.alpha": 0.1}, {"methods.ppo.cautious.alpha": 0.3})
    kept = ["generate@cvar_rlhf", "generate@ra_rlhf", "generate@rlhf"]
    assert shared({"seeds": [4]}, *points) == [*kept, *FITS, *START, "samples@test", "second_scorer"]


def test_a_method_whose_entry_sets_the_key_is_shared() -> None:
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("    ra_rlhf: {}", "    ra_rlhf: {}\n    cautious: {alpha: 0.2}"))
    alphas = ({"risk.alpha": 0.1}, {"risk.alpha": 0.3})
    assert shared({"seeds": [4]}, *alphas) == [
        "generate@cautious",
        "generate@cvar_rlhf",
        "generate@rlhf",
        *FITS,
        *START,
        "samples@test",
        "second_scorer",
    ]


def test_the_papers_cells_are_valid_on_tiny() -> None:
    assert [cell.name for cell in make_cells(PAPER["table3"], {})] == [
        "warmup-1-alpha-0.4-rho-0.95",
        "warmup-30-alpha-0.4-rho-0.95",
        "warmup-30-alpha-0.3-rho-0.95",
        "warmup-30-alpha-0.2-rho-0.95",
    ]
