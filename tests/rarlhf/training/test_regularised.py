"""Regularised fine-tuning: the penalty by hand, which rows and tokens have it, rounds, and whole trainings."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rarlhf.config.baselines import RegularisedParams, SupervisedParams, with_head
from rarlhf.config.counts import learning_rounds
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.rows import Row
from rarlhf.models.backbone import load_trainable
from rarlhf.models.files import is_adapter
from rarlhf.models.head import head_inputs
from rarlhf.models.policy import Sampling, logits_of
from rarlhf.system.files import write_jsonl
from rarlhf.system.machine import Machine
from rarlhf.training.regularised import divergence, related_rows
from rarlhf.training.rounds import Rounds
from rarlhf.training.supervised import LossCurve, Seat
from rarlhf.training.tuned import Places, train_tuned
from tests.rarlhf.small import Keeping, changed, letters

CPU = torch.device("cpu")
HEAD = {"layers": 1, "heads": 2, "batch_size": 16, "micro_batch_size": 8, "epochs": 2, "lr": 0.01, "quantile": 0.5}
SETTINGS: dict[str, Any] = {
    "penalty": 2.0,
    "rounds": 2,
    "lag": 0,
    "target": "current",
    "prompts": 4,
    "samples": 4,
    "related": "all",
}
SFT = {
    "sft.tokens": 16,
    "sft.epochs": 1,
    "sft.batch_size": 4,
    "sft.micro_batch_size": 2,
    "sft.lr": 0.01,
    "ppo.max_new_tokens": 5,
    "prompts.tokens": 3,
    "plan.batch_size": 8,
}
WANTED = ["we liked the film .", "we saw the music .", "we liked the music ."]
UNWANTED = ["we regret the old plot .", "the weak end .", "we regret the film ."]
ROWS = [Row(text, label) for texts, label in ((WANTED, 1), (UNWANTED, 0)) for text in texts] * 4


class World(NamedTuple):
    """A base model, its rows and prompts on disk."""

    base: Path
    raw: Path
    prompts: Path
    params: Params
    machine: Machine

    def settings(self, head: Mapping[str, Any] | None = None, **values: Any) -> RegularisedParams:
        section = self.params.tuning.regularised.model_copy(update=SETTINGS | values)
        return with_head(section.model_copy(update={"head": HEAD | dict(head or {})}), self.params.head)

    def train(self, out: Path, settings: Any, recorder: Any = None, seed: int = 1, score: Any = letters) -> LossCurve:
        places = Places(self.base, self.base, self.raw, self.prompts, out)
        return train_tuned(settings, places, score, self.params, self.machine, recorder or Keeping(), seed)

    def bytes(self, out: Path, settings: Any, seed: int = 1) -> bytes:
        self.train(out, settings, seed=seed)
        name = "adapter_model.safetensors" if is_adapter(out) else "model.safetensors"
        return (out / name).read_bytes()


def written(rows: Sequence[Row], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "train.jsonl", [row.record() for row in rows])
    return folder


@pytest.fixture
def world(
    lm_folder: Path, tokenizer: PreTrainedTokenizerBase, params: Params, machine: Machine, tmp_path: Path
) -> World:
    queries = [
        {"prompt_id": i, "prompt": text, "prompt_score": 0.0, "label": 1, "input_ids": tokenizer(text)["input_ids"][:3]}
        for i, text in enumerate(["we saw", "we liked", "the film", "the plot", "music", "weak"])
    ]
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    write_jsonl(prompts / "train.jsonl", queries)
    return World(lm_folder, written(ROWS, tmp_path / "raw"), prompts, changed(params, SFT), machine)


# The penalty.


@pytest.mark.parametrize("target", ["current", "copy"])
def test_the_penalty_of_a_batch_token_by_token(target: str, world: World) -> None:
    """The trainer's sum against one prefix at a time, each through the models alone."""
    from rarlhf.training import regularised

    seen: list[tuple[float, dict[str, Tensor], Any, Any]] = []

    class Watched(regularised.RegularisedTrainer):
        def penalty(self, states: Tensor, tokens: Tensor, mask: Tensor, related: Tensor) -> Tensor:
            value = super().penalty(states, tokens, mask, related)
            if self.state.global_step == 5 and not seen:  # in the second round, where model and copy differ
                batch = {"tokens": tokens, "mask": mask, "related": related}
                seen.append((value.item(), batch, self.guide, deepcopy(self.lm)))
            return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regularised, "RegularisedTrainer", Watched)
        world.train(world.base.parent / "out", world.settings({"epochs": 20}, target=target))
    (value, batch, guide, lm), total = seen[0], 0.0
    with torch.no_grad(), guide.policy() as frozen:
        for tokens, mask, related in zip(*batch.values(), strict=True):
            row = tokens[: int(mask.sum())]
            for size in range(3, min(len(row), guide.last + 2)) if related else []:
                prefix = row[:size].unsqueeze(0)
                states = frozen.transformer(prefix).last_hidden_state
                worth = guide.head(inputs_embeds=head_inputs(frozen, states, prefix)).logits[0, -1:]
                own, copied = (logits_of(of, of.base_model(prefix).last_hidden_state)[0, -1:] for of in (lm, frozen))
                total += divergence(own, worth, copied if target == "copy" else None).item()
    assert batch["related"].all()
    assert value == pytest.approx(2.0 * total, rel=1e-4)
    assert guide.last == 3 + 5 - 2


