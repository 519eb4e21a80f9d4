"""Stage `generate_headed`: scored continuations by a rule that reads a head on the SFT model too, all seeds."""

from pathlib import Path

from tasks.continuations import Places
from tasks.ruled import write_ruled
from tasks.running.stage import Run, stage


@stage
def generate_headed(  # noqa: PLR0913, PLR0917, the command line of dvc.yaml
    run: Run, method: str, settings: Path, model: Path, head: Path, sft: Path, reward: Path, prompts: Path, out: Path
) -> None:
    """Sample continuations of a model that a head steers, score them and measure their KL to the SFT model."""
    write_ruled(run, method, settings, Places(model, sft, reward, prompts, out), head=head)


if __name__ == "__main__":
    generate_headed()
