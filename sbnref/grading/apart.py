"""Running somebody's code apart: in a process of its own that is watched and, where it must be, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

START = 60  # seconds that a process may take until it can begin
KEPT = 8000  # characters of what the code printed


@dataclass(frozen=True)
class Outcome:
    """What became of a process that grades."""

    results: dict[str, dict[str, Any]]  # by stage
    refused: str | None  # why the target cannot be graded
    died: tuple[str, dict[str, Any]] | None  # the stage in which the process ended, and what became of it


def run_apart(job: dict[str, Any], timeout: float) -> Outcome:
    """Grade in a process of its own, until it is done, dies, or has been silent for too long."""
    with tempfile.TemporaryDirectory(prefix="sbnref-check-") as folder:
        paths = {name: Path(folder, name) for name in ("job", "results", "trying")}
        paths["job"].write_text(json.dumps({**job, "results": str(paths["results"]), "trying": str(paths["trying"])}))
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "sbnref.grading.grade", str(paths["job"])],
            cwd=folder,  # so that nothing beside the graded file hides a module of Python's or ours
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        tail = _Tail(process.stdout)
        seen, deadline, late = 0, time.monotonic() + timeout + START, False
        try:
            while process.poll() is None and not late:
                time.sleep(0.05)
                lines = len(_read(paths["results"]))
                if lines > seen:
                    seen, deadline = lines, time.monotonic() + timeout
                late = time.monotonic() > deadline
        finally:
            _end(process)
        lines_read = [line for line in map(_parse, _read(paths["results"])) if line is not None]
        trying = "".join(_read(paths["trying"]))
        printed = tail.text()
    died = None
    if not any("done" in line for line in lines_read):
        started = [line["starting"] for line in lines_read if "starting" in line]
        what = f"was still running after {timeout:g} s and was ended" if late else death_in_words(process.returncode)
        failure = {"step": trying, "what": what, "printed": printed, "features": []}
        result = {"status": "timed out" if late else "crashed", "failure": failure, "tried": 0}
        died = started[-1] if started else "import", result
    refused = next((line["refused"] for line in lines_read if "refused" in line), None)
    return Outcome({line["stage"]: line for line in lines_read if "stage" in line}, refused, died)


class _Tail:
    """Reads all that a process prints, so that it never has to wait, and keeps the end."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = b""
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while chunk := os.read(self._pipe.fileno(), 1 << 16):
            self._kept = (self._kept + chunk)[-KEPT:]

    def text(self) -> str:
        """What was printed last, or where the interpreter was when it crashed."""
        self._thread.join(1)  # no longer: a process that was left behind may hold the pipe
        text = self._kept.decode(errors="replace").strip()
        crash = text.find("Fatal Python error")
        lines = text[crash:].splitlines()[:6] if crash >= 0 else text.splitlines()[-6:]
        return "\n".join(line[-200:] for line in lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and those it has started."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # cut off where the process ended
        return None
    return value if isinstance(value, dict) else None


def death_in_words(code: int) -> str:
    """How a process ended, from its exit code; negative for a signal."""
    if code >= 0:
        return f"ended the process, with exit code {code}"
    with suppress(ValueError):
        return f"crashed the process, with signal {signal.Signals(-code).name}"
    return f"crashed the process, with signal {-code}"
