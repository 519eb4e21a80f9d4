from pathlib import Path

import pytest

from flows.running.request import prepare
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params


def silent(text: str) -> None:
    """For what is said where a test does not ask."""


def test_overrides_are_put_into_params_before_the_graph_is_read(toy: Path) -> None:
    said: list[str] = []
    graph, params = prepare(["good"], {"risk.alpha": 0.25}, "tiny", said.append)
    assert list(graph) == ["first", "twin@1", "good"]
    assert params.risk.alpha == load_params().risk.alpha == 0.25
    assert said == ["params.yaml is already preset tiny"]


def test_a_preset_goes_over_what_a_run_wrote_and_not_over_an_edit(toy: Path) -> None:
    prepare([], {"risk.alpha": 0.25}, None, silent)
    _, params = prepare([], {"risk.rho": 0.5}, "tiny", silent)
    assert (params.risk.alpha, params.risk.rho) == (0.3, 0.5)  # alpha is the preset's again
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# mine\n")
    with pytest.raises(UserError, match=r"params\.yaml was edited"):
        prepare([], {}, "tiny", silent)


@pytest.mark.parametrize(
    ("targets", "overrides", "preset", "match"),
    [
        ([], {"risk.alpha": 3}, None, "risk.alpha"),
        ([], {"risk.alhpa": 0.3}, None, "risk.alhpa is not a key"),
        ([], {"risk.alpha": 0.3, "risk.rho": "x"}, None, "risk.rho"),
        (["nosuch"], {"risk.alpha": 0.3}, None, "no stage nosuch"),
        (["nosuch"], {}, "other", "no stage nosuch"),
        ([], {}, "nosuch", "no preset nosuch"),
    ],
)
def test_a_bad_request_leaves_params_as_they_were(
    targets: list[str], overrides: dict[str, object], preset: str | None, match: str, toy: Path
) -> None:
    text = Path("params.yaml").read_text()
    Path("presets/other.yaml").write_text(text.replace("preset: tiny", "preset: other"))
    with pytest.raises(UserError, match=match):
        prepare(targets, overrides, preset, silent)
    assert Path("params.yaml").read_text() == text