# Rows.


def length(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text)) for text in texts])


def test_rows_that_are_related(world: World, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = world.params.prompts

    def of(rows: Sequence[Row], **values: Any) -> list[bool]:
        return related_rows(rows, world.settings(**values), length, tokenizer, prompts)

    rows = ROWS[:6]
    assert of(rows) == [True] * 6
    assert of(rows, related="label") == [False] * 3 + [True] * 3
    starts = [len(tokenizer.decode(tokenizer(row.text)["input_ids"][:3])) for row in rows]
    lowest = sorted(starts)[1]  # ceil(0.2 * 6) = 2 rows, and those that score the same
    assert of(rows, related="prompt", related_quantile=0.2) == [start <= lowest for start in starts]
    assert of(rows, related="prompt", related_quantile=1.0) == [True] * 6
    own = [Row("x" * 30, 0, prompt="a"), Row("x", 1, prompt="a" * 9)]
    assert of(own, related="prompt", related_quantile=0.5) == [True, False]  # a row's own prompt, where it has one


@pytest.mark.parametrize("related", ["all", "prompt", "label"])
def test_rows_without_an_unwanted_one_are_refused(related: str, world: World, tmp_path: Path) -> None:
    good = world._replace(raw=written([Row(text, 1) for text in WANTED], tmp_path / "good"))
    message = "tuning.regularised: none of 3 training rows is of the unwanted class, so there is nothing to keep out; "
    with pytest.raises(UserError, match=message):
        good.train(tmp_path / "out", good.settings(related=related))


# Whole trainings.

PLAIN = SupervisedParams(texts="all", quantile=0.0)


def test_without_a_penalty_it_is_plain_fine_tuning_bit_for_bit(world: World, tmp_path: Path) -> None:
    plain = world.bytes(tmp_path / "plain", PLAIN)
    assert world.bytes(tmp_path / "nothing", world.settings(penalty=0.0)) == plain
    # Answers are drawn and heads trained, and a penalty too small for float32 changes nothing.
    keeping = Keeping()
    world.train(tmp_path / "least", world.settings(penalty=1e-30), keeping)
    assert (tmp_path / "least" / "model.safetensors").read_bytes() == plain
    assert len([row for _, row in keeping.rows if "regularised/score_mean" in row]) == 2
    assert world.bytes(tmp_path / "some", world.settings()) != plain


def test_in_reduced_precision_it_leaves_the_training_alone_too(world: World, tmp_path: Path) -> None:
    """The head is trained in another precision than the model, which accelerate keeps in one place for both."""
    reduced = world._replace(machine=Machine(CPU, torch.bfloat16))
    plain = reduced.bytes(tmp_path / "plain", PLAIN)
    assert reduced.bytes(tmp_path / "least", reduced.settings(penalty=1e-30)) == plain
    assert reduced.bytes(tmp_path / "some", reduced.settings(target="copy")) != plain
    assert plain != world.bytes(tmp_path / "full", PLAIN)


def test_a_training_gives_the_same_bytes_twice_and_others_for_another_seed(world: World, tmp_path: Path) -> None:
    first, same = (world.bytes(tmp_path / name, world.settings()) for name in "ab")
    assert first == same
    assert world.bytes(tmp_path / "c", world.settings(), seed=2) != first


def test_adaptive_with_all_rows_is_not_adaptive(world: World, tmp_path: Path) -> None:
    everything = world.bytes(tmp_path / "all", world.settings())
    assert world.bytes(tmp_path / "prompt", world.settings(related="prompt", related_quantile=1.0)) == everything
    assert world.bytes(tmp_path / "some", world.settings(related="prompt", related_quantile=0.5)) != everything


@pytest.mark.parametrize("target", ["current", "copy"])
def test_a_penalty_lowers_the_divergence(target: str, world: World, tmp_path: Path) -> None:
    """The mean KL to q is lower at the end than where the penalty is too small to count."""
    ends, head = [], {"epochs": 20}
    longer = world._replace(params=changed(world.params, {"sft.epochs": 5}))
    for penalty in (1e-30, 20.0):
        keeping = Keeping()
        settings = longer.settings(head, penalty=penalty, rounds=1, samples=16, target=target)
        longer.train(tmp_path / str(penalty), settings, keeping)
        ends.append([row["train/constraint_kl"] for _, row in keeping.rows if "train/constraint_kl" in row][-1])
    assert 0 < ends[1] < 0.7 * ends[0]


# Rounds.


def rounds_of(world: World, **values: Any) -> tuple[Rounds, Keeping]:
    start, keeping = load_trainable(world.base, world.params.model, 1, CPU), Keeping()
    queries = [
        {"prompt_id": i, "prompt": "we", "prompt_score": 0.0, "label": 1, "input_ids": [5 + i, 7]} for i in range(6)
    ]
    seat = Seat(world.machine, keeping, 1)
    return Rounds(world.settings(**values), start, queries, letters, world.params, seat), keeping  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lag", "count", "learnt", "used"),
    [
        (0, 1, [1], [1]),
        (1, 1, [1], [1]),
        (0, 3, [1, 2, 3], [1, 2, 3]),
        (1, 2, [1], [1, 1]),
        (1, 4, [1, 2, 3], [1, 1, 2, 3]),
    ],
)
def test_which_rounds_learn_and_which_head_they_use(
    lag: int, count: int, learnt: list[int], used: list[int], world: World
) -> None:
    rounds, keeping = rounds_of(world, lag=lag, rounds=count)
    assert learning_rounds(rounds.settings) == learnt
    assert [rounds.begin(number, number - 1).round for number in range(1, count + 1)] == used
    assert [step + 1 for step, row in keeping.rows if "regularised/head_loss" in row] == learnt


