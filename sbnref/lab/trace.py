"""``sbnref lab trace``: record a file of kernels, and write a page that plays the recording."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..impls import STAGES, cuda
from ..launch import RankError, Ranks
from .kernels import Call, Kernels, library
from .own_stages import record_stages
from .page import page
from .recording import Recording, example, record, refuse_large
from .task_call import compiled, record_task
from .tasks import find_task

COMPILING = 900  # seconds; the package's own kernels take the longest


def trace(
    what: str,  # a file of kernels, or one of the package's own stages
    shape: tuple[int, ...],  # of the input, (N, C, *), or the sizes of the task
    output: Path,  # the page
    *,
    task: str | None = None,  # of the file's function; None for functions that take a Problem
    channels_last: bool = False,  # whether the channels are side by side in memory
    functions: Sequence[str] = (),  # of the file, in order; forward if empty
    threads: int = 64,  # of a block
    splits: int = 1,  # blocks that may share a channel
    timeout: float = 20,  # seconds for the kernels
) -> str | None:
    """Record kernels on random numbers, in a separate process, and write a page that plays them.

    Returns:
        The error that the simulation found, at the end of the recording, or None.

    Raises:
        ValueError: the file does not exist, or the shape or a number is invalid.
        RuntimeError: the file does not compile, a tool is missing, or the kernels do not end, or end their process.
    """
    if threads not in (32, 64, 128, 256, 512, 1024):
        raise ValueError(f"expected blocks of 32, 64, 128, 256, 512 or 1024 threads, got {threads}")
    if what not in STAGES and not Path(what).is_file():
        raise ValueError(f"expected a file of kernels or one of {', '.join(STAGES)}, got {what}, which does not exist")
    refuse_large(shape)
    if task is not None:
        find_task(task)  # raise before a process starts
    kernels = Kernels(Path(what).resolve(), tuple(functions) or ("forward",), threads)
    with Ranks(1, timeout=COMPILING) as ranks:
        _in(ranks, _compile, what, task, kernels)
        ranks.timeout = timeout
        recording: Recording = _in(ranks, _record, what, task, kernels, shape, channels_last, splits)
    recording.title = what if what in STAGES else Path(what).name
    output.write_text(page(recording.title, recording), encoding="utf-8")
    return recording.error


def _in(ranks: Ranks, work: Callable[..., object], *args: object) -> Any:
    """Run ``work`` in another process. Its errors, and the end of that process, become a RuntimeError."""
    try:
        ((result, error),) = ranks.run(_with_error, work, *args)
    except RankError as died:
        raise RuntimeError(str(died).rpartition("\n\n")[2].strip()) from None
    except TimeoutError:
        raise RuntimeError(f"the kernels took longer than {ranks.timeout:g} s") from None
    if error is not None:
        raise RuntimeError(error)
    return result


def _with_error(work: Callable[..., object], *args: object) -> tuple[object, str | None]:
    try:
        return work(*args), None
    except (ValueError, RuntimeError) as error:
        return None, str(error)


def _compile(what: str, task: str | None, kernels: Kernels) -> None:
    if what in STAGES:
        os.environ["SBNREF_CUDASIM"] = "1"
        cuda.simulation()
    elif task is not None:
        compiled(kernels.file, [find_task(task)])
    else:
        library(kernels)


def _record(
    what: str, task: str | None, kernels: Kernels, shape: tuple[int, ...], channels_last: bool, splits: int
) -> Recording:
    if task is not None and what not in STAGES:
        return record_task(kernels.file, find_task(task), shape)
    x = example(shape, channels_last=channels_last)
    return record_stages(x, [what])[what] if what in STAGES else record(Call(kernels, x, splits=splits))
