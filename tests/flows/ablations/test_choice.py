from pathlib import Path

import pytest

from flows.ablations.cells import chosen_methods, make_cells
from flows.ablations.choice import choose
from flows.ablations.command import parser
from flows.ablations.experiments import _changes
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((REPOSITORY / "presets" / "tiny.yaml").read_bytes())


def test_a_frontier_has_a_cell_for_each_target() -> None:
    choice = choose(frontier=[0.5, 1.0], seeds=[1, 2])
    assert (choice.name, choice.page, choice.common) == ("frontier", "frontier", {"seeds": [1, 2]})
    assert [cell.params.kl.target for cell in make_cells(choice.points, choice.common)] == [0.5, 1.0]
    target = load_params().kl.target
    assert [point["kl.target"] for point in choose(frontier=[]).points] == [0.5 * target, target, 2 * target]
    assert parser().parse_args(["--frontier"]).frontier == []
    assert parser().parse_args(["--frontier", "0.5,1"]).frontier == [0.5, 1.0]
    assert parser().parse_args([]).frontier is None
    with pytest.raises(UserError, match="give KL targets, each once"):
        choose(frontier=[1.0, 1.0])
    with pytest.raises(UserError, match="give one of --grid"):
        choose(frontier=[1.0], grid={"risk.alpha": [0.2]})


def test_chosen_methods_are_the_only_ones_that_a_cell_trains() -> None:
    choice = choose(grid={"kl.target": [1.0]}, methods=["rlhf", "mean_fit"])
    (cell,) = make_cells(choice.points, choice.common)
    assert (list(cell.params.methods.ppo), list(cell.params.methods.fit)) == (["rlhf"], ["mean_fit"])
    assert _changes("methods.ppo", choice.common["methods.ppo"]) == ["~methods.ppo.ra_rlhf", "~methods.ppo.cvar_rlhf"]
    assert _changes("kl.stop_above", None) == ["kl.stop_above=null"]
    with pytest.raises(UserError, match="ppo is no method of params.yaml; it has rlhf, ra_rlhf"):
        chosen_methods(["ppo"])


def test_the_explanations_are_a_grid_and_rlhf_at_fixed_coefficients() -> None:
    choice = choose(paper="explanations", seeds=[1])
    cells = make_cells(choice.points, choice.common, choice.methods)
    assert len(cells) == 18 and len({cell.name for cell in cells}) == 18
    grid, fixed, last = cells[:12], cells[12:17], cells[17]
    assert {(c.params.risk.ranking, c.params.kl.average, c.params.risk.dropped) for c in grid} == {
        (ranking, average, dropped)
        for ranking in ("episode_return", "random", "value")
        for average in ("all", "kept_over_batch")
        for dropped in ("free", "pay_kl")
    }
    assert all(list(c.params.methods.trained) == ["ra_rlhf"] for c in grid)
    assert all(list(c.params.methods.trained) == ["rlhf"] for c in (*fixed, last))
    assert [c.params.kl.rate for c in fixed] == [0.0] * 5 and last.params.kl.rate > 0
    assert len({c.params.kl.coef for c in fixed}) == 5
    assert {c.params.kl.controller for c in cells} == {"paper"}
    with pytest.raises(UserError, match="leave out --methods"):
        choose(paper="explanations", methods=["rlhf"])


def test_the_explanations_have_a_critic_whatever_the_preset_has() -> None:
    """Ranking by value needs one; the presets on real rows have none."""
    text = (REPOSITORY / "presets" / "imdb-scratch.yaml").read_text(encoding="utf-8")
    assert "baseline: query" in text
    Path("params.yaml").write_text(text.replace("  path: null", "  path: rows"), encoding="utf-8")
    choice = choose(paper="explanations", seeds=[1])
    cells = make_cells(choice.points, choice.common, choice.methods)
    assert {(cell.params.ppo.baseline, cell.params.ppo.responses) for cell in cells} == {("critic", 1)}
