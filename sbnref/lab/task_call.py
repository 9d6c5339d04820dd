"""Call a task's function in the simulation: compile it, bring arrays to the GPU's memory and back, count."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

from ..impls.simulation import compile_library
from .kernels import declare, report
from .tasks import TYPES, Task
from .watching import flat, mark_unwritten


def compiled_task(file: Path, task: Task) -> Path:
    """The library of a file that defines a task's function.

    Raises:
        DoesNotCompile: the file is why; it does not define the function, for example.
        RuntimeError: there is no compiler.
    """
    parameters, names = ", ".join(map(str, task.parameters)), ", ".join(p.name for p in task.parameters)
    unit = (
        f'#include "{file}"\n\nextern "C" const char* sbnref_task({parameters}) {{\n    {task.name}({names});\n'
        "    const cudaError_t error = cudaGetLastError();\n"
        "    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);\n}\n"
    )
    return compile_library(file, unit=unit)


class TaskWorker:
    """A task's function, compiled elsewhere; for the process in which it is graded.

    Args:
        built: the library.
        signature: of the function.
    """

    def __init__(self, built: str, signature: str) -> None:
        nothing = Task(signature, "", inputs=lambda _: {}, oracle=dict, typical=())
        self._parameters, self._library = nothing.parameters, ctypes.CDLL(built)
        declare(self._library)
        self._library.sbnref_task.restype = ctypes.c_char_p

    def run(self, given: dict[str, Any], shapes: dict[str, list[int]], order: str) -> dict[str, Any]:
        """Call the function once.

        Args:
            given: the arrays that are read, and the numbers.
            shapes: of the arrays that are written.
            order: in which blocks and threads take turns.

        Returns:
            ``outputs``, by name; ``refused``, what the simulation found, or None, and ``frames``, where that was;
            ``moved``, the bytes of the sectors that were touched, and ``launches``.
        """
        lib, arguments, outputs = self._library, [], {}
        lib.cudasim_set_order(order.encode())
        lib.cudasim_reset()
        lib.cudasim_free_all()
        kept = []
        for p in self._parameters:
            dtype, number = TYPES[p.type]
            if not p.is_array:
                arguments.append(number(given[p.name]))
                continue
            array = (
                mark_unwritten(torch.empty(shapes[p.name], dtype=dtype)) if p.is_output else given[p.name].contiguous()
            )
            kept.append(array)
            if p.is_output:
                outputs[p.name] = array
            size, element = ctypes.c_int64(array.numel() * array.itemsize), ctypes.c_int64(array.itemsize)
            pointer = ctypes.c_void_p(array.data_ptr())
            address = lib.cudasim_upload(p.name.encode(), pointer, size, element, int(not p.is_output))
            arguments.append(ctypes.c_void_p(address))
        error = lib.sbnref_task(*arguments)
        lib.cudasim_download()
        found = report(lib)
        fault = found["fault"] or {"at": [], "other": []}
        return {
            "outputs": outputs,
            "refused": error and error.decode(),
            "frames": flat(fault["at"], fault["other"]),
            "moved": 32 * sum(launch["sectors"] for launch in found["launches"]),
            "launches": len(found["launches"]),
        }
