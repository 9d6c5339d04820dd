"""The process that runs submitted code. It answers the grader's requests, and does not know the expected results.

    worker.py SOCKET JOB

It imports nothing of sbnref, so submitted code finds neither the package nor the grader here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pkgutil
import signal
import socket
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

ANSWERED = 77  # the exit code of a fork that has answered


def main() -> None:
    """Confine this process, import the code, and answer requests until the grader closes the connection."""
    from confine import confine, end_with_parent

    job = json.loads(sys.argv[2])
    end_with_parent()
    unconfined = None
    try:
        confine(job["folder"], job["hide"])  # before PyTorch, because confine forks, and threads do not survive a fork
    except OSError as error:
        unconfined = str(error)

    import torch
    from channel import receive, send
    from user_module import NOT_THEIRS, error_in_words, import_target

    NOT_THEIRS.append(Path(job["package"]))  # lines of this package do not help the author of the code

    sys.path.pop(0)  # the folder of these files
    for name in ("channel", "confine", "user_module"):  # the graded code may bring modules of these names
        del sys.modules[name]
    torch.set_num_threads(1)
    grader = socket.socket(fileno=int(sys.argv[1]))
    _limit_resources(job["memory"], job["seconds"])
    with suppress(OSError):
        os.chdir(job["directory"])
    sys.path.append(job["directory"])
    send(grader, {"unconfined": unconfined})
    if unconfined is not None and job["confined"]:
        return

    for name in job["forbidden"]:
        if not _forbid(name):
            return send(grader, {"error": f"expected an existing module or function to forbid, got {name}"})
    try:
        module = import_target(job["target"])
    except BaseException as error:  # SystemExit too
        return send(grader, {"error": f"{job['target']} cannot be imported: {error_in_words(error)}"})
    functions = {name: f for name in job["functions"] if callable(f := getattr(module, name, None))}
    send(grader, {"functions": list(functions)})

    while True:
        request = receive(grader)
        answer = functools.partial(_answer, functions[request["stage"]], request, error_in_words)
        if request["apart"] is None:
            send(grader, answer())
        elif died := _in_a_fork(lambda: send(grader, answer()), request["apart"]):  # noqa: B023
            send(grader, {"id": request["id"], "died": died[0], "hung": died[1]})


RunningStats = namedtuple("RunningStats", ("mean", "var", "num_batches_tracked"))  # like the package's


def _answer(
    function: Callable[..., Any], request: dict[str, Any], in_words: Callable[[BaseException], str]
) -> dict[str, Any]:
    """Call a function, and return the answer to the grader."""
    import torch

    arguments = list(request["arguments"])
    running = None
    if request["stage"] == "forward_apply" and arguments[6] is not None:
        running = arguments[6] = RunningStats(*arguments[6])
    before = [a.clone() if isinstance(a, torch.Tensor) else None for a in arguments]
    reply: dict[str, Any] = {"id": request["id"]}
    try:
        with torch.no_grad():
            result = function(*arguments)
    except NotImplementedError as error:
        return {**reply, "not written": str(error)}
    except BaseException as error:  # SystemExit too
        return {**reply, "raised": in_words(error)}
    for name, old, new in zip(request["names"], before, arguments, strict=False):
        if old is not None and not torch.equal(old.nan_to_num(), new.nan_to_num()):
            return {**reply, "changed": name}
    return {**reply, "result": result, "running": running}


def _in_a_fork(answer: Callable[[], None], seconds: float) -> tuple[str, bool] | None:
    """Answer in a fork. If it died, return how, and whether it was ended because it took too long."""
    if (pid := os.fork()) == 0:
        answer()
        os._exit(ANSWERED)
    end = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"was still running after {seconds:g} s and was ended", True
        time.sleep(0.0005)
    code = os.waitstatus_to_exitcode(ended[1])
    return None if code == ANSWERED else (death_in_words(code), False)


def death_in_words(code: int) -> str:
    """Describe the end of a process by its exit code: negative for a signal, above 128 if reported by a parent."""
    number = -code if code < 0 else code - 128
    if number in [*signal.Signals]:
        return f"crashed the process, with signal {signal.Signals(number).name}"
    return f"ended the process, with exit code {code}"


class _Refuse:
    """An import hook that forbids a module."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.name or name.startswith(f"{self.name}."):
            raise ImportError(f"graded code may not import {self.name}")


def _forbid(name: str) -> bool:
    """Forbid a module, or a function such as torch.nn.functional.batch_norm; return whether it exists."""
    with suppress(ImportError, ValueError):
        if name == "sbnref" or importlib.util.find_spec(name) is not None:
            for loaded in [other for other in sys.modules if other == name or other.startswith(f"{name}.")]:
                del sys.modules[loaded]  # modules that imported it already keep it
            sys.meta_path.insert(0, _Refuse(name))
            return True
    owner, (path, _, attribute) = None, name.rpartition(".")
    with suppress(ImportError, AttributeError, ValueError):
        owner = pkgutil.resolve_name(path)
    if not callable(getattr(owner, attribute, None)):
        return False

    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError(f"graded code may not call {name}")

    setattr(owner, attribute, refuse)
    return True


def _limit_resources(gigabytes: float, seconds: float) -> None:
    """Limit memory to the current use plus ``gigabytes``, where the system can (Linux)."""
    try:
        import resource

        with open("/proc/self/status") as file:
            in_use = int(file.read().split("VmData:")[1].split()[0]) * 1024
    except (ImportError, OSError, IndexError):
        return
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + int(gigabytes * 2**30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1,) * 2)  # ends the process if the grader is gone
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(gigabytes * 2**30),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    with suppress(Exception):  # the grader is gone
        main()
    os._exit(0)  # without waiting for threads and exit handlers of the code
