"""Stage `generate_decoded`: scored continuations of the test prompts by a rule on another method's model, all seeds."""

from pathlib import Path

from tasks.continuations import Places
from tasks.ruled import write_ruled
from tasks.running.stage import Run, stage


@stage
def generate_decoded(  # noqa: PLR0913, PLR0917, the command line of dvc.yaml
    run: Run, method: str, settings: Path, model: Path, sft: Path, reward: Path, prompts: Path, out: Path
) -> None:
    """Sample continuations of a model by a decoding rule, score them and measure their KL to the SFT model."""
    write_ruled(run, method, settings, Places(model, sft, reward, prompts, out))


if __name__ == "__main__":
    generate_decoded()
