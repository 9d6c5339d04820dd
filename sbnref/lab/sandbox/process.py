"""The grader's side: start the process with submitted code, send it requests, and end it if necessary."""

from __future__ import annotations

import functools
import inspect
import json
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from torch import Tensor

from ...conformance.stages import ContractError
from ...debugging.report import in_words
from ...impls import STAGES, Implementation, reference, user_module
from ...impls.build import CSRC
from . import channel, confine, worker

START = 60  # seconds for a process to start
GRACE = 5  # seconds beyond the process's own limit, before the grader ends it
KEPT = 8000  # characters of the code's output


def copies() -> set[Path]:
    """Return the folders of every sbnref that this Python can import, including editable installations."""
    finders = [sys.modules.get(getattr(finder, "__module__", "")) for finder in sys.meta_path]
    editable = [getattr(module, "MAPPING", {}).get("sbnref") for module in finders]  # setuptools' finders
    places = [user_module.OURS, *(Path(place, "sbnref") for place in sys.path), *map(Path, filter(None, editable))]
    return {place.resolve() for place in places if place.is_dir()}


PASSED_ON = (  # environment variables that Python and PyTorch need
    *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONUSERBASE"),
)
NAMES = {stage: [*inspect.signature(getattr(reference, stage)).parameters] for stage in STAGES}  # argument names


class NotGradable(ValueError):
    """The target cannot be graded; the message gives the reason."""


class Died(Exception):
    """The process ended, or had to be ended. ``printed`` is the last output of the code."""

    def __init__(self, what: str, printed: str, hung: bool = False) -> None:
        super().__init__(what)
        self.what, self.printed = what, printed
        self.status = "timed out" if hung else "crashed"


@dataclass(frozen=True)
class Job:
    """The code to grade, and its limits."""

    target: str  # a file, or a module's name
    directory: str = field(default_factory=os.getcwd)  # for relative paths and imports
    memory: float = 4  # gigabytes, on Linux
    seconds: float = 600  # CPU time for each core, on Linux
    forbidden: Sequence[str] = ("sbnref",)  # modules and functions
    confined: bool = False  # whether to refuse to run it unconfined
    place: str | None = None  # the parent of its folders; None for the system's temporary folder
    functions: Sequence[str] = STAGES  # the functions that it may define
    hide: Sequence[str | Path] = ()  # folders and files to hide from it, if it can be confined
    user: str | None = None  # the user to run it as, if root grades; None for the current user


