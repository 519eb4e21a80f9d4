"""Stage `generate_fit`: scored continuations of the test prompts by one method of `methods.fit`, all its seeds."""

from pathlib import Path

from tasks.continuations import Places, write_continuations
from tasks.running.stage import Run, stage


@stage
def generate_fit(run: Run, method: str, model: Path, sft: Path, reward: Path, prompts: Path, out: Path) -> None:
    """Sample continuations by a fitted method, score them and measure their KL to the SFT model."""
    write_continuations(run, method, Places(model, sft, reward, prompts, out))


if __name__ == "__main__":
    generate_fit()
