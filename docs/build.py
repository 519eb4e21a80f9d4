"""Builds the documentation as a site that needs no network: `python docs/build.py`, or `make docs`, writes site/.

The pages are those of docs/, with README.md as the first one, CONTRIBUTING.md and CHANGELOG.md. A link that leads
nowhere, a missing picture and anything that a page would load from another host end the build with status 1.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LOADED = re.compile(r"""<(?:script|img|link)\b[^>]*?\b(?:src|href)="?([^"\s>]+)""")


def collect(source: Path, target: Path) -> None:
    """Copies the pages of the repository `source` into `target`, side by side, and leads their links there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source / "docs", target, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, page in PAGES.items():
        shutil.copyfile(source / name, target / page)
    for page in target.glob("*.md"):
        page.write_text(moved(page.read_text(encoding="utf-8")), encoding="utf-8")


def moved(text: str) -> str:
    """The text of a page with its links to other pages as they are in the site, and pictures in Mermaid as text.

    The site would fetch the program that draws Mermaid from another host.
    """
    text = text.replace("```mermaid", "```text")
    text = re.sub(r"\]\(docs/", "](", text)
    for name, page in PAGES.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}", f"]({page}", text)
    return text


def faults(site: Path) -> list[str]:
    """What the built pages load that is not in the site, one line each."""
    found = []
    for page in sorted(site.glob("*.html")):
        for address in sorted(set(LOADED.findall(page.read_text(encoding="utf-8")))):
            if not (page.parent / re.split("[?#]", address)[0]).exists():
                found.append(f"{page.name} loads {address}, which is not in the site")
    return found


def main() -> int:
    """Builds the site; 0 if it is whole."""
    collect(REPOSITORY, REPOSITORY / ".docs")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout + done.stderr.partition("Traceback")[0], file=sys.stderr)
        return 1
    (REPOSITORY / "site/404.html").unlink()  # a server's page, with addresses that a file does not have
    lines = faults(REPOSITORY / "site")
    print("\n".join(lines) or "the site is whole: open site/index.html")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