def test_steps_are_divided_in_equal_parts(world: World) -> None:
    rounds, _ = rounds_of(world, rounds=3)
    assert rounds.first_steps(3) == [0, 1, 2]
    assert rounds.first_steps(10) == [0, 3, 6]
    with pytest.raises(UserError, match="tuning.regularised.rounds = 3: the training has 2 optimiser steps; lower it"):
        rounds.first_steps(2)


def halves(world: World, out: Path, **values: Any) -> list[dict[str, Any]]:
    """The weights of the head that each round uses, and those of the model at the round's end."""
    from rarlhf.training import regularised

    seen: list[dict[str, Any]] = []

    class Watched(regularised.RegularisedTrainer):
        def begin(self, number: int) -> None:
            before = {name: value.clone() for name, value in self.lm.state_dict().items()}
            super().begin(number)
            assert self.guide is not None
            with self.guide.policy() as lm:
                states = lm.base_model(torch.tensor([[5, 6, 7]])).last_hidden_state
            head = {name: value.clone() for name, value in self.guide.head.state_dict().items()}
            seen.append({"before": before, "head": head, "round": self.guide.round, "states": states})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regularised, "RegularisedTrainer", Watched)
        world.train(out, world.settings(**values))
    end = AutoModelForCausalLM.from_pretrained(out).state_dict()
    return [*seen, {"before": end}]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() & other.keys())


def test_parallel_is_sequential_with_a_lag(world: World, tmp_path: Path) -> None:
    sequential, parallel = (halves(world, tmp_path / str(lag), lag=lag) for lag in (0, 1))
    assert same(sequential[0]["head"], parallel[0]["head"])
    assert same(sequential[1]["before"], parallel[1]["before"])  # after the first round
    assert same(parallel[1]["head"], parallel[0]["head"])  # R_1 again, on the states of the first round's model
    assert torch.equal(parallel[1]["states"], parallel[0]["states"])
    assert not same(sequential[1]["head"], sequential[0]["head"])
    assert not torch.equal(sequential[1]["states"], sequential[0]["states"])
    assert not same(sequential[2]["before"], parallel[2]["before"])
    assert [row["round"] for row in parallel[:2]] == [1, 1]


def test_one_round_is_the_same_in_parallel(world: World, tmp_path: Path) -> None:
    one, other = (world.bytes(tmp_path / str(lag), world.settings(rounds=1, lag=lag)) for lag in (0, 1))
    assert one == other


