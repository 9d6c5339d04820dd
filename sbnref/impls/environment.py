"""The environment variables that sbnref reads."""

from __future__ import annotations

import os

#: Each variable and its effect, as ``docs/api.md`` lists them. ``sbnref info`` shows those that are set.
VARIABLES = {
    "SBNREF_IMPL": "the implementation where `impl` is not given",
    "SBNREF_CPU_FLAGS": "more compiler flags for the kernels for CPU tensors",
    "SBNREF_CUDASIM": "1 runs the CUDA kernels on the CPU, in a simulation",
    "SBNREF_DEBUG": "1 turns a mismatch between ranks into an error",
    "SBNREF_DEBUG_TIMEOUT": "seconds that SBNREF_DEBUG waits for the other ranks, 300 by default",
    "SBNREF_BUILD_CPU": "0 makes `pip install` leave out the kernels for CPU tensors",
    "SBNREF_BUILD_CUDA": "1 makes `pip install` build the CUDA kernels",
    "CXX": "the C++ compiler to build with",
    "TORCH_EXTENSIONS_DIR": "the folder for libraries that are built on first use",
    "TORCH_CUDA_ARCH_LIST": "the GPUs to build for",
    "CUDA_HOME": "the CUDA toolkit to build with",
}


def flag(variable: str) -> bool:
    """Return whether an environment variable is set, to anything but 0, false, no or off."""
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")
