"""The environment variables that sbnref reads."""

from __future__ import annotations

import os

#: Each variable and its effect, as ``docs/api.md`` lists them. ``sbnref info`` shows those that are set.
VARIABLES = {
    "SBNREF_IMPL": "the default implementation, used when `impl` is not given",
    "SBNREF_CPU_FLAGS": "additional compiler flags for the CPU kernels",
    "SBNREF_CUDASIM": "1 lets `impl='cuda'` run on CPU tensors, in a simulation",
    "SBNREF_DEBUG": "1 turns a mismatch between ranks into an error",
    "SBNREF_DEBUG_TIMEOUT": "seconds for which `SBNREF_DEBUG` waits for the other ranks, 300 by default",
    "SBNREF_BUILD_CPU": "0 makes `pip install --no-build-isolation` leave out the CPU kernels",
    "SBNREF_BUILD_CUDA": "1 makes `pip install --no-build-isolation` build the CUDA kernels",
    "CXX": "the C++ compiler",
    "TORCH_EXTENSIONS_DIR": "the folder for libraries built on first use",
    "TORCH_CUDA_ARCH_LIST": "the compute capabilities of the GPUs to build for",
    "CUDA_HOME": "the folder of the CUDA toolkit; if unset, `CUDA_PATH` counts",
}


def flag(variable: str) -> bool:
    """Return whether an environment variable is set, to anything but 0, false, no or off."""
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")
