"""The pages in docs/: their code blocks, and how what a command prints is compared with what a page says."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ALONE = "import sys; sys.modules['rarlhf'] = None  # as where this project is not installed\n"
Runner = Callable[[Sequence[str]], str]  # words of a command to what it prints


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page's consoles, each with the lines that the page shows after it."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks(page, "console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def agrees(shown: Sequence[str], printed: str) -> bool:
    """Whether the shown lines are the printed ones; `...` stands for anything, and numbers for any number."""
    pattern = r"\n".join(re.escape(line) for line in shown)
    pattern = re.sub(r"\\\.\\\.\\\.", r"(?:.|\\n)*", pattern)
    pattern = re.sub(r"(?:\\-)?\d+(?:\\\.\d+)?", r"-?[0-9.e+-]+", pattern)
    return re.fullmatch(pattern, printed.rstrip("\n")) is not None


def run_alone(code: str, folder: Path) -> str:
    """Runs Python code in `folder` by an interpreter that has no `rarlhf`; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(command: str) -> tuple[list[str], Path | None]:
    """The command's words, and the file that its output goes to."""
    parts = shlex.split(command)
    if ">" in parts:
        return parts[:-2], Path(parts[-1])
    return parts, None
