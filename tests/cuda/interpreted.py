"""Interpret the kernels as nvcc compiles them, in a separate process, like the simulation.

The operators call the host half of nvcc's output, with ``runtime.cpp`` in place of the CUDA runtime. :mod:`ptx` runs
each launched kernel from the PTX of that compilation.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ptx
import torch
from nvcc import FLAGS, compiled, cuda_includes

from sbnref.impls import cuda
from sbnref.impls.build import CSRC, CUDA_SOURCES

ARCHITECTURE = "90"
LIBRARY = "stages.so"
SIZES = ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t  # blocks, threads, bytes of shared memory
LAUNCHER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, *SIZES, ctypes.POINTER(ctypes.c_void_p))


def compile_all(folder: Path, includes: list[str]) -> None:
    """Write the PTX of every source, and the library of their host halves, to a folder."""
    target = f"-gencode=arch=compute_{ARCHITECTURE},code=compute_{ARCHITECTURE}"

    def kernel(source: str) -> None:
        stem = Path(source).stem
        (folder / stem).mkdir()  # intermediate files have the same names for all sources
        keep = ["--keep", "--keep-dir", str(folder / stem), "-Xcompiler=-fPIC"]
        compiled(["nvcc", *FLAGS, target, *keep, *includes, "-c", str(CSRC / source), "-o", str(folder / f"{stem}.o")])
        (folder / stem / f"{stem}.ptx").rename(folder / f"{stem}.ptx")

    def runtime() -> None:
        source = Path(__file__).with_name("runtime.cpp")
        flags = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", *cuda_includes(), *includes]
        compiled(["c++", *flags, "-c", str(source), "-o", str(folder / "runtime.o")])

    with ThreadPoolExecutor(2) as pool:
        for done in [*(pool.submit(kernel, source) for source in CUDA_SOURCES), pool.submit(runtime)]:
            done.result()
    torch_library = Path(torch.__file__).parent / "lib"
    objects = map(str, sorted(folder.glob("*.o")))
    compiled(["c++", "-shared", *objects, f"-L{torch_library}", "-lc10", "-o", str(folder / LIBRARY)])


@dataclass
class Gpu:
    """Run the launches of the process that loaded the library."""

    library: ctypes.CDLL
    kernels: dict[str, ptx.Kernel]
    fused: bool = True
    launched: dict[str, int] = field(default_factory=dict)  # the last number of blocks, by kernel

    def launch(self, name: bytes, blocks: int, threads: int, shared_bytes: int, arguments: Any) -> int:
        """Return the address of an error message, empty on success."""
        self.said = ctypes.create_string_buffer(self._launch(name, blocks, threads, shared_bytes, arguments))
        return ctypes.addressof(self.said)

    def _launch(self, name: bytes, blocks: int, threads: int, shared_bytes: int, arguments: Any) -> bytes:
        try:
            kernel = self.kernels[name.decode()]
            self.launched[kernel.name] = blocks
            end = max(offset + size for offset, size in kernel.parameters.values())
            given = bytearray(end)
            for pointer, (offset, size) in zip(arguments, kernel.parameters.values(), strict=False):
                given[offset : offset + size] = ctypes.string_at(pointer, size)
            kernel.launch(blocks, threads, shared_bytes, bytes(given), self.memory(), self.fused)
        except ptx.PtxError as error:
            return str(error).encode()
        except Exception as error:
            return f"{type(error).__name__}: {error}".encode()
        return b""

    def memory(self) -> dict[int, np.ndarray]:
        room = self.library.known_memory(None, 0)
        pairs = (ctypes.c_size_t * 2 * room)()
        assert self.library.known_memory(pairs, room) == room
        return {at: np.frombuffer((ctypes.c_uint8 * size).from_address(at), np.uint8) for at, size in pairs}


_gpu: Gpu | None = None


def gpu() -> Gpu:
    assert _gpu is not None, "only where the library is loaded"
    return _gpu


def load(folder: Path) -> None:
    """Make this process interpret the kernels' PTX from now on."""
    global _gpu
    library = ctypes.CDLL(str(folder / LIBRARY), ctypes.RTLD_GLOBAL)  # before the simulation, whose symbols it replaces
    library.known_memory.restype = ctypes.c_size_t
    kernels = {}
    for source in CUDA_SOURCES:
        kernels |= ptx.parse((folder / source).with_suffix(".ptx").read_text())
    _gpu = Gpu(library, kernels)
    _gpu.launcher = LAUNCHER(_gpu.launch)  # type: ignore[attr-defined] # protect it from garbage collection
    library.launch_with(_gpu.launcher)  # type: ignore[attr-defined]
    assert cuda.why_not(torch.device("cpu")) is None
