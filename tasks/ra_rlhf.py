"""Stage `ra_rlhf`: PPO that moves to the worst episodes (RA-RLHF), one run per seed."""

from pathlib import Path

from tasks.running.stage import Run, stage
from tasks.training import train


@stage
def ra_rlhf(run: Run, seed: int, sft: Path, reward: Path, prompts: Path, out: Path, curve: Path) -> None:  # noqa: PLR0913
    """Train the SFT model by PPO that moves to the worst episodes (RA-RLHF)."""
    train(run, run.params, seed, sft, reward, prompts, out, curve)


if __name__ == "__main__":
    ra_rlhf()