def test_the_threshold_is_the_first_round_s(world: World) -> None:
    rounds, _ = rounds_of(world, rounds=2)
    rounds.begin(1, 0)
    assert rounds.threshold is not None
    threshold = rounds.threshold
    with torch.no_grad():  # the model now ends every answer at once, so that all scores are lower
        rounds.start.lm.transformer.ln_f.bias.mul_(50.0)
    with pytest.raises(
        UserError, match=r"tuning.regularised, round 2: head.quantile = 0.5: all 16 answers have the lab"
    ):
        rounds.begin(2, 3)
    assert rounds.threshold == threshold


def test_too_few_prompts_and_too_few_steps_are_one_line(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tuning.regularised.prompts = 7: there are 6 training prompts; lower it"):
        world.train(tmp_path / "a", world.settings(prompts=7))
    with pytest.raises(UserError, match=r"tuning.regularised.rounds = 9: the training has 6 optimiser steps; lower it"):
        world.train(tmp_path / "b", world.settings(rounds=9))
    none = world._replace(params=changed(world.params, {"sft.epochs": 0.0}))
    with pytest.raises(UserError, match="tuning.regularised: sft.epochs is 0"):
        none.train(tmp_path / "c", none.settings())


def test_soft_labels_of_a_plan_that_divides_nothing_are_refused(world: World, tmp_path: Path) -> None:
    head = {"labels": "soft", "alpha": 0.5, "eta": -100.0, "kl_coef": 1.0}
    message = (
        r"tuning.regularised, round 1: head.eta = -100, .*: all 16 answers have the label 1, so a head learns noth"
    )
    with pytest.raises(UserError, match=message):
        world.train(tmp_path / "a", world.settings(head=head))
    world.train(tmp_path / "b", world.settings(head=head | {"eta": 20.0, "kl_coef": 10.0}))


# Other models.


@pytest.mark.parametrize("lag", [0, 1])
def test_an_adapter_is_trained_and_its_copies_leave_it_alone(lag: int, world: World, tmp_path: Path) -> None:
    """With dropout, which draws from the global generators in every step."""
    model = world.params.model
    lora = model.model_copy(update={"adapter": "lora", "lora": model.lora.model_copy(update={"r": 2, "dropout": 0.1})})
    adapted = world._replace(params=world.params.model_copy(update={"model": lora}))
    plain = adapted.bytes(tmp_path / "plain", PLAIN)
    assert adapted.bytes(tmp_path / "least", adapted.settings(penalty=1e-30, rounds=3, lag=lag)) == plain
    first, again = (adapted.bytes(tmp_path / name, adapted.settings(rounds=3, lag=lag)) for name in "ab")
    assert first == again != plain


def test_a_copy_of_an_adapter_stays_as_it_was(world: World) -> None:
    model = world.params.model
    start = load_trainable(world.base, model.model_copy(update={"adapter": "lora"}), 1, CPU)
    tokens = torch.tensor([[5, 6, 7, 8]])

    def logits(lm: Any) -> Tensor:
        return logits_of(lm, lm.base_model(input_ids=tokens).last_hidden_state).detach()

    def learning() -> list[str]:
        return [name for name, parameter in start.lm.named_parameters() if parameter.requires_grad]

    trained = [parameter for parameter in start.lm.parameters() if parameter.requires_grad]
    names = learning()
    first, bare = start.snapshot("round_1"), logits(start.lm)
    assert learning() == names
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.3)
    second, changed_ = start.snapshot("round_0"), logits(start.lm)
    start.lm.train()
    with first() as lm:
        assert torch.equal(logits(lm), bare)
        assert not lm.training
    with second() as lm:
        assert torch.equal(logits(lm), changed_)
    assert start.lm.training
    assert torch.equal(logits(start.lm), changed_)
    assert not torch.equal(bare, changed_)
    assert learning() == names
    replaced = start.snapshot("round_1")
    with replaced() as lm:
        assert torch.equal(logits(lm), changed_)


def test_drawing_at_another_temperature_penalises_that_distribution(world: World, tmp_path: Path) -> None:
    warm = world._replace(params=changed(world.params, {"ppo.temperature": 0.7, "ppo.min_new_tokens": 2}))
    assert Sampling(0.7, 2, 5, 0).shape(torch.ones(3, 4), first=2)[0, 0] == pytest.approx(1 / 0.7)
    assert warm.bytes(tmp_path / "warm", warm.settings()) != world.bytes(tmp_path / "one", world.settings())
