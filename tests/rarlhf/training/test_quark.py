"""Quark: the loss by hand, the pool, added tokens, whole trainings, and what they leave in a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.baselines import QuarkParams
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.prompts import Query
from rarlhf.decoding.samples import Samples
from rarlhf.decoding.writing import Choices, open_model, write
from rarlhf.evaluation.perplexity import reference_perplexity
from rarlhf.models.backbone import WholeModel, load_trainable
from rarlhf.models.policy import Sampling, logits_of, response_states
from rarlhf.models.way import WAY, Way, own_way
from rarlhf.system.files import write_jsonl
from rarlhf.system.machine import Machine
from rarlhf.training.quark import TOKEN, Places, Pool, Quark, add_tokens, loss_terms, quantiles_of, train_quark
from rarlhf.training.supervised import LossCurve, Seat
from tests.rarlhf.small import Keeping, changed, letters

PLAIN = Sampling(1.0, 0, 5, 0)
PROMPTS = ("we saw", "we liked", "we", "the film", "the plot", "music")
CPU = torch.device("cpu")
SETTINGS = {
    "rounds": 2,
    "prompts": 12,
    "steps": 3,
    "quantiles": 3,
    "batch_size": 8,
    "micro_batch_size": 4,
    "lr": 0.003,
    "warmup": 0.2,
    "kl_coef": 0.05,
    "entropy_coef": 0.06,
}


def settings(params: Params, **values: object) -> QuarkParams:
    return params.tuning.quark.model_copy(update=SETTINGS | values)


@pytest.fixture
def small(params: Params) -> Params:
    return changed(params, {"ppo.max_new_tokens": 5, "plan.batch_size": 64})


@pytest.fixture
def queries(tokenizer: PreTrainedTokenizerBase) -> list[Query]:
    fields = {"prompt_score": 0.0, "label": 1}
    texts = PROMPTS * 3
    return [
        {"prompt_id": i, "prompt": text, "input_ids": tokenizer(text)["input_ids"], **fields}  # type: ignore[misc]
        for i, text in enumerate(texts)
    ]


class World(NamedTuple):
    """A start and its queries."""

    folder: Path
    queries: list[Query]
    params: Params
    machine: Machine

    def quark(self, seed: int = 1, **values: object) -> Quark:
        start = load_trainable(self.folder, self.params.model, seed, CPU)
        own = settings(self.params, **values)
        return Quark(own, start, self.queries, letters, self.params, Seat(self.machine, Keeping(), seed))

    def train(self, out: Path, seed: int = 1, **values: object) -> LossCurve:
        prompts = out.parent / "prompts"
        prompts.mkdir(exist_ok=True)
        write_jsonl(prompts / "train.jsonl", self.queries)
        places, seat = Places(self.folder, prompts, out), Seat(self.machine, Keeping(), seed)
        return train_quark(settings(self.params, **values), places, letters, self.params, seat)


@pytest.fixture
def world(lm_folder: Path, queries: list[Query], small: Params, machine: Machine) -> World:
    return World(lm_folder, queries, small, machine)


def one_answer(queries: Sequence[Query], scores: Sequence[float]) -> Samples:
    """An answer of two tokens to each query."""
    count = len(scores)
    responses = torch.tensor([[[4 + i, 0]] for i in range(count)], dtype=torch.int32)
    return Samples(responses, torch.full((count, 1), 2).int(), torch.tensor(scores).unsqueeze(1), list(queries[:count]))


# The loss.


def gradients(lm: GPT2LMHeadModel) -> list[Tensor]:
    found = [weight.grad.clone() for weight in lm.parameters() if weight.grad is not None]
    lm.zero_grad(set_to_none=True)
    return found


def test_one_quantile_without_coefficients_is_plain_likelihood(world: World) -> None:
    quark = world.quark(quantiles=1, kl_coef=0.0, entropy_coef=0.0)
    quark.draw(1)
    rows, lm = torch.tensor([0, 3, 5, 7]), quark.start.lm
    for part in rows.split(3):  # micro-batches
        quark.backward(part, int(quark.pool.lengths[rows].sum()))
    ours = gradients(lm)
    losses = []
    for row in rows.tolist():  # one text at a time, by transformers' own forward pass
        length = int(quark.pool.lengths[row])
        answer = quark.pool.responses[row, :length].tolist()
        text = torch.tensor([[quark.tokens[0], *quark.pool.queries[row], *answer]])
        logits = lm(text).logits[0, -length - 1 : -1]
        losses.append(
            torch.nn.functional.cross_entropy(logits[:, : quark.tokens[0]], text[0, -length:], reduction="none")
        )
    torch.cat(losses).mean().backward()
    wanted = gradients(lm)
    assert len(ours) == len(wanted)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("key", "part", "sign"), [("kl_coef", 1, 1.0), ("entropy_coef", 2, -1.0)])
def test_a_coefficient_adds_its_part_of_the_gradient(key: str, part: int, sign: float, world: World) -> None:
    """The gradient is linear in the coefficient; the slope is the gradient of that part alone."""
    found = []
    for value in (0.0, 0.5):
        quark = world.quark(**{"kl_coef": 0.0, "entropy_coef": 0.0} | {key: value})
        quark.draw(1)
        rows, lm = torch.arange(6), quark.start.lm
        quark.backward(rows, 1)
        found.append(gradients(lm))
    conditioned, plain = quark.pool.batch(rows, CPU)
    with torch.no_grad(), quark.ref_policy() as reference:
        theirs = logits_of(reference, response_states(reference, plain))
    logits = logits_of(lm, response_states(lm, conditioned))
    terms = loss_terms(logits, theirs, conditioned.responses, quark.sampling, quark.tokens)
    (0.5 * sign * terms[part][conditioned.response_mask].sum()).backward()
    alone = gradients(lm)
    for without, with_it, own in zip(*found, alone, strict=True):
        torch.testing.assert_close(with_it - without, own, atol=2e-4, rtol=1e-3)
    assert max(float(own.abs().max()) for own in alone) > 0.01


# The pool.


def test_quantiles_by_hand() -> None:
    assert quantiles_of(torch.tensor([3.0, 1.0, 2.0, 1.0, 5.0]), 5).tolist() == [3, 0, 2, 1, 4]
    assert quantiles_of(torch.tensor([1.0, 1.0, 1.0, 1.0]), 2).tolist() == [0, 0, 1, 1]  # the first one is lower
    assert quantiles_of(torch.tensor([2.0, 9.0, 2.0, 2.0, 0.0, 9.0]), 3).tolist() == [0, 2, 1, 1, 0, 2]
    assert quantiles_of(torch.arange(7.0), 3).bincount().tolist() == [3, 2, 2]
    assert quantiles_of(torch.tensor([4.0, 2.0]), 5).tolist() == [2, 0]  # fewer answers than quantiles


def test_a_new_round_divides_the_whole_pool(queries: list[Query]) -> None:
    pool = Pool([40, 41], 0)
    pool.add(one_answer(queries, [1.0, 2.0]))
    assert pool.quantiles.tolist() == [0, 1]
    pool.add(one_answer(queries, [5.0, 7.0]))
    assert pool.quantiles.tolist() == [0, 0, 1, 1]
    assert len(pool) == 4


def test_an_answer_stands_behind_its_token_and_its_query(queries: list[Query]) -> None:
    pool = Pool([40, 41], 0)
    pool.add(one_answer(queries, [3.0, 1.0, 2.0]))
    conditioned, plain = pool.batch(torch.tensor([2, 0]), CPU)
    rows = [row[mask].tolist() for row, mask in zip(conditioned.queries, conditioned.query_mask, strict=True)]
    assert rows == [[40, *queries[2]["input_ids"]], [41, *queries[0]["input_ids"]]]
    assert pool.batch(torch.tensor([1]), CPU)[0].queries.tolist() == [[40, *queries[1]["input_ids"]]]
    assert plain.queries[1].tolist() == queries[0]["input_ids"]
    assert plain.responses.tolist() == conditioned.responses.tolist() == [[6, 0], [4, 0]]
    assert conditioned.response_mask.all()


def test_a_pass_takes_every_answer_once(queries: list[Query]) -> None:
    pool = Pool([40], 0)
    pool.add(one_answer(queries, [1.0, 2.0, 3.0]))
    order = pool.order(7, torch.Generator().manual_seed(1)).tolist()
    assert [sorted(order[:3]), sorted(order[3:6]), len(order)] == [[0, 1, 2], [0, 1, 2], 7]


# Added tokens.


def test_embeddings_of_new_tokens_have_the_table_s_mean_and_deviation(
    lm: GPT2LMHeadModel, tokenizer_copy: PreTrainedTokenizerBase
) -> None:
    before = lm.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        lm.get_input_embeddings().weight[:, 0] = 5.0  # a column without spread
    ids = add_tokens(start_of(lm, tokenizer_copy), 100, seed=3)
    table = lm.get_input_embeddings().weight.detach()
    assert (
        ids
        == list(range(len(before), len(before) + 100))
        == tokenizer_copy.convert_tokens_to_ids([TOKEN.format(k) for k in range(1, 101)])
    )
    assert torch.equal(table[: len(before), 1:], before[:, 1:])
    assert (table[ids, 0] == 5.0).all()
    deviations = (table[ids, 1:] - before[:, 1:].mean(dim=0)) / before[:, 1:].std(dim=0, correction=0)
    assert float(deviations.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(deviations.std()) == pytest.approx(1.0, abs=0.1)


def test_rows_to_spare_are_used_and_a_head_of_its_own_is_0(
    lm: GPT2LMHeadModel, tokenizer_copy: PreTrainedTokenizerBase
) -> None:
    size = len(tokenizer_copy)
    lm.resize_token_embeddings(size + 5)
    lm.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.detach().clone())
    assert add_tokens(start_of(lm, tokenizer_copy), 3, seed=3) == [size, size + 1, size + 2]
    assert lm.get_input_embeddings().weight.shape[0] == size + 5
    assert (lm.lm_head.weight[size : size + 3] == 0).all()
    assert (lm.lm_head.weight[:size] != 0).any()


def start_of(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> WholeModel:
    """A whole model to train, from memory."""
    start = WholeModel.__new__(WholeModel)
    start.lm, start.tokenizer = lm, tokenizer
    return start


@pytest.fixture
def tokenizer_copy(lm_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(lm_folder)


def test_the_reference_stays_as_it_was(world: World) -> None:
    quark, tokens = world.quark(), torch.tensor([[4, 5, 6]])
    before = AutoModelForCausalLM.from_pretrained(world.folder)(tokens).logits
    quark.rounds()
    with quark.ref_policy() as lm:
        assert torch.equal(lm(tokens).logits, before)


# Whole trainings.


def test_the_same_seed_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    curves = [world.train(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"]
    assert files[0] == files[1]
    assert curves[0] == curves[1]
    assert files[0]["model.safetensors"] != files[2]["model.safetensors"]


def test_training_raises_the_score_and_the_tokens_mean_what_they_say(world: World, tmp_path: Path) -> None:
    """Two tokens after one prompt, scored by their letters; the same model behind each token."""
    short = changed(world.params, {"ppo.max_new_tokens": 2})
    world = world._replace(queries=[world.queries[0]] * 100, params=short)
    quark = world.quark(rounds=4, prompts=100, steps=30, batch_size=50, micro_batch_size=50, lr=0.01)
    curve = quark.rounds()
    recorded = [row for _, row in quark.recorder.rows if "quark/score_mean" in row]  # type: ignore[attr-defined]
    means = [row["quark/score_mean"] for row in recorded]
    assert means[-1] > means[0] + 0.3
    assert recorded[0]["quark/kl"] == 0
    assert recorded[-1]["quark/kl"] > 0.5
    assert [row["quark/scored"] for row in recorded] == [100, 200, 300, 400]
    assert curve[-1]["nll"] < curve[0]["nll"]
    quark.save(tmp_path / "m")
    model = open_model(tmp_path / "m", CPU)
    lowest, middle, best = (
        float(
            letters(
                [one.text for one in write(model._replace(way=way), ["we saw"], Choices(200, 2, 1.0, 1, 200))]
            ).mean()
        )
        for way in (Way([token], model.way.never) for token in model.way.never)
    )
    assert lowest < middle - 0.1 < best - 0.3


def test_the_rate_rises_and_falls_to_0_and_the_curve_has_every_part(world: World, tmp_path: Path) -> None:
    curve = world.train(tmp_path / "m", rounds=2, steps=5, warmup=0.4, lr=0.004)
    rates = [0, 1 / 4, 2 / 4, 3 / 4, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [row["lr"] for row in curve] == pytest.approx([0.004 * rate for rate in rates])
    assert [row["round"] for row in curve] == [1] * 5 + [2] * 5
    for row in curve:
        assert row["loss"] == pytest.approx(row["nll"] + 0.05 * row["kl"] - 0.06 * row["entropy"])


# What a folder holds.


def test_plain_transformers_loads_it_and_draws_no_added_token(world: World, tmp_path: Path) -> None:
    world.train(tmp_path / "m")
    lm, tokenizer = (kind.from_pretrained(tmp_path / "m") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer.convert_tokens_to_ids([TOKEN.format(k) for k in (1, 2, 3)])
    assert lm.generation_config.suppress_tokens == ids
    with torch.no_grad():  # a model that wants to draw them
        lm.get_output_embeddings().weight[ids] = 10.0 * lm.get_output_embeddings().weight[5]
    asked = tokenizer("<|quark_3|>we saw", return_tensors="pt")
    assert asked["input_ids"][0, 0] == ids[2]
    drawn = lm.generate(**asked, do_sample=True, max_new_tokens=8, num_return_sequences=20)[
        :, asked["input_ids"].shape[1] :
    ]
    assert not torch.isin(drawn, torch.tensor(ids)).any()


def test_our_own_drawing_needs_no_telling(world: World, tmp_path: Path) -> None:
    world.train(tmp_path / "m")
    way = own_way(tmp_path / "m")
    model = open_model(tmp_path / "m", CPU)
    assert model.way == way == Way([way.never[-1]], way.never)
    choices = Choices(2, 4, 1.0, 1, 16)
    texts = [one.text for one in write(model, ["we saw", "the"], choices)]
    behind = model._replace(way=Way((), way.never))  # the token by hand, in the prompt
    by_hand = [one.text for one in write(behind, ["<|quark_3|>we saw", "<|quark_3|>the"], choices)]
    assert texts == by_hand
    assert own_way(world.folder) == Way()


def test_perplexity_counts_no_added_token(world: World, tmp_path: Path) -> None:
    """A start with added tokens has the start's own perplexity where these are left out."""
    quark = world.quark()
    quark.save(tmp_path / "m")
    texts, never = ["we saw the film", "music"], own_way(tmp_path / "m").never
    values = []
    for folder, left_out in ((world.folder, []), (tmp_path / "m", never), (tmp_path / "m", [])):
        opened = open_model(folder, CPU)
        values.append(reference_perplexity(opened.lm, opened.tokenizer, texts, 2, never=left_out))
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    assert values[2] > values[0] * 1.001


