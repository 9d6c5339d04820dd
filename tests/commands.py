"""The command ``sbnref`` in this process, and any command in a process of its own."""

import subprocess
import sys

from typer.testing import CliRunner

from sbnref.cli import app


def cli(*arguments: object, code: int = 0, **options):
    """Return what ``sbnref`` says to the arguments, and expect the exit code."""
    result = CliRunner().invoke(app, [*map(str, arguments)], **options)
    assert result.exit_code == code, result.output
    return result


def refusal(*arguments: object) -> str:
    """Return the error that ``sbnref`` ends with, on one line and without its frame."""
    return " ".join(cli(*arguments, code=2).stderr.replace("│", " ").split())


def process(*command: object, code: int = 0, **options) -> subprocess.CompletedProcess:
    """Run a command in a process of its own, and expect the exit code."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def python(*arguments: object, **options) -> subprocess.CompletedProcess:
    return process(sys.executable, *arguments, **options)
