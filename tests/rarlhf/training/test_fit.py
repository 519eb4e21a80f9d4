"""Plan, then fit: exact optima on enumerated answers, rounds, and what is saved."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.samples import Model, Sampler, Samples
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.backbone import load_trainable
from rarlhf.models.policy import response_logprobs
from rarlhf.models.reference import frozen
from rarlhf.risk.plan import Aim, Answers, planned_weights, solve
from rarlhf.system.machine import Machine
from rarlhf.training.fit import (
    LARGEST_STEP,
    Fit,
    FitTrainer,
    Places,
    Pool,
    Seat,
    WeightedAnswers,
    episodes_of,
    fit_policy,
    kept_answers,
    log_importance,
    step,
    summed,
)
from tests.rarlhf.small import changed, letters

FIT = {
    "fit.rounds": 1,
    "fit.samples": 8,
    "fit.calibrated": False,
    "fit.epochs": 2,
    "fit.batch_size": 16,
    "fit.micro_batch_size": 8,
    "fit.lr": 0.003,
    "plan.batch_size": 64,
    "ppo.max_new_tokens": 5,
    "kl.target": 0.5,
    "risk.measure": "cvar_ru",
    "risk.of": "score",
    "risk.alpha": 0.3,
}
PROMPTS = ("we saw", "we liked", "we", "the film", "the plot", "music")


@pytest.fixture
def small(params: Params) -> Params:
    return changed(params, FIT)


def drawn(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, params: Params, machine: Machine) -> Samples:
    """Eight answers of `lm` to each prompt, twice over."""
    rows = [
        {"prompt_id": i, "prompt": text, "prompt_score": 0.0, "label": 1, "input_ids": tokenizer(text)["input_ids"]}
        for i, text in enumerate(PROMPTS * 2)
    ]
    return Sampler(letters, params, machine)("SFT", Model(frozen(lm), tokenizer), rows, 8, "test")  # type: ignore[arg-type]


@pytest.fixture
def samples(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, small: Params, machine: Machine) -> Samples:
    return drawn(lm, tokenizer, small, machine)


def plan(samples: Samples, params: Params) -> dict[str, float | None]:
    aim = Aim(0.0 if params.risk.measure == "none" else 1.0, params.risk.alpha)
    planned = solve(Answers(samples.scores.double().numpy()), aim, params.kl.target)
    return {"eta": planned.eta, "kl_coef": planned.kl_coef}


def fitted(
    samples: Samples, params: Params, sft: Path, out: Path, machine: Machine, seed: int = 3
) -> list[dict[str, float]]:
    seat = Seat(machine, SilentRecorder(), seed)
    return fit_policy(samples, plan(samples, params), Places(sft, out), letters, params, seat)


# One response token makes a world whose answers can be listed: each entry of the vocabulary is one.


def enumerated(fit: Fit, entries: int) -> tuple[Samples, Tensor]:
    """Every one-token answer to each prompt, and its log-probability (P, V) under the model as it is."""
    prompts = fit.samples.prompts
    responses = torch.arange(entries).repeat(len(prompts), 1).unsqueeze(2).int()
    lengths, scores = torch.ones(responses.shape[:2]).int(), (responses[..., 0] % 7).float()
    listed = Samples(responses, lengths, scores, prompts)
    return listed, logprobs(fit, listed)


@torch.no_grad()
def logprobs(fit: Fit, listed: Samples) -> Tensor:
    shape = listed.scores.shape
    rows = WeightedAnswers(fit.queries, Pool(listed.responses, listed.lengths, np.full(shape, 1 / shape[1])))
    episodes = episodes_of(rows.batch(range(len(rows))), torch.device("cpu"))
    return summed(response_logprobs(fit.start.lm, episodes, fit.sampling), episodes.response_mask).view(shape).double()


def one_token(lm_folder: Path, samples: Samples, params: Params, machine: Machine, **values: object) -> Fit:
    params = changed(params, {"ppo.max_new_tokens": 1} | values)
    start = load_trainable(lm_folder, params.model, 1, machine.device)
    first = samples._replace(responses=samples.responses[:4, :, :1], lengths=torch.ones(4, 8).int())
    first = first._replace(scores=samples.scores[:4], prompts=samples.prompts[:4])
    return Fit(start, first, letters, params, Seat(machine, SilentRecorder(), 1))


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_exact_weights_of_every_answer_make_the_planned_policy(
    mix: float, lm_folder: Path, samples: Samples, small: Params, machine: Machine
) -> None:
    values = {"fit.epochs": 100, "fit.batch_size": 1120, "fit.micro_batch_size": 1120, "fit.lr": 0.02}
    fit = one_token(lm_folder, samples, small, machine, **values)
    listed, start = enumerated(fit, 280)
    answers, aim = Answers(listed.scores.double().numpy(), start.numpy()), Aim(mix, 0.3)
    weights = planned_weights(answers, 5.0, 1.5 if mix == 0 else 4.0, aim)
    fit.fit(Pool(listed.responses, listed.lengths, weights), 1)
    policy, wanted = logprobs(fit, listed), torch.from_numpy(weights)
    off = (wanted * (wanted.log() - policy)).sum(dim=1).mean()
    kl, kl_wanted = ((p.exp() * (p - start)).sum(dim=1).mean() for p in (policy, wanted.log()))
    mean, mean_wanted = ((p * listed.scores).sum(dim=1).mean() for p in (policy.exp(), wanted))
    assert kl_wanted > 0.2
    assert off < 0.01
    assert kl == pytest.approx(kl_wanted.item(), rel=0.1)
    assert mean == pytest.approx(mean_wanted.item(), abs=0.05)


def test_the_reference_s_own_weights_have_no_gradient(
    lm_folder: Path, samples: Samples, small: Params, machine: Machine
) -> None:
    fit = one_token(lm_folder, samples, small, machine)
    listed, start = enumerated(fit, 280)
    planned = planned_weights(Answers(listed.scores.double().numpy(), start.numpy()), 5.0, 4.0, Aim(1.0, 0.3))
    sizes = []
    for weights in (start.exp().numpy(), planned):
        rows = WeightedAnswers(fit.queries, Pool(listed.responses, listed.lengths, weights))
        fit.start.lm.zero_grad()
        loss_of(fit, rows.batch(range(len(rows)))).backward()
        sizes.append(torch.stack([p.grad.norm() for p in fit.start.lm.parameters() if p.grad is not None]).norm())
    assert sizes[0] < 0.01 * sizes[1]  # answers that are left out have 0.1 % of the weight at most


def loss_of(fit: Fit, batch: dict[str, Tensor]) -> Tensor:
    trainer = FitTrainer.__new__(FitTrainer)  # `compute_loss` needs no optimiser and no data
    trainer.lm, trainer.sampling, trainer.machine = fit.start.lm, fit.sampling, fit.machine
    return trainer.compute_loss(fit.start.lm, batch)


def test_the_mean_of_the_batches_losses_is_the_cross_entropy_per_token(
    lm_folder: Path, samples: Samples, small: Params, machine: Machine
) -> None:
    fit = Fit(
        load_trainable(lm_folder, small.model, 1, machine.device),
        samples,
        letters,
        small,
        Seat(machine, SilentRecorder(), 1),
    )
    rows = WeightedAnswers(fit.queries, Pool(samples.responses, samples.lengths, np.full((12, 8), 1 / 8)))
    losses = [loss_of(fit, rows.batch(range(i, i + 8))) for i in range(0, 96, 8)]
    with torch.no_grad():
        episodes = episodes_of(rows.batch(range(96)), torch.device("cpu"))
        nll = -summed(response_logprobs(fit.start.lm, episodes, fit.sampling), episodes.response_mask)
    assert torch.stack(losses).mean().item() == pytest.approx((nll.sum() / samples.lengths.sum()).item(), rel=1e-5)


def test_padding_and_queries_are_not_learned(samples: Samples) -> None:
    queries = left_pad([row["input_ids"] for row in samples.prompts], 0, torch.device("cpu"))
    rows = WeightedAnswers(queries, Pool(samples.responses, samples.lengths, np.full((12, 8), 1 / 8)))
    batch = rows.batch([0, 9, 95])
    lengths = samples.lengths.flatten()[[0, 9, 95]]
    assert batch["response_mask"].sum(dim=1).tolist() == lengths.tolist()
    assert batch["responses"].shape == (3, int(lengths.max()))
    assert batch["queries"][1].tolist() == queries.tokens[1].tolist()


def test_the_lightest_answers_are_left_out() -> None:
    weights = torch.tensor([[0.0004, 0.0005, 0.4, 0.5991], [0.25, 0.25, 0.25, 0.25], [0.0006, 0.0005, 0.9989, 0.0]])
    # first row: .0004 + .0005 <= .001; third: 0 + .0005 <= .001, but with .0006 it is .0011
    assert kept_answers(weights).tolist() == [[False, False, True, True], [True] * 4, [True, False, True, False]]


def test_importance_weights_by_hand() -> None:
    # N 3, M 1: q / pi_ref = (3 + r) / 4 with r = 1, 5, 1 / 3: weights 1, 1 / 2, 6 / 5
    found = np.exp(log_importance(np.log([[1.0, 5.0, 1 / 3]]), 3, 1))
    assert found == pytest.approx(np.array([[1.0, 0.5, 1.2]]))
    assert np.exp(log_importance(np.array([[-1e4]]), 3, 1)) == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("kl", "factor"), [(0.5, 0.5), (0.8, 0.8), (0.0, 1 / LARGEST_STEP), (1.5, 1.5), (9.0, LARGEST_STEP)]
)
def test_beta_moves_by_what_was_missed(kl: float, factor: float) -> None:
    assert step(kl, 1.0) == factor


def test_a_second_round_comes_nearer_to_the_target(
    lm_folder: Path, samples: Samples, small: Params, machine: Machine
) -> None:
    def kl_after(rounds: int) -> float:
        params = changed(small, {"fit.rounds": rounds, "fit.samples": 16})
        start = load_trainable(lm_folder, params.model, 1, machine.device)
        fit = Fit(start, samples, letters, params, Seat(machine, SilentRecorder(), 1))
        curve = fit.rounds(plan(samples, params))
        assert {row["round"] for row in curve} == set(range(1, rounds + 1))
        assert [row["step"] for row in curve] == sorted({row["step"] for row in curve})
        ratios = fit.draw(99).log_ratios
        assert ratios is not None
        return float(ratios.mean())

    once, twice = kl_after(1), kl_after(2)
    assert once < small.kl.target
    assert abs(twice - small.kl.target) < abs(once - small.kl.target)


def test_rounds_end_where_the_policy_is_near_the_target(
    lm_folder: Path, samples: Samples, small: Params, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    params = changed(small, {"fit.rounds": 2})
    start = load_trainable(lm_folder, params.model, 1, machine.device)
    fit = Fit(start, samples, letters, params, Seat(machine, SilentRecorder(), 1))
    fit.draw = lambda number: samples._replace(log_ratios=torch.full(samples.scores.shape, 0.46))  # type: ignore[method-assign]
    assert {row["round"] for row in fit.rounds(plan(samples, params))} == {1}


def test_a_calibrated_fit_is_at_the_target(
    lm_folder: Path, samples: Samples, small: Params, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    params = changed(small, {"fit.calibrated": True, "fit.samples": 64})
    start = load_trainable(lm_folder, params.model, 1, machine.device)
    fit = Fit(start, samples, letters, params, Seat(machine, SilentRecorder(), 1))
    scored = fit.scored
    fit.rounds(plan(samples, params))
    assert fit.scored == scored
    again = fit.answers(fit.measuring, "again", ("other",)).log_ratios
    assert again is not None
    assert float(again.mean()) == pytest.approx(small.kl.target, rel=0.15)


STORED = {
    "none": {},
    "lora": {"model.adapter": "lora"},
    "int8": {"model.adapter": "lora", "model.quantization": "int8", "model.gradient_checkpointing": True},
}


@pytest.mark.parametrize("mode", STORED)
def test_equal_seeds_give_equal_bytes_and_other_seeds_another_order(
    mode: str, samples: Samples, small: Params, lm_folder: Path, machine: Machine, tmp_path: Path
) -> None:
    params = changed(small, STORED[mode] | {"fit.rounds": 2, "fit.calibrated": True})
    seeds = {"a": 3, "b": 3, "c": 4}
    curves = {name: fitted(samples, params, lm_folder, tmp_path / name, machine, seed) for name, seed in seeds.items()}
    file = "model.safetensors" if mode == "none" else "adapter_model.safetensors"
    weights = {name: (tmp_path / name / file).read_bytes() for name in seeds}
    assert curves["a"] == curves["b"] != curves["c"]
    assert weights["a"] == weights["b"] != weights["c"]
    assert list(curves["a"][0]) == ["step", "loss", "lr", "round"]


def test_dropout_is_off(
    samples: Samples, small: Params, lm: GPT2LMHeadModel, lm_folder: Path, machine: Machine, tmp_path: Path
) -> None:
    fitted(samples, small, lm_folder, tmp_path / "a", machine)
    config = (lm_folder / "config.json").read_text(encoding="utf-8")
    assert '"resid_pdrop": 0.0' in config
    (lm_folder / "config.json").write_text(config.replace('pdrop": 0.0', 'pdrop": 0.5'), encoding="utf-8")
    fitted(samples, small, lm_folder, tmp_path / "b", machine)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_foreign_samples_are_refused(
    samples: Samples, small: Params, lm_folder: Path, machine: Machine, tmp_path: Path
) -> None:
    other = samples._replace(responses=samples.responses + 500)
    with pytest.raises(UserError, match=r"the samples hold token \d+, and the SFT model knows 280: they are another's"):
        fitted(other, small, lm_folder, tmp_path / "a", machine)
    with pytest.raises(UserError, match=r"the samples have 11 prompts and answers to 12; `dvc repro samples`"):
        fitted(samples._replace(prompts=samples.prompts[:11]), small, lm_folder, tmp_path / "a", machine)
    with pytest.raises(UserError, match=r"answers of no token, or of more than ppo.max_new_tokens"):
        fitted(samples, changed(small, {"ppo.max_new_tokens": 2}), lm_folder, tmp_path / "a", machine)


def test_weights_that_are_no_numbers_are_refused(
    samples: Samples, small: Params, lm_folder: Path, machine: Machine, tmp_path: Path
) -> None:
    seat = Seat(machine, SilentRecorder(), 1)
    with pytest.raises(UserError, match=r"the plan's weights at beta = 1 are not finite numbers"):
        fit_policy(samples, {"eta": math.nan, "kl_coef": 1.0}, Places(lm_folder, tmp_path / "a"), letters, small, seat)
    assert not (tmp_path / "a").exists()