class Student:
    """The functions of a submission, in a separate process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.allow(3600)
        self.unconfined: str | None = None  # why the process could not be confined
        self._asked = 0
        self._process: subprocess.Popen[bytes] | None = None

    def allow(self, seconds: float) -> None:
        """Limit all calls from now on to ``seconds`` together, and make them without forks."""
        self._apart: float | None = None  # seconds for a call in a fork; if the code dies, only the fork is lost
        self._seconds, self._deadline = seconds, time.monotonic() + seconds

    def shrink_apart(self) -> float:
        """Make the calls from now on in forks, with more time; return the time after which no call should start."""
        self._apart = max(1.0, self._seconds / 20)
        until = time.monotonic() + 0.8 * self._seconds
        self._deadline = until + GRACE
        return until

    def start(self, seconds: float | None = None) -> None:
        """Start a new process, and let it import the code within ``seconds``, or by the deadline.

        Raises:
            NotGradable: the code cannot be imported, or has none of the functions; or this is Windows.
            Died: the process died before.
        """
        if os.name == "nt":
            raise NotGradable("grading does not run on Windows; install sbnref in WSL, the Windows Subsystem for Linux")
        self.close()
        place = self.job.place
        self._folder = tempfile.TemporaryDirectory(prefix="sbnref-check-", dir=place, ignore_cleanup_errors=True)
        folder = os.path.realpath(self._folder.name)
        beside = Path(folder, "grader")
        beside.mkdir()
        for module in (channel, confine, worker, user_module):
            assert module.__file__ is not None
            shutil.copy(module.__file__, beside)
        hidden = [Path("/run"), *(Path(place).resolve() for place in self.job.hide)]  # other programs' sockets
        if "sbnref" in self.job.forbidden:
            hidden += [CSRC, *copies()]
        hidden = [place for place in hidden if place.exists() and not Path(self.job.target).is_relative_to(place)]
        # Leave out folders inside hidden folders, such as a wheel's kernel sources inside the package.
        hidden = [place for place in hidden if not {*place.parents} & {*hidden}]
        job = vars(self.job) | {
            "seconds": self.job.seconds * (os.cpu_count() or 1),
            "folder": folder,
            "package": str(user_module.OURS),
            "hide": list(map(str, hidden)),
        }
        command = (sys.executable, "-X", "faulthandler", str(beside / "worker.py"))
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), json.dumps(job)],
                cwd=folder,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ}
                | {"HOME": folder, "TMPDIR": folder, "PYTHONUSERBASE": site.getuserbase()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
                **self._user(folder),
            )
        assert self._process.stdout is not None
        self._printed = _Tail(self._process.stdout)
        unconfined = self._receive(START).get("unconfined")
        self.unconfined = self.unconfined or (None if unconfined is None else plain(unconfined))
        # If the first process could be confined, so must be every later one, on every rank.
        self.job = replace(self.job, confined=self.unconfined is None)
        reply = self._receive(self._left() if seconds is None else seconds)
        if "error" in reply:
            raise NotGradable(plain(reply["error"]))
        names = reply.get("functions")
        self._functions = [name for name in self.job.functions if isinstance(names, list) and name in names]
        if not self._functions:
            expected = f"expected {self.job.target} to define {in_words(self.job.functions)}, found none of them"
            raise NotGradable(f"{expected}; `sbnref lab template functions` prints a file to start from")

    def _user(self, folder: str) -> dict[str, Any]:
        """Return the options of :class:`subprocess.Popen` for the job's user, who becomes the folder's owner."""
        if self.job.user is None:
            return {}
        them = user_of(self.job.user)
        os.chown(folder, them["user"], them["group"])
        if self.job.place is not None:
            os.chmod(self.job.place, 0o711)  # so that the user can reach the folder
        return them

    def close(self) -> None:
        """End the process and its children."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()
        self._folder.cleanup()
        self._process = None

    def implementation(self) -> Implementation:
        """Return an object with the functions as attributes."""
        return SimpleNamespace(**{name: functools.partial(self.call, name) for name in self.job.functions})

    def _left(self) -> float:
        """Return the seconds until the deadline."""
        return max(0.0, self._deadline - time.monotonic())

    def call(self, stage: str, *arguments: Any) -> Any:
        """Call a function, and return its result.

        Raises:
            NotImplementedError: it is missing or not written yet.
            ContractError: it raised an error, or changed its inputs.
            Died: the process ended, was too slow, or sent an unsolicited message.
        """
        if self._process is None:
            self.start()
        if stage not in self._functions:
            raise NotImplementedError(f"there is no function {stage}")
        self._asked += 1
        apart = None if self._apart is None else min(self._apart, self._left())
        seconds = self._left() if apart is None else apart + GRACE
        request = {"id": self._asked, "stage": stage, "arguments": arguments, "apart": apart}
        with suppress(OSError):  # the process has ended; then no answer comes
            channel.send(self._channel, request | {"names": NAMES.get(stage, ())}, max(seconds, 0.1))
        reply = self._receive(seconds)
        if type(reply.get("id")) is not int or reply["id"] != self._asked:
            self._end("sent the grader an unsolicited message")
        if "died" in reply:
            raise Died(plain(reply["died"]), self._printed.text(wait=0), reply.get("hung") is True)
        if "not written" in reply:
            raise NotImplementedError(plain(reply["not written"]))
        if "raised" in reply:
            raise ContractError(f"raised {plain(reply['raised'])}")
        if "changed" in reply:
            raise ContractError(f"{stage} changed its input {plain(reply['changed'])}; work on a copy")
        result = reply.get("result")
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                kind, most = f"one of shape {tuple(tensor.shape)} in {tensor.dtype}", channel.MOST_DATA >> 20
                raise ContractError(f"{stage} must return CPU tensors of at most {most} MiB, but returned {kind}")
        if stage == "forward_apply" and arguments[6] is not None and isinstance(reply.get("running"), (tuple, list)):
            _move(arguments[6], reply["running"])
        return result

    def _receive(self, seconds: float) -> dict[str, Any]:
        """Return the next message of the process; raise :class:`Died` if it sends none."""
        try:
            reply = channel.receive(self._channel, seconds)
        except TimeoutError:
            self._end(f"was still running after {seconds:.3g} s and was ended", hung=True)
        except channel.Closed:
            self._end()
        except channel.Garbage as error:
            self._end(f"sent the grader {error}")
        return reply

    def _end(self, what: str | None = None, hung: bool = False) -> None:
        """End the process, and raise :class:`Died` with the reason."""
        assert self._process is not None
        if what is None:
            try:
                what = worker.death_in_words(self._process.wait(GRACE))
            except subprocess.TimeoutExpired:
                what = "closed the connection to the grader"
        self.close()
        raise Died(what, self._printed.text(), hung)


def _move(running: Sequence[Tensor | None], moved: Sequence[Any]) -> None:
    """Copy the running statistics from the process."""
    for mine, theirs in zip(running, moved, strict=False):
        if mine is not None:
            if not isinstance(theirs, Tensor) or (theirs.shape, theirs.dtype) != (mine.shape, mine.dtype):
                raise ContractError("forward_apply changed the shape or the dtype of the running statistics")
            mine.copy_(theirs)


def user_of(name: str) -> dict[str, Any]:
    """Return the options with which :class:`subprocess.Popen` starts a process as another user, if run by root."""
    import pwd

    them = pwd.getpwnam(name)
    return {"user": them.pw_uid, "group": them.pw_gid, "extra_groups": ()}


class _Tail:
    """Read all output of a process, so that it never blocks, and keep the end."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=[pipe], daemon=True)
        self._thread.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while chunk := os.read(pipe.fileno(), 1 << 16):
                self._kept = (self._kept + chunk)[-KEPT:]

    def text(self, wait: float = 1) -> str:
        """Return the last output, or the place where the interpreter crashed."""
        self._thread.join(wait)  # limited, because a leftover process may hold the pipe
        text = self._kept.decode(errors="replace").strip()
        crash = text.find("Fatal Python error")
        lines = text[crash:].splitlines()[:6] if crash >= 0 else text.splitlines()[-6:]
        return plain("\n".join(line[-200:] for line in lines))


def plain(reply: object) -> str:
    """Return untrusted text without control characters, and not too long."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(reply)[:20_000])
