"""The numbers of one iteration, under grouped names: `objective/`, `policy/`, `value/`, `risk/`, `response/`."""

from fractions import Fraction

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rarlhf.data.queries import REPLACEMENT, TextQuery, continuation
from rarlhf.messages.progress import Recorder, SampleRecorder
from rarlhf.models.episodes import real_tokens
from rarlhf.risk.measures.base import Batch, RiskMeasure, Treatment
from rarlhf.risk.schedule import RiskLevel
from rarlhf.risk.tail import cvar, value_at_risk
from rarlhf.rl.losses import masked_mean
from rarlhf.rl.rollout import Rollout, UpdateStats

RECORDED_TAIL = Fraction(1, 10)  # level of the recorded VaR and CVaR: the same for all methods and alphas
SHOWN_TIMES = 8  # over a training, and after its first iteration
SHOWN_EPISODES = 8  # each time
Numbers = dict[str, float]  # by grouped name, as in `risk/kept`


def of_rollout(rollout: Rollout, end_id: int) -> Numbers:
    """What was sampled; responses end by the token `end_id` or at the length limit."""
    mask = rollout.episodes.response_mask
    ended = (rollout.episodes.responses == end_id) & mask
    return {
        "objective/score_mean": float(rollout.scores.mean()),
        "objective/kl": float(rollout.log_ratio.sum(dim=1).mean()),
        "objective/entropy": float(masked_mean(rollout.entropy, mask)),
        "risk/score_cvar": float(cvar(rollout.scores, RECORDED_TAIL)),
        "response/length_mean": float(mask.sum(dim=1).float().mean()),
        "response/terminated": float(ended.any(dim=1).float().mean()),
        "response/empty": float(ended[:, 0].float().mean()),
    }


def of_returns(returns: Tensor) -> Numbers:
    """Of the whole batch's episode returns (B,), KL penalty included."""
    return {
        "objective/return_mean": float(returns.mean()),
        "objective/return_std": float(returns.std()),
        "risk/value_at_risk": float(value_at_risk(returns, RECORDED_TAIL)),
        "risk/cvar": float(cvar(returns, RECORDED_TAIL)),
    }


def of_risk(measure: RiskMeasure, level: RiskLevel, batch: Batch, treated: Treatment) -> Numbers:
    """What the risk measure did at a level of the schedule."""
    return {
        "risk/alpha": float(level.alpha),
        "risk/kept": int(treated.kept.sum()),
        "risk/objective": float(measure.value(batch.values, level)),
    }


def of_baseline(baseline: Tensor, returns: Tensor, mask: Tensor) -> Numbers:
    """How well the critic, or the query's other responses, predicted the value targets `returns`; all (B, T)."""
    return {"value/explained_variance": explained_variance(baseline[mask], returns[mask])}


def of_update(stats: UpdateStats) -> Numbers:
    """Of the PPO epochs."""
    return {
        "policy/loss": stats.policy_loss,
        "policy/clip_fraction": stats.clip_fraction,
        "policy/ratio_max": stats.ratio_max,
        "policy/approx_kl": stats.approx_kl,
        "policy/skipped_steps": stats.skipped,
        "value/loss": stats.value_loss,
    }


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); 0 where the returns do not vary."""
    variance = torch.var(returns)
    return float(1.0 - (returns - values).var() / variance) if variance > 0 else 0.0


def show_samples(
    recorder: Recorder, iteration: int, rollout: Rollout, kept: Tensor, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Gives a recorder that takes samples some episodes of an iteration, from the lowest score to the highest.

    Args:
        recorder: of the training.
        iteration: from 1.
        rollout: the iteration's B episodes.
        kept: (B,) bool, whether an episode was trained on.
        tokenizer: of the policy.
    """
    if not isinstance(recorder, SampleRecorder):
        return
    order = rollout.scores.argsort(stable=True)
    places = torch.linspace(0, len(order) - 1, SHOWN_EPISODES).round().long().unique()
    rows = []
    for index in order[places.to(order.device)].tolist():
        query, query_mask, response, mask = (field[index].tolist() for field in rollout.episodes)
        ids = real_tokens(query, query_mask)
        prompt = TextQuery(tokenizer.decode(ids, skip_special_tokens=True).rstrip(REPLACEMENT), ids)
        text = continuation(prompt, real_tokens(response, mask), tokenizer, chat=False)
        values = {"score": round(float(rollout.scores[index]), 4), "kept": bool(kept[index])}
        rows.append({"iteration": iteration, "prompt": prompt.prompt, "continuation": text, **values})
    recorder.samples(rows)


def is_shown(iteration: int, last: int) -> bool:
    """Whether samples of an iteration are shown: the first one, and `SHOWN_TIMES` at even distances to the `last`."""
    return iteration == 1 or iteration * SHOWN_TIMES // last > (iteration - 1) * SHOWN_TIMES // last
