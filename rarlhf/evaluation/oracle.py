"""The oracle in the evaluation: the latent sentiment of what methods wrote in the small generated world.

There the true value of a text is known (`rarlhf.data.world`), and so is the best that a policy could do at each KL
(`rarlhf.data.frontier`). Letters for shapes: P test prompts, k samples per prompt, R texts that are reviews.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rarlhf.config.methods import is_trained
from rarlhf.data.frontier import FrontierRow, Outcomes, exact_frontier, world_outcomes
from rarlhf.data.world import KINDS, latent_sentiment
from rarlhf.evaluation.generations import BoolArray, FloatArray, Generations, Tables
from rarlhf.evaluation.metrics import cvar
from rarlhf.evaluation.statistics import Spread, over_seeds

ALPHA = 0.10  # level of the CVaR, part of the metrics' names
PROMPT_WORDS = 8  # words of a whole prompt of the world
SFT = "sft"
# What is measured, and the metric that tells it as a share of the exact frontier.
SHARES: Mapping[str, str] = {"oracle_mean": "exact_share_mean", "oracle_cvar_10": "exact_share_cvar_10"}


@dataclass(frozen=True)
class Reached:
    """One model's results by the oracle."""

    kl: float  # nats per response against the SFT model
    values: Mapping[str, float]  # metric -> value; a metric of no review is left out


def measure_by_oracle(tables: Tables, tail: BoolArray) -> dict[str, dict[str, Spread]]:
    """Every method's results by the oracle, over seeds.

    Args:
        tables: generations of every method and seed on prompts of the small world.
        tail: (P,) bool, the prompt tail.

    Returns: method -> metric -> spread. A metric that some seed of a method does not have is left out: those of reviews
        where it wrote none, and the exact shares of models that training starts from, or where prompts are not the
        world's whole prompts.
    """
    reached = {
        method: {seed: Reached(float(table.kl.mean()), oracle_values(table, tail)) for seed, table in by_seed.items()}
        for method, by_seed in tables.items()
    }
    outcomes = outcomes_of(next(iter(next(iter(tables.values())).values())).prompts)
    return {
        method: _spreads([{**of_seed.values, **_shares(reached, method, seed, outcomes)}
                          for seed, of_seed in by_seed.items()])
        for method, by_seed in reached.items()
    }  # fmt: skip


def oracle_values(table: Generations, tail: BoolArray) -> dict[str, float]:
    """The oracle's measures of one model's generations, in logits.

    Args:
        table: P prompts with k samples each.
        tail: (P,) bool, the prompt tail.

    Returns: `oracle_no_review`, the share of texts that are no review of the world (broken off, or other words), which
        have no latent sentiment and are left out of the rest; and where there are reviews `oracle_mean`,
        `oracle_cvar_10` and, where some are of tail prompts, `oracle_prompt_tail`.
    """
    latent = latent_of(table)
    is_review = ~np.isnan(latent)
    values = {"oracle_no_review": float(1 - is_review.mean())}
    if is_review.any():
        values["oracle_mean"] = float(latent[is_review].mean())
        values["oracle_cvar_10"] = float(cvar(latent[is_review], ALPHA))
    if is_review[tail].any():
        values["oracle_prompt_tail"] = float(latent[tail][is_review[tail]].mean())
    return values


def latent_of(table: Generations) -> FloatArray:
    """Latent sentiment of prompt + continuation, (P, k) logits; NaN for a text that is no review of the world."""
    texts = [[prompt + text for text in of_prompt]
             for prompt, of_prompt in zip(table.prompts, table.continuations, strict=True)]  # fmt: skip
    found = [[latent_sentiment(text) for text in of_prompt] for of_prompt in texts]
    return np.array([[np.nan if value is None else value for value in row] for row in found], dtype=np.float64)


def outcomes_of(prompts: tuple[str, ...]) -> Outcomes | None:
    """The small world as a finite problem, with the kinds of prompt in the shares that these prompts have.

    The reference writes as the rows of label 1 do, which is what SFT aims at and not quite what it reaches.

    Returns: None if a prompt is not a whole prompt of the world without any clause.
    """
    counts = dict.fromkeys(KINDS, 0)
    for prompt in prompts:
        words = prompt.split()
        if len(words) != PROMPT_WORDS or latent_sentiment(prompt) is None:
            return None
        counts[words[1]] += 1
    return replace(world_outcomes(wanted_only=True), shares=np.array(list(counts.values())) / len(prompts))


def exact_shares(start: Mapping[str, float], reached: Reached, outcomes: Outcomes) -> dict[str, float]:
    """(method - SFT) / (exact frontier at the method's KL - SFT), for the mean and for the CVaR.

    The frontier is that of a reference that writes as the wanted rows do. SFT comes near to it, so that a share of 1 is
    nearly, and not exactly, the most that is possible.

    Args:
        start: the oracle's measures of the SFT model.
        reached: the method's.
        outcomes: the world.

    Returns: metric of `SHARES` -> share; those for which the frontier is not above SFT are left out.
    """
    if reached.kl <= 0:
        return {}
    best = _best(exact_frontier(outcomes, [reached.kl], ALPHA)[0])
    return {
        share: (reached.values[metric] - start[metric]) / (best[metric] - start[metric])
        for metric, share in SHARES.items()
        if metric in start and metric in reached.values and best[metric] > start[metric]
    }


def _best(row: FrontierRow) -> dict[str, float]:
    return {"oracle_mean": row.best_mean.mean, "oracle_cvar_10": row.best_cvar.cvar}


def _shares(
    reached: Mapping[str, Mapping[int, Reached]], method: str, seed: int, outcomes: Outcomes | None
) -> dict[str, float]:
    if outcomes is None or SFT not in reached or not is_trained(method):
        return {}
    return exact_shares(reached[SFT][seed].values, reached[method][seed], outcomes)


def _spreads(by_seed: list[dict[str, float]]) -> dict[str, Spread]:
    """Metrics that every seed has, over seeds."""
    names = [name for name in by_seed[0] if all(name in values for values in by_seed)]
    return {name: over_seeds([values[name] for values in by_seed]) for name in names}
