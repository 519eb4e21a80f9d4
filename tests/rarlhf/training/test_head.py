"""The head on a world so small that every answer can be written down, and its loss on numbers worked by hand."""

from itertools import product
from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.baselines import HeadParams
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.prompts import Query
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.samples import Samples
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.episodes import Episodes
from rarlhf.models.head import head_inputs, head_logits, load_head, new_head
from rarlhf.models.loading import save_model
from rarlhf.models.policy import Sampling, episode_states, positions, response_logprobs
from rarlhf.system.machine import Machine
from rarlhf.training.fit import Places
from rarlhf.training.head import head_losses, labels_of, train_head
from tests.rarlhf.small import changed

SAMPLING = Sampling(temperature=1.0, min_new_tokens=0, max_new_tokens=2, end_id=0)


def logit(p: float) -> float:
    return log(p / (1 - p))


def bernoulli(q: float, r: float) -> float:
    return q * log(q / r) + (1 - q) * log((1 - q) / (1 - r))


def test_the_loss_of_two_answers_by_hand() -> None:
    """Three tokens; the first answer has two, the second one and padding."""
    r = torch.tensor([[[0.2, 0.5, 0.9], [0.4, 0.6, 0.7]], [[0.3, 0.8, 0.1], [0.9, 0.9, 0.9]]], dtype=torch.float64)
    p = torch.tensor([[[0.1, 0.8, 0.1], [0.5, 0.25, 0.25]], [[0.4, 0.3, 0.3], [1.0, 0.0, 0.0]]], dtype=torch.float64)
    episodes = Episodes(
        torch.tensor([[1], [2]]),
        torch.ones(2, 1, dtype=torch.bool),
        torch.tensor([[1, 2], [0, 0]]),
        torch.tensor([[True, True], [True, False]]),
    )
    labels = torch.tensor([1.0, 0.25], dtype=torch.float64)
    first, second = -log(0.5) - log(0.7), -0.25 * log(0.3) - 0.75 * log(0.7)
    ahead = 0.5 * 0.4 + 0.25 * 0.6 + 0.25 * 0.7  # .525, which should be R of the first token, .5
    for weight in (0.0, 0.5):
        losses = head_losses(r.logit(), p, episodes, labels, weight)
        assert losses.tolist() == pytest.approx([first + weight * bernoulli(ahead, 0.5), second], rel=1e-9)


def test_the_gradient_of_consistency_flows_into_both_sides() -> None:
    r = torch.tensor([[[0.5, 0.5], [0.2, 0.6]]], dtype=torch.float64)
    logits = r.logit().requires_grad_()
    p = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    episodes = Episodes(*(torch.ones(1, 2, dtype=kind) for kind in (torch.int64, torch.bool) * 2))
    label = torch.tensor([0.5], dtype=torch.float64)
    with_it, without = (
        torch.autograd.grad(head_losses(logits, p, episodes, label, weight).sum(), logits)[0] for weight in (1.0, 0.0)
    )
    gradient = with_it - without
    q = 0.5 * 0.2 + 0.5 * 0.6
    assert gradient[0, 0].tolist() == pytest.approx([0.0, 0.5 - q])  # d KL(q || r) / d logit of r is r - q
    inner = logit(q) - logit(0.5)  # d KL / d q, times d q / d logit = p s (1 - s)
    assert gradient[0, 1].tolist() == pytest.approx([inner * 0.5 * 0.2 * 0.8, inner * 0.5 * 0.6 * 0.4])


def section(params: Params, **changes: object) -> HeadParams:
    return params.head.model_copy(update=changes)


def test_hard_labels_divide_the_scores_at_their_quantile(params: Params) -> None:
    scores = torch.tensor([[3.0, 1.0], [2.0, 4.0], [5.0, 0.0]])
    assert labels_of(scores, section(params, quantile=0.5)).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert labels_of(scores, section(params, quantile=0.2)).tolist() == [[1, 1], [1, 1], [1, 0]]  # floor(.2 x 6) = 1


