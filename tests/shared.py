"""Run the command ``sbnref`` in this process, run other commands in new processes, and read pages' code blocks."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from sbnref import cli as command

ROOT = Path(__file__).parents[1]


def blocks(page: str | Path, language: str) -> list[str]:
    """Return a page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def cli(*arguments: object, code: int = 0, app=command.app):
    """Run ``sbnref``, or another app, expect the exit code, and return the result."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object, **options) -> str:
    """Run the app, expect an error, and return the message on one line and without its frame."""
    return " ".join(cli(*arguments, code=2, **options).stderr.replace("│", " ").split())


def process(*command: object, code: int = 0, **options) -> subprocess.CompletedProcess:
    """Run a command in a new process, and expect the exit code."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def python(*arguments: object, **options) -> subprocess.CompletedProcess:
    return process(sys.executable, *arguments, **options)


def gone(pid: int) -> bool:
    """Return whether a process ends within half a minute; a zombie counts as ended."""
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")  # macOS has none
        if state.exists() and ") Z " in state.read_text():
            return True
        time.sleep(0.1)
    return False
