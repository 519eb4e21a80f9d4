"""What a recorder is shown of the episodes; the numbers of a record are tested with the trainer."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.episodes import Episodes
from rarlhf.rl.metrics import SHOWN_EPISODES, is_shown, show_samples
from rarlhf.rl.ppo import PPOTrainer

QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]


class Samples(SilentRecorder):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, object]] = []

    def samples(self, rows: Sequence[Mapping[str, object]]) -> None:
        self.rows += rows


@pytest.mark.parametrize(
    ("last", "shown"),
    [(80, [1, 10, 20, 30, 40, 50, 60, 70, 80]), (20, [1, 3, 5, 8, 10, 13, 15, 18, 20]), (3, [1, 2, 3])],
)
def test_samples_are_shown_about_eight_times(last: int, shown: list[int]) -> None:
    assert [iteration for iteration in range(1, last + 1) if is_shown(iteration, last)] == shown


def test_a_recorder_is_shown_episodes_from_the_worst_to_the_best(make_trainer: Callable[..., PPOTrainer]) -> None:
    trainer = make_trainer(**{"ppo.batch_size": 14, "ppo.mini_batch_size": 14})
    trainer.recorder = recorder = Samples()
    rollout = trainer.collect_rollout(QUERIES, 1)
    trainer.step(rollout, 1)
    scores = [row["score"] for row in recorder.rows]
    assert len(scores) == SHOWN_EPISODES and scores == sorted(scores, key=float)
    assert (scores[0], scores[-1]) == tuple(round(float(x), 4) for x in (rollout.scores.min(), rollout.scores.max()))
    texts = trainer.texts(rollout.episodes)
    assert all(f"{row['prompt']}{row['continuation']}" in texts for row in recorder.rows)
    assert {row["iteration"] for row in recorder.rows} == {1} and all(row["kept"] is True for row in recorder.rows)


def test_a_character_split_between_query_and_response_is_shown_whole(
    make_trainer: Callable[..., PPOTrainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = torch.tensor([tokenizer("café !")["input_ids"]])
    real = torch.ones_like(ids, dtype=torch.bool)
    rollout = make_trainer().rollout(Episodes(ids[:, :4], real[:, :4], ids[:, 4:], real[:, 4:]), torch.zeros(1))
    recorder = Samples()
    show_samples(recorder, 1, rollout, real[:, 0], tokenizer)
    assert [(row["prompt"], row["continuation"]) for row in recorder.rows] == [("caf", "é !")]
