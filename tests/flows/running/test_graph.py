from pathlib import Path

import pytest

from flows.running.graph import read_graph
from rarlhf.config.errors import UserError

WHOLE = {"first": [], "twin@1": ["first"], "twin@2": ["first"], "good": ["twin@1"], "last": ["twin@2"]}


def test_the_whole_graph_is_that_of_dvc_yaml_in_order(toy: Path) -> None:
    graph = read_graph()
    assert graph == WHOLE
    places = {name: place for place, name in enumerate(graph)}
    assert all(places[before] < places[name] for name, upstream in graph.items() for before in upstream)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["first"], {"first"}),
        (["good"], {"first", "twin@1", "good"}),
        (["twin"], {"first", "twin@1", "twin@2"}),
        (["twin@2", "good"], {"first", "twin@1", "twin@2", "good"}),
    ],
)
def test_targets_bring_what_they_need(targets: list[str], names: set[str], toy: Path) -> None:
    assert set(read_graph(targets)) == names


def test_a_methods_results_come_before_the_next_methods_training(toy: Path) -> None:
    """And of two stages that another waits for, first the one at the end of the longer chain."""
    with (toy / "dvc.yaml").open("a") as stream:
        for name, needs in (("aside", ["a"]), ("report", ["aside", "good", "last"]), ("early", [])):
            deps = [f"data/{need}.txt" for need in needs]
            stream.write(f"  {name}:\n    cmd: 'true'\n    deps: {deps}\n    outs: [data/{name}.txt]\n")
    assert list(read_graph()) == ["first", "twin@1", "good", "twin@2", "last", "aside", "report", "early"]


def test_a_new_stage_in_dvc_yaml_is_enough(toy: Path) -> None:
    with (toy / "dvc.yaml").open("a") as stream:
        stream.write("  more:\n    cmd: 'true'\n    deps: [data/good.txt]\n")
    assert read_graph() == WHOLE | {"more": ["good"]}


def test_an_unknown_target_and_a_broken_file_are_said(toy: Path) -> None:
    with pytest.raises(UserError, match="dvc.yaml has no stage nosuch; it has first, good, last, twin@1, twin@2"):
        read_graph(["nosuch"])
    (toy / "dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match="DVC cannot read the pipeline"):
        read_graph()
