"""Run a program on ranks that stay, and see that what is to fail fails as promised."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch  # noqa: F401 - for the programs that torchrun is given as text

import sbnref

from .program import Fault, Norm, Program  # noqa: F401
from .rank import train

TIMEOUT = 300  # seconds that a program may take, compiling included
PATIENCE = 8  # seconds, where a rank is to hang
LIMITS = {"interrupts the program": 2, "hangs": 2}  # seconds until the error, patience apart; for all else
AT_ONCE = 5

_worlds: dict[int, sbnref.Ranks] = {}


def run(program: Program) -> list[dict[str, int]] | tuple[str, float]:
    """Run it.

    Returns:
        What each rank holds afterwards; or, where something was to go wrong, what, and seconds until the error.

    Raises:
        AssertionError: a number is wrong, or something did not fail as promised.
        sbnref.RankError: a rank raised.
    """
    if program.fault is not None:
        return program.fault.what, fail(program, program.fault, 4 * PATIENCE)[1]  # the machine may be busy
    if program.world_size not in _worlds:
        _worlds[program.world_size] = sbnref.Ranks(program.world_size, timeout=TIMEOUT)
    wrong, held = zip(*_worlds[program.world_size].run(train, program, ""), strict=True)
    assert not any(wrong), "\n".join(line for lines in wrong for line in lines)
    return list(held)


def end() -> None:
    """End the ranks that stayed."""
    for world in _worlds.values():
        world.close()
    _worlds.clear()


def fail(program: Program, fault: Fault, patience: float = PATIENCE) -> tuple[str, float]:
    """Run a program that is to fail, on ranks of its own, and see that it does as promised.

    Args:
        program: what to run.
        fault: the program's.
        patience: seconds for the whole of it, where a rank is to hang.

    Returns:
        The error's type, and the seconds from the fault to it.
    """
    ranks = sbnref.Ranks(program.world_size, timeout=TIMEOUT)
    pids = ranks.run(os.getpid)
    if fault.what == "hangs":
        ranks.timeout = patience
    # Python's handler, also where the shell that started us has interrupts ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = time.time()
    error: BaseException | None = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            results = ranks.run(train, program, folder)
            error = AssertionError(f"no error, but {results}")
        except (Exception, KeyboardInterrupt) as raised:
            error = raised
        finally:
            signal.signal(signal.SIGINT, handler)
        ended = time.time()
        struck = Path(folder, "struck")
        assert struck.exists(), f"an error before anything was to fail: {error}"
        took = ended - (before if fault.what == "hangs" else float(struck.read_text()))
    kind, words = {
        "raises": (sbnref.RankError, "LookupError: planted"),
        "gives bad input": (sbnref.RankError, "ValueError: expected .* got"),
        "is killed": (sbnref.RankError, "ended by signal 9"),
        "exits": (sbnref.RankError, "ended with exit code 3"),
        "hangs": (TimeoutError, rf"ranks \[.*\b{fault.rank}\b.*\] of {program.world_size} had not returned"),
        "interrupts the program": (KeyboardInterrupt, ""),
    }[fault.what]
    assert isinstance(error, kind), f"expected {kind.__name__}, got {error!r}"
    assert re.search(words, str(error)), f"expected an error like {words!r}, got {error}"
    if isinstance(error, sbnref.RankError):
        assert error.rank == fault.rank, f"rank {error.rank} is blamed for rank {fault.rank}: {error}"
    limit = LIMITS.get(fault.what, AT_ONCE) + patience * (fault.what == "hangs")
    assert took <= limit, f"the error came after {took:.1f} s, expected at most {limit}"
    _none_left(pids)
    return kind.__name__, took


def _none_left(pids: list[int]) -> None:
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not left, f"ranks that were not ended: {left}"


def fail_under_torchrun(program: Program, fault: Fault) -> tuple[str, float]:
    """The same, of ranks that torchrun starts. It ends with an error, and says what happened.

    Returns:
        What torchrun or a rank says of it, and the seconds from the fault to torchrun's end.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={program.world_size}")
        process = subprocess.Popen(
            [sys.executable, *command, "-m", "soak.run", repr(program), folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        text = process.communicate(timeout=TIMEOUT)[0]
        ended = time.time()
        struck = Path(folder, "struck")
        assert struck.exists(), f"an error before anything was to fail: {text}"
        took = ended - float(struck.read_text())
        pids = [int(file.read_text()) for file in Path(folder).glob("pid-*")]
    told = {
        "raises": "LookupError: planted",
        "gives bad input": "ValueError: expected",
        "is killed": "Signal 9 (SIGKILL)",
        "exits": "exitcode  : 3",
        "hangs": f"Timed out waiting {PATIENCE * 1000}ms for recv",
        "interrupts the program": "got signal: 2",
    }[fault.what]
    assert process.returncode != 0
    assert told in text, f"expected {told!r} in {text}"
    limit = (PATIENCE if fault.what == "hangs" else 0) + 30  # torchrun gives itself as long to end
    assert took <= limit, f"the end came after {took:.1f} s, expected at most {limit}"
    assert len(pids) == program.world_size
    _none_left(pids)
    return told, took


if __name__ == "__main__":  # what torchrun starts
    sbnref.launch(train, 0, eval(sys.argv[1]), sys.argv[2], timeout=PATIENCE)