def test_soft_labels_are_the_acceptance_of_soft_rejection(params: Params) -> None:
    soft = section(params, labels="soft", eta=1.0, alpha=0.5, kl_coef=4.0)
    labels = labels_of(torch.tensor([[2.0, 1.0, -1.0]]), soft)
    assert labels.tolist() == [pytest.approx([1.0, 1.0, 0.36787944])]  # exp(-(1 - -1) / (.5 x 4))


@pytest.mark.parametrize(
    ("changes", "scores", "message"),
    [
        ({"quantile": 0.3}, [[1.0, 1.0], [1.0, 2.0]], r"head.quantile = 0.3: all 4 answers have the label 1, so"),
        (
            {"labels": "soft", "eta": -1.0, "kl_coef": 1.0},
            [[1.0, 2.0]],
            r"head.eta = -1, head.alpha = 0.1, head.kl_coef = 1: all 2 answers have the label 1",
        ),
        (
            {"labels": "soft", "eta": 90.0, "kl_coef": 1.0},
            [[1.0, 2.0]],
            r"all 2 answers have the label [0-9.e-]+, so .* scores are 1 to 2: change it so that it divides them",
        ),
        ({"labels": "soft"}, [[1.0, 2.0]], "head.eta = 'plan': only stage plan knows this number"),
    ],
)
def test_labels_without_a_difference_are_refused(
    params: Params, changes: dict[str, object], scores: list[list[float]], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        labels_of(torch.tensor(scores), section(params, **changes))
    assert "\n" not in str(caught.value)


class World:
    """Two prompts, three tokens and the end of text: every answer of at most two tokens, with its probability."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        shape = {"vocab_size": 4, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
        config = GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
        self.lm = GPT2LMHeadModel(config).eval()
        begun = [first for length in range(2) for first in product((1, 2, 3), repeat=length)]
        self.answers = [*((*first, 0) for first in begun), *product((1, 2, 3), repeat=2)]
        rows = torch.tensor([[*answer, 0][:2] for answer in self.answers])
        lengths = torch.tensor([len(answer) for answer in self.answers])
        self.queries = [query for query in ([1, 2, 3], [3]) for _ in self.answers]
        mask = torch.arange(2) < lengths.unsqueeze(1)
        self.episodes = Episodes(*left_pad(self.queries, 0, torch.device("cpu")), rows.repeat(2, 1), mask.repeat(2, 1))
        with torch.no_grad():
            logprobs = response_logprobs(self.lm, self.episodes, SAMPLING)
        self.p = torch.where(self.episodes.response_mask, logprobs, 0.0).sum(dim=1).double().exp().view(2, -1)
        self.scores = torch.randn(self.p.shape, generator=torch.Generator().manual_seed(5)).double()

    def expected(self, labels: Tensor) -> Tensor:
        """(2 A, 2) E[label | prefix and token] after each token of each answer, by sums over all answers."""
        found = torch.zeros(2, len(self.answers), 2, dtype=torch.float64)
        for i, answer in enumerate(self.answers):
            for t in range(len(answer)):
                same = torch.tensor([other[: t + 1] == answer[: t + 1] for other in self.answers])
                found[:, i, t] = (self.p * same * labels).sum(dim=1) / (self.p * same).sum(dim=1)
        return found.flatten(0, 1)


@pytest.fixture(scope="module")
def world() -> World:
    made = World()
    assert made.p.sum(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)  # these are all answers
    return made


def passed(head: GPT2LMHeadModel, world: World) -> tuple[Tensor, Tensor]:
    """(2 A, 2, 4) logits of R, and the model's next-token probabilities."""
    episodes = world.episodes
    first = episodes.queries.shape[1] - 1
    mask = torch.cat([episodes.query_mask, episodes.response_mask], dim=1)[:, :-1]
    with torch.no_grad():
        states = episode_states(world.lm, episodes)
        probabilities = world.lm.lm_head(states[:, first:]).softmax(dim=-1)
        inputs = head_inputs(world.lm, states, torch.cat([episodes.queries, episodes.responses], dim=1)[:, :-1])
    options = {"attention_mask": mask.long(), "position_ids": positions(mask)}
    return head_logits(head, inputs, first, **options), probabilities


def learnt(world: World, labels: Tensor, settings: HeadParams, steps: int = 500) -> GPT2LMHeadModel:
    """A head that has learnt from all answers, each with its exact probability as its weight."""
    head = new_head(world.lm, settings, 6, seed=1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        losses = head_losses(*passed(head, world), world.episodes, labels.flatten().float(), settings.consistency)
        optimizer.zero_grad()
        (losses * world.p.flatten() / 2).sum().backward()
        optimizer.step()
        schedule.step()
    return head.eval()


@pytest.mark.parametrize(
    "changes",
    [{"consistency": 1.0}, {"consistency": 0.0}, {"labels": "soft", "eta": 0.5, "alpha": 0.5, "kl_coef": 1.0}],
    ids=["hard", "hard without consistency", "soft"],
)
def test_the_head_is_the_exact_expectation_of_the_label(
    world: World, params: Params, changes: dict[str, object]
) -> None:
    settings = section(params, layers=1, heads=2, **changes)
    labels = labels_of(world.scores, settings).double()
    head = learnt(world, labels, settings)
    mask, exact = world.episodes.response_mask, world.expected(labels)
    with torch.no_grad():
        logits, probabilities = passed(head, world)
        found = logits.gather(2, world.episodes.responses.unsqueeze(2)).squeeze(2).sigmoid()
        whole = head_losses(logits, probabilities, world.episodes, labels.flatten().float(), 1.0)
        alone = head_losses(logits, probabilities, world.episodes, labels.flatten().float(), 0.0)
    assert (found - exact)[mask].abs().max() < 0.02
    assert ((whole - alone) * world.p.flatten() / 2).sum() < 1e-3  # nats: both sides agree where R is exact
    assert exact[mask].std() > 0.1


class Told(SilentRecorder):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


SETTINGS = {"layers": 1, "heads": 2, "batch_size": 8, "micro_batch_size": 4, "epochs": 3, "lr": 0.01, "warmup": 0.34}


@pytest.fixture
def samples(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> Samples:
    """Six prompts with four answers each; those that begin with an even token are good."""
    generator = torch.Generator().manual_seed(1)
    queries = [
        Query(prompt_id=i, prompt=text, prompt_score=0.0, label=None, input_ids=tokenizer(text)["input_ids"])
        for i, text in enumerate(["we liked", "we", "we saw the", "we regret", "the film", "a"])
    ]
    responses = torch.randint(1, len(tokenizer), (6, 4, 5), generator=generator, dtype=torch.int32)
    lengths = torch.randint(1, 6, (6, 4), generator=generator, dtype=torch.int32)
    return Samples(responses, lengths, (responses[:, :, 0] % 2 == 0).float(), queries)


def small(params: Params) -> Params:
    return changed(params, {"ppo.max_new_tokens": 5, "prompts.tokens": 8})


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_head_is_trained_and_written_the_same_twice_and_read_by_transformers(
    lm_folder: Path, lm: GPT2LMHeadModel, samples: Samples, params: Params, machine: Machine, tmp_path: Path
) -> None:
    settings, told = section(params, **SETTINGS), Told()

    def trained(name: str, seed: int) -> dict[str, bytes]:
        out = tmp_path / name
        out.mkdir()
        curve = train_head(settings, samples, Places(lm_folder, out), small(params), machine, told, seed)
        assert [row["step"] for row in curve] == list(range(1, 10))  # 24 answers of 8 a step, three times
        assert curve[-1]["loss"] < curve[0]["loss"]
        rising, falling = [0, 1 / 3, 2 / 3, 1], [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
        assert [row["lr"] / 0.01 for row in curve] == pytest.approx(rising + falling)
        return bytes_of(out)

    first, same, other = trained("first", 1), trained("same", 1), trained("other", 2)
    assert first == same
    assert first["model.safetensors"] != other["model.safetensors"]
    assert set(first) == {"config.json", "generation_config.json", "model.safetensors"}
    assert str(tmp_path).encode() not in b"".join(first.values())
    assert told.lines[0] == f"24 answers with labels of mean {float(samples.scores.mean()):.3f}, 9 steps"
    head, plain = load_head(tmp_path / "first", lm), GPT2LMHeadModel.from_pretrained(tmp_path / "first")
    states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(head_logits(head, states), plain(inputs_embeds=states).logits)
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_micro_batches_and_padding_change_nothing(
    lm_folder: Path, samples: Samples, params: Params, machine: Machine, tmp_path: Path
) -> None:
    weights = []
    for size in (8, 2):
        out = tmp_path / str(size)
        out.mkdir()
        settings = section(params, **SETTINGS | {"micro_batch_size": size})
        train_head(settings, samples, Places(lm_folder, out), small(params), machine, SilentRecorder(), 1)
        weights.append(GPT2LMHeadModel.from_pretrained(out).lm_head.weight)
    assert torch.allclose(*weights, atol=2e-4)  # other batches are padded otherwise


def test_a_new_head_starts_near_one_half_at_every_width(params: Params) -> None:
    for width, std in ((16, 0.1), (64, 0.1), (256, 0.02)):
        config = GPT2Config(vocab_size=500, n_embd=width, n_layer=1, n_head=2, n_positions=8)
        inputs = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(1))
        for layers in (0, 2):
            settings = section(params, layers=layers, heads=2, init_std=std)
            logits = head_logits(new_head(GPT2LMHeadModel(config), settings, 8, seed=1), inputs).detach()
            assert logits.shape == (1, 4, 500)
            assert logits.std().item() == pytest.approx(0.16, rel=0.15)
    lm = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="head.heads = 3: it must divide the model's hidden size, which is 16"):
        new_head(lm, section(params, layers=1, heads=3), 8, seed=1)
    lm.set_input_embeddings(torch.nn.Embedding(20, 8))
    with pytest.raises(UserError, match="embeddings and states, and the model's have 8 and 16 numbers"):
        new_head(lm, section(params, layers=1, heads=2), 8, seed=1)


def test_a_head_reads_states_and_embeddings_alike(lm: GPT2LMHeadModel) -> None:
    states = torch.arange(16.0).expand(1, 2, 16) * torch.tensor([1.0, -5.0]).reshape(1, 2, 1)
    inputs = head_inputs(lm, states.bfloat16(), torch.tensor([[4, 5]]))
    line = (torch.arange(16.0) - 7.5) / (85 / 4) ** 0.5  # variance of 0 to 15
    rows = lm.transformer.wte.weight[4:6].detach()
    own = (rows - rows.mean(dim=1, keepdim=True)) / (rows.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs[0].detach(), torch.stack([line, -line]) + own, atol=1e-4, rtol=0)


def test_a_head_learns_what_was_said_and_not_only_what_may_follow(
    lm_folder: Path, lm: GPT2LMHeadModel, samples: Samples, params: Params, machine: Machine, tmp_path: Path
) -> None:
    """The label is in the first token, and the model's states are of no use."""
    with torch.no_grad():
        lm.transformer.ln_f.weight.zero_()
    save_model(lm, AutoTokenizer.from_pretrained(lm_folder), lm_folder)
    (tmp_path / "out").mkdir()
    settings = section(params, **SETTINGS | {"epochs": 60})
    places = Places(lm_folder, tmp_path / "out")
    curve = train_head(settings, samples, places, small(params), machine, SilentRecorder(), 1)
    assert curve[-1]["loss"] < 0.3 * curve[0]["loss"]


def test_a_head_of_another_model_is_refused(lm: GPT2LMHeadModel, params: Params, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=7, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    new_head(GPT2LMHeadModel(config), section(params, layers=1, heads=2), 8, seed=1).save_pretrained(tmp_path)
    message = (
        f"is of a model with 16 states and 7 tokens and the SFT model has 16 states and {lm.config.vocab_size} tok"
    )
    with pytest.raises(UserError, match=message):
        load_head(tmp_path, lm)
    with pytest.raises(UserError, match="methods.heads = '.*none': there is no such folder"):
        load_head(tmp_path / "none", lm)


def test_samples_of_another_model_are_refused(
    lm_folder: Path, samples: Samples, params: Params, machine: Machine, tmp_path: Path
) -> None:
    foreign = samples._replace(responses=samples.responses + 5000)
    with pytest.raises(UserError, match="the SFT model knows"):
        train_head(section(params, **SETTINGS), foreign, Places(lm_folder, tmp_path), small(params), machine, Told(), 1)
