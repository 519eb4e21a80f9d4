"""How much of something a training takes, where no single value of params.yaml says it."""

from rarlhf.config.baselines import RegularisedParams
from rarlhf.config.params import PPOParams


def warmup_rollouts(ppo: PPOParams) -> int:
    """Rollouts before iteration 1 that train only the value head; none where `ppo.baseline` is no critic."""
    return ppo.value_warmup if ppo.baseline == "critic" else 0


def learning_rounds(settings: RegularisedParams) -> list[int]:
    """Rounds of a regularised training, from 1, that draw answers and learn a head which a round uses.

    With a lag the last round learns none: it would be used in the round after it. Without a penalty none is used.
    """
    used = {max(1, number - settings.lag) for number in range(1, settings.rounds + 1)}
    return sorted(used) if settings.penalty else []
