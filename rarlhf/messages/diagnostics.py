"""Warnings about typical troubles of PPO, given the first time each happens, with its likely cause.

A loss that is not finite is not here: it stops the training where it arises (`PPOTrainer.optimizer_step`).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from rarlhf.config.params import KLParams, PPOParams

Numbers = Mapping[str, float]  # of one iteration, by name
EMPTY_SHARE = 0.1  # share of a batch's responses that are empty but for the end of text
NEGATIVE_KL = -0.5  # nats per response; the k1 estimate of a small KL scatters around 0 by a few tenths
HIGH_RATIO = 10.0  # of one token; PPO's clip allows 1.2, and more only in single steps
WARNED_SHARE = 0.5  # of the KL at which the training stops


class Settings(NamedTuple):
    """Sections of the params that say what is trouble."""

    ppo: PPOParams
    kl: KLParams


class Watch:
    """Looks at each iteration's record and warns once about each kind of trouble."""

    def __init__(self, ppo: PPOParams, kl: KLParams) -> None:
        self.settings = Settings(ppo, kl)
        self.said: set[str] = set()

    def warnings(self, record: Numbers) -> list[str]:
        """A line for each trouble that shows for the first time in this record."""
        new = {
            name: text
            for name, (shows, text) in TROUBLES.items()
            if name not in self.said and shows(record, self.settings)
        }
        self.said |= set(new)
        values = {key.replace("/", "_"): value for key, value in record.items()}
        return [text.format(**values, **self.settings._asdict()) for text in new.values()]


def _negative_kl(record: Numbers, given: Settings) -> bool:
    return record["objective/kl"] < NEGATIVE_KL


def _high_kl(record: Numbers, given: Settings) -> bool:
    return record["objective/kl"] > WARNED_SHARE * given.kl.limit


def _skipped(record: Numbers, given: Settings) -> bool:
    return record["policy/skipped_steps"] > 0


def _ratio_spike(record: Numbers, given: Settings) -> bool:
    return record["policy/ratio_max"] > HIGH_RATIO


def _empty(record: Numbers, given: Settings) -> bool:
    return record["response/empty"] > EMPTY_SHARE


def _all_equal(record: Numbers, given: Settings) -> bool:
    return record["objective/return_std"] == 0


TROUBLES: dict[str, tuple[Callable[[Numbers, Settings], bool], str]] = {
    "negative KL": (
        _negative_kl,
        "negative KL: the mean log-ratio to the reference policy is {objective_kl:.2f} nats. A true KL is never "
        "below 0, so responses were not drawn from the policy's own distribution: check that no filter replaces "
        "responses, and that temperature and shortest length are the same in sampling and in training",
    ),
    "high KL": (
        _high_kl,
        "high KL: {objective_kl:.4g} nats for kl.target = {kl.target}. The training stops if its KL stays above "
        "{kl.limit:.4g} nats (kl.stop_above = {kl.stop_above}). The policy moves faster than the penalty holds "
        "it: lower ppo.lr or raise kl.coef",
    ),
    "skipped step": (
        _skipped,
        "{policy_skipped_steps:.0f} optimiser steps left out: their mean probability ratio was above ppo.max_ratio = "
        "{ppo.max_ratio}. The policy moves too far in one iteration: lower ppo.lr or ppo.epochs, or set "
        "ppo.max_grad_norm",
    ),
    "ratio spike": (
        _ratio_spike,
        "ratio spike: a token's probability rose {policy_ratio_max:.0f} times within the iteration. PPO's clip no "
        "longer holds the policy back: lower ppo.lr or ppo.epochs, or set ppo.max_grad_norm",
    ),
    "empty responses": (
        _empty,
        "empty responses: {response_empty:.0%} hold nothing but the end of text. The score may favour bare prompts, or "
        "the SFT texts may be no longer than the prompts: raise ppo.min_new_tokens or sft.tokens",
    ),
    "equal returns": (
        _all_equal,
        "all episodes have the same return, so there is nothing to learn from: check reward.label, that "
        "reward.max_length leaves room for the response, and that the responses differ",
    ),
}
