"""Call a task's function: in the simulation, which checks and counts every access, or on a GPU."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..impls.simulation import compile_library
from .kernels import LABORATORY, compile_for_gpu, declare, upload
from .lines import places
from .recording import Recording, take
from .tasks import TYPES, Task, Typical

# The bits of a NaN that arithmetic never produces, by the bytes of an element. Results hold it before they are written.
UNWRITTEN = {4: (torch.int32, 0x7FC05EED), 8: (torch.int64, 0x7FF800005EED5EED)}


def compiled(file: Path, tasks: Iterable[Task], cuda: bool = False) -> Path:
    """Return the library of a file that defines the functions of tasks, compiled unless it was before.

    Raises:
        DoesNotCompile: the file does not compile; it lacks a function, for example.
        RuntimeError: there is no compiler.
    """
    unit = f'#include "{file}"\n'
    for task in tasks:
        parameters, names = ", ".join(map(str, task.parameters)), ", ".join(p.name for p in task.parameters)
        unit += (
            f'\nextern "C" const char* sbnref_{task.name}({parameters}) {{\n    {task.name}({names});\n'
            "    const cudaError_t error = cudaGetLastError();\n"
            "    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);\n}\n"
        )
    return compile_for_gpu(file, unit) if cuda else compile_library(file, [LABORATORY], unit=unit)


class TaskCall:
    """The function of a task in a library from :func:`compiled`."""

    def __init__(self, built: str | Path, signature: str) -> None:
        task = Task(signature, "", inputs=lambda _: {}, oracle=dict, typical=())
        self._parameters, self.library = task.parameters, ctypes.CDLL(str(built))
        self._function = getattr(self.library, f"sbnref_{task.name}")
        self._function.restype = ctypes.c_char_p
        self._addresses: dict[str, int] = {}

    def on_gpu(
        self, given: dict[str, Any], shapes: Mapping[str, Sequence[int]], device: torch.device
    ) -> dict[str, Tensor]:
        """Call the function on arrays of a GPU, see :meth:`run`, and return its results."""
        outputs = self._outputs(shapes, device)
        addresses = {name: array.data_ptr() for name, array in (given | outputs).items() if isinstance(array, Tensor)}
        if (error := self._call(given, addresses)) is not None:
            raise RuntimeError(error)
        return outputs

    def run(
        self,
        given: dict[str, Any],  # the arrays that are read, contiguous, and the numbers
        shapes: Mapping[str, Sequence[int]],  # of the arrays that are written
        order: str = "ascending",  # of blocks and threads
    ) -> dict[str, Any]:
        """Call the function once, in the simulation.

        Returns:
            ``outputs``, by name; ``fault``, the fault that the simulation found, or None, and ``sites``, its place,
            for :func:`lines_in`; and the numbers of :data:`COUNTED`.
        """
        lib = self.library
        declare(lib)
        lib.cudasim_set_order(order.encode())
        outputs = {name: mark_unwritten(array) for name, array in self._outputs(shapes, torch.device("cpu")).items()}
        arrays = {p.name: (given | outputs)[p.name] for p in self._parameters if p.is_array}
        self._addresses = upload(lib, arrays, outputs)
        error = self._call(given, self._addresses)
        lib.cudasim_download()
        found = json.loads(lib.cudasim_report())
        launches, failed = found["launches"], [found["fault"], *found["failed_calls"]]
        fault: dict[str, Any] = next(filter(None, failed), {"what": error, "at": []})
        counts = {name: sum(launch[name] for launch in launches) for name in ("sectors", "accesses", "conflicts")}
        largest = max(launches, key=lambda launch: launch["sectors"], default={"blocks": 0})
        counts |= {"launches": len(launches), "blocks": largest["blocks"]}
        return {"outputs": outputs, "fault": fault["what"], "sites": [fault["at"], fault.get("other", [])], **counts}

    def writer(
        self, given: dict[str, Any], shapes: Mapping[str, Sequence[int]], name: str, element: int
    ) -> list[list[int]]:
        """Call the function again, and return the site of the last write to an element of an array.

        ``element`` is its index in memory. The other arguments are as in :meth:`run`.
        """
        size = self.run(given, shapes)["outputs"][name].itemsize
        address = ctypes.c_void_p(self._addresses[name] + element * size)
        return [json.loads(self.library.cudasim_last_write(address))]

    def _outputs(self, shapes: Mapping[str, Sequence[int]], device: torch.device) -> dict[str, Tensor]:
        return {
            p.name: torch.empty(*shapes[p.name], dtype=TYPES[p.type][0], device=device)
            for p in self._parameters
            if p.is_output
        }

    def _call(self, given: dict[str, Any], addresses: dict[str, int]) -> str | None:
        values = [
            ctypes.c_void_p(addresses[p.name]) if p.is_array else TYPES[p.type][1](given[p.name])
            for p in self._parameters
        ]
        error = self._function(*values)
        return error and error.decode()


COUNTED = ("launches", "blocks", "sectors", "accesses", "conflicts")


def record_task(file: Path, task: Task, sizes: Sequence[int] = (), title: str = "") -> Recording:
    """Run a file's function of a task on normal random numbers, and record each warp.

    Args:
        file: CUDA source with the task's function.
        task: the task.
        sizes: in the order in which the task draws them; small ones if empty.
        title: the recording's title; the file's name if empty.

    Raises:
        ValueError: the sizes are too large for a recording, or the kernels do too much.
        RuntimeError: the file does not compile, or a tool is missing. A fault of the kernels ends the recording.
    """
    sizes = sizes or task.small()
    given = task.given(Typical(sizes))
    call = TaskCall(compiled(file.resolve(), [task]), task.signature)
    shapes = {name: tuple(result.shape) for name, result in task.expected(given).items()}

    def run() -> None:
        if (fault := call.run(given, shapes)["fault"]) is not None:
            raise RuntimeError(fault)

    return take(call.library, run, sizes, title or file.name)


def lines_in(
    file: Path,
    built: Path,  # the library of the file
    sites: list[list[int]],  # of an access, and perhaps of the access that it collides with
) -> tuple[int | None, int | None]:
    """Return the lines of two sites in the file."""
    found = [next((line for path, line in site if Path(path) == file), None) for site in places(built, sites)]
    line, other, *_ = [*found, None, None]
    return line, other


def mark_unwritten(tensor: Tensor) -> Tensor:
    """Fill a tensor with the bit pattern of unwritten memory, and return it."""
    bits, pattern = UNWRITTEN[tensor.itemsize]
    tensor.view(bits).fill_(pattern)
    return tensor


def unwritten(name: str, tensor: Tensor) -> str | None:
    """Return a sentence about elements that :func:`mark_unwritten` marked and no kernel has written, or None."""
    bits, pattern = UNWRITTEN[tensor.itemsize]
    if not (never := tensor.view(bits) == pattern).any():
        return None
    return f"some elements of {name} are never written, such as {name}{never.nonzero()[0].tolist()}"
