"""Clusters of the prompt tail: groups that are there are found, and their gains are those of their prompts."""

import numpy as np
import pytest

from rarlhf.evaluation.clusters import cluster, critical_prompts, principal_plane
from tests.rarlhf.evaluation.conftest import MakeTable

TAIL = np.array([True, True, True, True, False])
EMBEDDINGS = np.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.1], [0.0, 1.0], [5.0, 5.0]])  # 0 and 2 alike, 1 and 3


@pytest.fixture
def tables(make_table: MakeTable) -> dict:
    own = [-3.0, -1.0, -2.0, -1.0, 4.0]
    gains = ([1.0, 2.0, 3.0, 4.0, 9.0], [3.0, 2.0, 3.0, 0.0, 9.0])
    return {
        "sft": {seed: make_table([[0.0], [0.0], [0.0], [0.0], [0.0]], own) for seed in (1, 2)},
        "rlhf": {seed: make_table([[x] for x in gain], own) for seed, gain in zip((1, 2), gains, strict=True)},
    }


def test_groups_and_their_gains(tables: dict) -> None:
    found = critical_prompts(tables, TAIL, EMBEDDINGS, 2, 0)
    assert found is not None
    lowest, other = found["clusters"]
    assert (lowest["prompts"], lowest["prompt_score"]) == (2, -2.5)
    assert (other["prompts"], other["prompt_score"]) == (2, -1.0)
    assert sorted(lowest["nearest"]) == [0, 2] and sorted(other["nearest"]) == [1, 3]
    assert list(lowest["gains"]) == ["rlhf"]  # of trained methods alone
    assert lowest["gains"]["rlhf"]["per_seed"] == [2.0, 3.0]
    assert other["gains"]["rlhf"]["per_seed"] == [3.0, 1.0]
    assert [place[2] for place in found["places"]] == [0.0, 1.0, 0.0, 1.0]
    assert found["explained"] == pytest.approx(1.0)  # two dimensions are all there is
    assert critical_prompts(tables, TAIL, EMBEDDINGS, 2, 0) == found


def test_without_sft_there_is_no_gain(tables: dict) -> None:
    found = critical_prompts({"rlhf": tables["rlhf"]}, TAIL, EMBEDDINGS, 2, 0)
    assert found is not None and found["clusters"][0]["gains"] == {}


@pytest.mark.parametrize("count", [0, 1])
def test_no_clusters_are_wanted(count: int, tables: dict) -> None:
    assert critical_prompts(tables, TAIL, EMBEDDINGS, count, 0) is None


def test_there_are_no_more_clusters_than_different_prompts(tables: dict) -> None:
    assert critical_prompts(tables, TAIL, np.ones((5, 2)), 3, 0) is None
    found = critical_prompts(tables, TAIL, np.array([[1.0, 0], [0, 1], [1, 0], [0, 1], [1, 1]]), 5, 0)
    assert found is not None and len(found["clusters"]) == 2


def test_k_means_finds_groups_that_lie_apart() -> None:
    draws = np.random.default_rng(0)
    centres = np.array([[0.0, 0, 9], [0, 9, 0], [9, 0, 0]])
    groups = cluster(np.concatenate([c + draws.normal(size=(20, 3)) for c in centres]), 3, 1)
    assert groups is not None
    assert [len(set(groups[20 * i : 20 * i + 20])) for i in range(3)] == [1, 1, 1]
    assert len(set(groups)) == 3


def test_the_plane_keeps_what_varies_most() -> None:
    places, explained = principal_plane(np.array([[3.0, 0, 0.1], [-3, 0, 0.1], [0, 1, -0.1], [0, -1, -0.1]]))
    assert places == pytest.approx(np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]]), abs=1e-12)
    assert explained == pytest.approx(20 / 20.04)
    one, all_of_it = principal_plane(np.array([[1.0], [2.0]]))
    assert one[:, 1].tolist() == [0.0, 0.0] and all_of_it == 1.0
    assert principal_plane(np.ones((3, 2)))[1] == 1.0
