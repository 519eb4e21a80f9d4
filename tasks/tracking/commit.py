"""The git commit that a run started from, as tags."""

import subprocess

REWRITTEN = ("dvc.lock", "metrics")  # in git, and written by every run


def git_tags() -> dict[str, str]:
    """The commit, and whether tracked files differ from it except what runs rewrite; empty without git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in REWRITTEN)))
    return {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": str(dirty).lower()}


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
