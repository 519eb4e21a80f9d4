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
