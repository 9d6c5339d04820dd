"""The ladder of tutorial 11: build, call and time its rungs.

Each rung is a C++ file in ``cpu/`` and computes the forward pass in float32.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sbnref
from sbnref.impls.build import CPU, CSRC
from sbnref.impls.compiling import TORCH_HEADERS, cached, call_compiler
from sbnref.lab.timing import interleaved

KERNELS = Path(__file__).resolve().parent / "cpu"
RESULTS = KERNELS.parents[2] / "benchmarks" / "results"  # committed times
FLAGS = (
    *CPU.flags,
    "-fno-tree-vectorize",  # vectors only where the source has them
    *(("-fopenmp",) if sys.platform == "linux" else ()),
)


@dataclass(frozen=True)
class Rung:
    """A way to normalize.

    Attributes:
        source: the file with the new idea.
        function: its name in the library, after ``ladder_``.
        threaded: whether it can use several threads.
    """

    source: str
    function: str
    threaded: bool = False


RUNGS = {
    "1 naive": Rung("1_naive.cpp", "naive"),
    "2 one pass": Rung("2_one_pass.cpp", "one_pass"),
    "3 blocks": Rung("3_blocks.cpp", "blocks"),
    "4 vectors": Rung("4_vectors.cpp", "vectors"),
    "5 threads": Rung("5_threads.cpp", "threads", threaded=True),
    "6 streaming": Rung("6_streaming.cpp", "streaming", threaded=True),
}


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("N", "C", "S", "threads")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "y", "mean", "var")),
    )


def run(
    rung: str,
    x: Tensor,
    *,
    threads: int = 1,
    out: Tensor | None = None,
    statistics: Tensor | None = None,
    eps: float = 1e-5,
    kernels: Path = KERNELS,
    flags: tuple[str, ...] = (),
) -> Tensor:
    """Normalize a tensor.

    Args:
        rung: a key of :data:`RUNGS`.
        x: (N, C, \\*) float32, contiguous, in the CPU's memory.
        threads: the number of threads, from rung 5 on.
        out: a tensor like x for the result; by default a new tensor.
        statistics: (2, C) float64, contiguous, for the means and the variances.
        kernels: the folder of the sources; pass a changed copy to try it out.
        flags: further flags for the compiler.

    Returns:
        y, a tensor like x.

    Raises:
        RuntimeError: the rungs do not compile.
        ValueError: a tensor has another dtype, layout or device.
    """
    y = torch.empty_like(x) if out is None else out
    for t in (x, y):
        if (
            t.device.type != "cpu"
            or t.dtype != torch.float32
            or not t.is_contiguous()
            or t.dim() < 2
        ):
            raise ValueError(
                "expected a contiguous float32 tensor (N, C, *) on the CPU, got "
                f"{t.dtype} {tuple(t.shape)} with strides {t.stride()} on {t.device}"
            )
    if y.shape != x.shape:
        raise ValueError(f"expected out as x, {tuple(x.shape)}, got {tuple(y.shape)}")
    n, c = x.shape[:2]
    if statistics is None:
        statistics = torch.empty(2, c, dtype=torch.float64)
    if statistics.shape != (2, c) or not (
        statistics.dtype == torch.float64 and statistics.is_contiguous()
    ):
        raise ValueError(
            f"expected statistics of shape {(2, c)} in float64, "
            f"got {statistics.dtype} {tuple(statistics.shape)}"
        )
    mean, var = statistics
    if x.numel() > 0:
        s = x.numel() // (n * c)
        pointers = (t.data_ptr() for t in (x, y, mean, var))
        problem = _Problem(n, c, s, threads, eps, *pointers)
        call = getattr(library(kernels, flags), f"ladder_{RUNGS[rung].function}")
        call(ctypes.byref(problem))
    return y


@functools.cache
def library(kernels: Path = KERNELS, flags: tuple[str, ...] = ()) -> Any:
    """Compile the rungs, or load them from the cache.

    Raises:
        RuntimeError: the rungs do not compile.
    """
    files = sorted(kernels.glob("*.cpp"))
    flags = (*FLAGS, *flags)
    sources = [
        *files,
        *kernels.glob("*.h"),
        CSRC / "cpu" / "lanes.h",
        CSRC / "elements.h",
    ]
    arguments = [
        "-shared",
        "-fPIC",
        f"-I{CSRC}",
        *TORCH_HEADERS,
        *flags,
        *map(str, files),
    ]
    built = cached(
        "sbnref_cpu_ladder",
        sources,
        flags,
        lambda built: call_compiler(built, *arguments),
    )
    lib = ctypes.CDLL(str(built))
    for rung in RUNGS.values():
        getattr(lib, f"ladder_{rung.function}").restype = None
    return lib


# ---- timing ----


def works(x: Tensor, threads: int) -> dict[str, Callable[[], Tensor]]:
    """Return the functions to time: the copy, the rungs, PyTorch's and sbnref's own.

    With several threads, only rungs that can use them are among the functions.
    """
    works: dict[str, Callable[[], Tensor]] = {
        "copy": lambda: torch.empty_like(x).copy_(x)
    }
    for name, rung in RUNGS.items():
        if rung.threaded or threads == 1:
            works[name] = partial(run, name, x, threads=threads)
    works["F.batch_norm"] = partial(F.batch_norm, x, None, None, training=True)
    works["impl='cpu'"] = partial(
        sbnref.functional.sync_batch_norm, x, None, None, training=True, impl="cpu"
    )
    return works


def times(
    x: Tensor, threads: int, seconds: float, only: tuple[str, ...] = ()
) -> dict[str, list[float]]:
    """Time the works in turns and return the seconds of every round.

    Pass names in ``only`` to time only these works.
    """
    timed = {
        name: work
        for name, work in works(x, threads).items()
        if not only or name in only
    }
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with kept_memory(), torch.no_grad():
            return interleaved(timed, seconds)
    finally:
        torch.set_num_threads(before)


def moved(name: str, x: Tensor) -> int:
    """Return the bytes that must move: x twice and y once, or x once for the copy."""
    return (2 if name == "copy" else 3) * x.nbytes


def draw_committed() -> int:
    """Draw the committed times and return the number of result files that have them."""
    sys.path.insert(0, str(RESULTS.parents[1]))  # the checkout, for its benchmarks
    import matplotlib.pyplot as plt

    from benchmarks import load
    from benchmarks.figures import cpu_ladder

    drawn = 0
    for file in sorted(RESULTS.glob("*.json")):
        results = load(file)
        rows = [row for row in results.rows if row["suite"] == "cpu_ladder"]
        if rows:
            cpu_ladder(plt, rows, results)
            drawn += 1
    plt.show()
    return drawn


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory for the next tensor inside the ``with`` block.

    By default, glibc requests the memory of every large tensor anew. The system then
    maps it page by page, which can take as long as the timed pass.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(trim_threshold, 128 << 10)
        libc.malloc_trim(0)


def caches() -> dict[str, int]:
    """Return the bytes of L2 and of the last-level cache by Linux; elsewhere, guess."""
    sizes = {}
    for index in range(8):
        folder = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}")
        with contextlib.suppress(OSError, ValueError):
            level = int((folder / "level").read_text())
            sizes[level] = int((folder / "size").read_text().strip().rstrip("K")) << 10
    return {
        "L2": sizes.get(2, 1 << 20),
        "last level": sizes[max(sizes)] if sizes else 32 << 20,
    }
