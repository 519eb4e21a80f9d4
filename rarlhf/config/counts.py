"""How much of something a training takes, where no single value of params.yaml says it."""

from rarlhf.config.params import PPOParams


def warmup_rollouts(ppo: PPOParams) -> int:
    """Rollouts before iteration 1 that train only the value head; none where `ppo.baseline` is no critic."""
    return ppo.value_warmup if ppo.baseline == "critic" else 0
