"""Stage `rlhf`: PPO on all episodes (plain RLHF), one run per seed."""

from pathlib import Path

from tasks.running.stage import Run, stage
from tasks.training import train


@stage
def rlhf(run: Run, seed: int, sft: Path, reward: Path, prompts: Path, out: Path, curve: Path) -> None:  # noqa: PLR0913
    """Train the SFT model by PPO on all episodes (plain RLHF)."""
    from rarlhf.training.rlhf import risk_neutral

    train(run, risk_neutral(run.params), seed, sft, reward, prompts, out, curve)


if __name__ == "__main__":
    rlhf()
