"""Make a release: set the version and the date, build and test the wheels, commit and tag. Nothing is published.

``make release VERSION=1.2.3`` runs it on Linux x86-64. If a step fails, ``git checkout .`` restores the files.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/sbnref/sbnref"


def run(*command: object) -> None:
    """Run a command in the repository, and end the program if the command fails."""
    words = [str(word) for word in command]
    if subprocess.run(words, cwd=ROOT).returncode != 0:
        sys.exit(f"failed: {' '.join(words)}")


def replace(file: str, pattern: str, by: str) -> None:
    """Replace the one line of a file that matches a pattern."""
    text, count = re.subn(f"^{pattern}$", by, (ROOT / file).read_text(), flags=re.MULTILINE)
    if count != 1:
        sys.exit(f"expected one line {pattern} in {file}, found {count}")
    (ROOT / file).write_text(text)


def main() -> None:
    """Release the version on the command line."""
    version, today = " ".join(sys.argv[1:]), date.today().isoformat()
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"expected VERSION to be three numbers such as 1.2.3, got {version!r}")
    if changed := subprocess.check_output(["git", "status", "--porcelain"], cwd=ROOT, text=True):
        sys.exit(f"expected no uncommitted changes, got:\n{changed}")
    replace("pyproject.toml", r'version = ".*"', f'version = "{version}"')
    replace("sbnref/__init__.py", r'__version__ = ".*"', f'__version__ = "{version}"')
    replace("CITATION.cff", "version: .*(\ndate-released: .*)?", f"version: {version}\ndate-released: {today}")
    replace("CHANGELOG.md", r"## \[Unreleased\]", f"## [Unreleased]\n\n## [{version}] - {today}")
    links = f"[Unreleased]: {REPOSITORY}/compare/v{version}...main\n[{version}]: {REPOSITORY}/releases/tag/v{version}"
    replace("CHANGELOG.md", r"\[Unreleased\]: .*", links)
    run("make", "wheels")
    (wheel,) = (ROOT / "dist").glob("*x86_64.whl")
    run(".ci/try_wheel", wheel)
    run("git", "commit", "--all", "--message", f"Release {version}")
    run("git", "tag", "--annotate", f"v{version}", "--message", f"Release {version}")
    print("To publish: git push --follow-tags && .venv/bin/uv publish")


if __name__ == "__main__":
    main()
