"""What ``sbnref trace`` does: from a file of kernels to a page that plays them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..impls import STAGES
from .kernels import Call, Kernels
from .page import page
from .recording import example, record


def trace(
    what: str,
    shape: tuple[int, ...],
    output: Path,
    *,
    channels_last: bool = False,
    functions: Sequence[str] = (),
    threads: int = 64,
    splits: int = 1,
) -> str | None:
    """Record kernels on a tensor of random numbers, and write a page that plays the recording.

    Args:
        what: a file of kernels, or one of the package's own stages.
        shape: of the input, (N, C, \\*).
        output: the page.
        channels_last: whether the channels lie side by side in memory.
        functions: of the file, in their order; ``forward`` where none is named.
        threads: of a block.
        splits: blocks that may share a channel.

    Returns:
        What the simulation refused, where the recording ends; None where it refused nothing.

    Raises:
        ValueError: there is no such file, or the shape or a number does not do.
        RuntimeError: the file does not compile, or a tool is missing.
    """
    if threads not in (32, 64, 128, 256, 512, 1024):
        raise ValueError(f"expected blocks of 32, 64, 128, 256, 512 or 1024 threads, got {threads}")
    x = example(shape, channels_last=channels_last)
    if what in STAGES:
        from .stages import ask_for_recordings, record_stages

        ask_for_recordings()
        recording = record_stages(x, [what])[what]
    else:
        file = Path(what)
        if not file.is_file():
            raise ValueError(f"expected a file of kernels or one of {', '.join(STAGES)}, and there is no file {what}")
        kernels = Kernels(file.resolve(), tuple(functions) or ("forward",), threads)
        recording = record(Call(kernels, x, splits=splits), file.name)
    output.write_text(page(recording.title, recording), encoding="utf-8")
    return recording.error
