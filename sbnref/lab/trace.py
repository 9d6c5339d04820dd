"""What ``sbnref lab trace`` does: from a file of kernels to a page that plays them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

from ..impls import STAGES
from ..launch import RankError, Ranks
from .kernels import Call, Kernels, library
from .page import page
from .recording import Recording, example, record, refuse_large

T = TypeVar("T")

COMPILING = 900  # seconds; the package's own kernels take the longest


def trace(
    what: str,
    shape: tuple[int, ...],
    output: Path,
    *,
    channels_last: bool = False,
    functions: Sequence[str] = (),
    threads: int = 64,
    splits: int = 1,
    timeout: float = 20,
) -> str | None:
    """Record kernels on a tensor of random numbers, in a process of their own, and write a page that plays them.

    Args:
        what: a file of kernels, or one of the package's own stages.
        shape: of the input, (N, C, \\*).
        output: the page.
        channels_last: whether the channels lie side by side in memory.
        functions: of the file, in their order; ``forward`` where none is named.
        threads: of a block.
        splits: blocks that may share a channel.
        timeout: seconds that the kernels may take.

    Returns:
        What the simulation refused, where the recording ends; None where it refused nothing.

    Raises:
        ValueError: there is no such file, or the shape or a number does not do.
        RuntimeError: the file does not compile, a tool is missing, or the kernels do not end, or end their process.
    """
    if threads not in (32, 64, 128, 256, 512, 1024):
        raise ValueError(f"expected blocks of 32, 64, 128, 256, 512 or 1024 threads, got {threads}")
    if what not in STAGES and not Path(what).is_file():
        raise ValueError(f"expected a file of kernels or one of {', '.join(STAGES)}, and there is no file {what}")
    refuse_large(example(shape))
    kernels = None if what in STAGES else Kernels(Path(what).resolve(), tuple(functions) or ("forward",), threads)
    title = what if kernels is None else kernels.file.name
    with Ranks(1, timeout=COMPILING) as ranks:
        _in(ranks, _compile, kernels)
        ranks.timeout = timeout
        recording = _in(ranks, _record, title, kernels, shape, channels_last, splits)
    output.write_text(page(title, recording), encoding="utf-8")
    return recording.error


def _in(ranks: Ranks, work: Callable[..., T], *args: object) -> T:
    """What some work returns in a process of its own; what it refuses, and how it ends the process, is raised here."""
    try:
        ((result, refused),) = ranks.run(_refusing, work, *args)
    except RankError as died:
        how = str(died).rpartition("\n\n")[2].strip()
        raise RuntimeError(how) from None
    except TimeoutError:
        raise RuntimeError(f"the kernels were not done in {ranks.timeout:g} s") from None
    if refused is not None:
        raise RuntimeError(refused)
    return cast(T, result)


def _refusing(work: Callable[..., T], *args: object) -> tuple[T | None, str | None]:
    try:
        return work(*args), None
    except (ValueError, RuntimeError) as error:
        return None, str(error)


def _compile(kernels: Kernels | None) -> None:
    if kernels is not None:
        library(kernels)
        return
    from .own_stages import cuda

    os.environ["SBNREF_CUDASIM"] = "1"
    cuda.library()


def _record(title: str, kernels: Kernels | None, shape: tuple[int, ...], channels_last: bool, splits: int) -> Recording:
    x = example(shape, channels_last=channels_last)
    if kernels is not None:
        return record(Call(kernels, x, splits=splits), title)
    from .own_stages import record_stages

    return record_stages(x, [title])[title]