@pytest.mark.parametrize(
    "text", ['{"before": [1]}', '{"before": [1], "never": [-1]}', '{"before": 1, "never": []}', "[]"]
)
def test_a_broken_note_is_refused(text: str, lm_folder: Path) -> None:
    (lm_folder / WAY).write_text(text)
    with pytest.raises(UserError, match="make or copy the folder again"):
        open_model(lm_folder, CPU)


def test_the_note_is_json(world: World, tmp_path: Path) -> None:
    world.quark().save(tmp_path / "m")
    size = len(AutoTokenizer.from_pretrained(world.folder))
    note = json.loads((tmp_path / "m" / WAY).read_text())
    assert note == {"before": [size + 2], "never": [size, size + 1, size + 2]}


# Refusals.


def test_more_prompts_than_there_are_is_refused(world: World) -> None:
    with pytest.raises(UserError, match="prompts = 19: there are 18 training prompts"):
        world.quark(prompts=19)


def test_a_query_without_room_for_the_token_is_refused(world: World) -> None:
    longest = max(len(query["input_ids"]) for query in world.queries)
    fits = world._replace(params=changed(world.params, {"ppo.max_new_tokens": 32 - longest - 1}))
    fits.quark()
    tight = world._replace(params=changed(world.params, {"ppo.max_new_tokens": 32 - longest}))
    with pytest.raises(UserError, match="take 33 tokens and the model reads 32"):
        tight.quark()


def test_a_start_that_is_quark_s_own_is_refused(world: World, tmp_path: Path) -> None:
    world.quark().save(tmp_path / "m")
    with pytest.raises(UserError, match="has the token <.quark_1.> already"):
        world._replace(folder=tmp_path / "m").quark()


def test_a_loss_that_is_no_number_is_refused(world: World) -> None:
    quark = world.quark()
    quark.draw(1)
    with torch.no_grad():
        quark.start.lm.get_input_embeddings().weight[quark.tokens] = torch.inf
    with pytest.raises(UserError, match="lower tuning.quark.lr"):
        quark.fit(1)
