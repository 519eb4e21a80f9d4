import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from flows.ablations.cells import PAPER, grid_values, make_cells, shared_stages, varying
from rarlhf.config.errors import UserError

REPOSITORY = Path(__file__).parents[3]


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
        ([{"risk.alpha": 0.2}, {"risk.alpha": 2.0}], "params.yaml with cell alpha-2.0: 1 problem:\n  risk.alpha = 2.0"),
        ([{"risk.warmup": 70}], r"params.yaml with cell warmup-70: 1 problem:\n  risk.warmup = 70, risk.rho = 0.8"),
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


def shared(key: str, *values: object, common: Mapping[str, object] | None = None) -> list[str]:
    """The last shared stages of cells with these values of a key."""
    cells = make_cells(grid_values({key: values}), common or {})
    return shared_stages({**(common or {}), **cells[0].values}, cells)


def test_stages_that_no_key_changes_are_shared() -> None:
    one = {"seeds": [4]}
    start = ["generate_start@base", "generate_start@sft"]
    assert shared("risk.alpha", 0.2, 0.4, common=one) == ["generate@rlhf", *start]  # plain RLHF reads no alpha
    assert shared("generate.samples", 1, 2, common=one) == ["ppo@ra_rlhf-4", "ppo@rlhf-4"]
    assert shared("ppo.lr", 0.1, 0.2) == [*start, "methods"]
    assert shared("prompts.seed", 1, 2) == ["base", "methods", "reward"]
    assert shared("data.seed", 1, 2) == ["methods"]


def test_a_method_of_the_users_own_is_shared_where_the_cells_do_not_change_it() -> None:
    path = Path("params.yaml")
    own = "    ra_rlhf: {}\n    cautious: {alpha: 0.1}\n"
    text = re.sub(r"    ra_rlhf: \{\}.*\n", own, path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    start = ["generate_start@base", "generate_start@sft"]
    assert shared("risk.alpha", 0.2, 0.4) == ["generate@cautious", "generate@rlhf", *start]
    assert shared("risk.warmup", 1, 2) == ["generate@rlhf", *start]


def test_the_papers_cells_are_valid_on_tiny() -> None:
    assert [cell.name for cell in make_cells(PAPER["table3"], {})] == [
        "warmup-1-alpha-0.4-rho-0.95",
        "warmup-30-alpha-0.4-rho-0.95",
        "warmup-30-alpha-0.3-rho-0.95",
        "warmup-30-alpha-0.2-rho-0.95",
    ]
