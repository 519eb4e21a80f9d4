import subprocess
from collections.abc import Callable
from pathlib import Path

Clone = Callable[[str], Path]


def git(*words: str) -> None:
    own = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *own, *words], check=True, stdout=subprocess.DEVNULL)
