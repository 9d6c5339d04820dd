"""Tasks for CUDA kernels: what a function has to compute, on which inputs, and how exactly.

A task is a few lines of Python. A lecturer's own is a file that defines ``task``::

    from sbnref.lab.tasks import Task

    task = Task(
        "void saxpy(const float* x, const float* y, float* z, float a, int n)",
        "z[i] = a x[i] + y[i] for i < n",
        inputs=lambda draw: {"n": (n := draw.size()), "x": draw.array(n), "y": draw.array(n), "a": 2.5},
        oracle=lambda x, y, a, n: {"z": a * x + y},
        typical=(1 << 16,),
    )

Students write the function in a file of ordinary CUDA. It launches kernels on the arrays, which lie in the GPU's
memory.
"""

from __future__ import annotations

import ctypes
import functools
import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..impls import reference
from ..modes import combine

# Of a C type: the dtype of an array, and the type of a number that is passed.
TYPES: dict[str, tuple[torch.dtype, Any]] = {
    "float": (torch.float32, ctypes.c_float),
    "double": (torch.float64, ctypes.c_double),
    "int": (torch.int32, ctypes.c_int),
    "unsigned": (torch.int32, ctypes.c_uint),
    "int64_t": (torch.int64, ctypes.c_int64),
}


class Draw(Protocol):
    """Gives the inputs of a task; those that come first are the simplest."""

    def size(self, *sizes: int) -> int:
        """A size: one of these, or of some that are worth a try."""

    def array(self, *shape: int) -> Tensor:
        """Float64 numbers: small whole numbers, normal ones, or normal ones far from zero."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a task's function: ``type`` and ``name`` in C, whether it is an array, and one to be written."""

    type: str
    name: str
    is_array: bool
    is_output: bool

    def __str__(self) -> str:
        const = "const " if self.is_array and not self.is_output else ""
        return f"{const}{self.type}{'*' if self.is_array else ''} {self.name}"


@dataclass(frozen=True)
class Task:
    """What a function has to compute.

    Attributes:
        signature: of the function, in C: arrays are pointers, those to be read are ``const``; types are those of
            :data:`TYPES`.
        text: what it has to compute, for students.
        inputs: a dict of the ``const`` arrays and the numbers, by name, from a :class:`Draw`.
        oracle: a dict of the arrays that are written, by name, from the inputs in float64.
        typical: the sizes that are drawn for counting what the kernels move.
        rtol: the relative error of an element that passes.
        atol: the absolute error that passes besides.
    """

    signature: str
    text: str
    inputs: Callable[[Draw], dict[str, Any]]
    oracle: Callable[..., dict[str, Tensor]]
    typical: Sequence[int]
    rtol: float = 1e-5
    atol: float = 1e-5

    @functools.cached_property
    def name(self) -> str:
        """The function's name."""
        return self._parsed[0]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """In their order."""
        return self._parsed[1]

    @functools.cached_property
    def _parsed(self) -> tuple[str, tuple[Parameter, ...]]:
        match = re.fullmatch(r"\s*void\s+(\w+)\s*\((.*)\)\s*", self.signature, re.DOTALL)
        found = []
        for text in match[2].split(",") if match else ():
            one = re.fullmatch(r"\s*(const\s+)?(\w+)\s*(\*?)\s*(\w+)\s*", text)
            if one is None or one[2] not in TYPES:
                raise ValueError(
                    f"expected parameters such as 'const float* x' or 'int n', of {', '.join(TYPES)}, got {text!r}"
                )
            found.append(Parameter(one[2], one[4], bool(one[3]), bool(one[3]) and not one[1]))
        if match is None or not any(parameter.is_output for parameter in found):
            raise ValueError(
                f"expected a signature such as 'void f(const float* x, float* y, int n)', got {self.signature!r}"
            )
        return match[1], tuple(found)

    def given(self, draw: Draw) -> dict[str, Any]:
        """Inputs as the function gets them: arrays in the parameters' dtypes."""
        inputs = self.inputs(draw)
        return {
            p.name: inputs[p.name].to(TYPES[p.type][0]).contiguous() if p.is_array else inputs[p.name]
            for p in self.parameters
            if not p.is_output
        }

    def expected(self, given: dict[str, Any]) -> dict[str, Tensor]:
        """The results for inputs, float64."""
        wide = {name: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for name, v in given.items()}
        return {name: value.double() for name, value in self.oracle(**wide).items()}

    def template(self) -> str:
        """The text of a file to start from."""
        text = "\n".join(f"// {line}".rstrip() for line in self.text.splitlines())
        body = "{\n    // to be written: launch kernels here\n}\n"
        return (
            f"{text}\n//\n// The arrays are in the GPU's memory. Grade with: sbnref lab check FILE.cu --task "
            f"{self.name}\n#include <cuda_runtime.h>\n\n{self.signature} {body}"
        )


def find_task(name: str) -> Task:
    """A task that is shipped, or that of a Python file.

    Raises:
        ValueError: there is no such task, or the file defines none.
    """
    if name in TASKS:
        return TASKS[name]
    if name.endswith(".py") and Path(name).is_file():
        found = runpy.run_path(name).get("task")
        if not isinstance(found, Task):
            raise ValueError(f"expected {name} to define task = Task(...), got {type(found).__name__}")
        return found
    raise ValueError(f"expected a Python file that defines a task, or one of {', '.join(TASKS)}, got {name}")


# ---- the tasks that are shipped ----


def _matrix(draw: Draw) -> dict[str, Any]:
    rows, columns = draw.size(), draw.size()
    return {"x": draw.array(rows, columns), "rows": rows, "columns": columns}


def _vector(draw: Draw) -> dict[str, Any]:
    n = draw.size(1, 0, 2, 3, 31, 32, 33, 255, 256, 257, 1000, 4099)
    return {"x": draw.array(n), "n": n}


def _images(draw: Draw) -> dict[str, Any]:
    n, c, s = draw.size(1, 2, 3, 7), draw.size(1, 2, 3, 33), draw.size(1, 2, 4, 7, 33, 260)
    return {"x": draw.array(n, c, s), "N": n, "C": c, "S": s}


def _forward(draw: Draw) -> dict[str, Any]:
    images = _images(draw)
    gamma, beta = draw.array(images["C"]), draw.array(images["C"])
    return images | {"total": reference.forward_stats(images["x"], 1), "gamma": gamma, "beta": beta, "eps": 1e-5}


def _backward(draw: Draw) -> dict[str, Any]:
    f = _forward(draw)
    dy = torch.randn(f["x"].shape, generator=torch.Generator().manual_seed(f["x"].numel()), dtype=torch.float64)
    _, saved = reference.forward_apply(f["x"], f["total"], None, f["gamma"], f["beta"], 1e-5, None, None)
    total = reference.backward_stats(dy, f["x"], saved)
    return f | {"dy": dy, "saved": saved, "total": total, "k": 1.0}


def _normalized(x: Tensor, total: Tensor, gamma: Tensor, beta: Tensor, eps: float, **_: Any) -> dict[str, Tensor]:
    y, saved = reference.forward_apply(x, total, None, gamma, beta, eps, None, None)
    return {"y": y, "saved": saved}


def _batch_norm(x: Tensor, eps: float, **_: Any) -> dict[str, Tensor]:
    total = combine(reference.forward_stats(x, 1), None)
    mean, var = total[:2]
    return {"y": (x - mean[:, None]) / (var[:, None] + eps).sqrt()}


_SIZES = "int N, int C, int S"
_STAGE = (
    "x is a rank's batch, (N, C, S). This is a stage of synchronized batch norm, in full in\n"
    "`sbnref lab template functions`.\n"
)
TASKS = {
    task.name: task
    for task in (
        Task(
            "void sum(const float* x, float* y, int n)",
            "y[0] is the sum of x[0] ... x[n - 1].",
            _vector,
            lambda x, n: {"y": x.sum().view(1)},
            typical=(1 << 16,),
            atol=1e-3,
        ),
        Task(
            "void transpose(const float* x, float* y, int rows, int columns)",
            "y is the transpose of x, a matrix of (rows, columns).",
            _matrix,
            lambda x, rows, columns: {"y": x.T.contiguous()},
            typical=(256, 260),
            rtol=0,
            atol=0,
        ),
        Task(
            "void softmax(const float* x, float* y, int rows, int columns)",
            "y is the softmax of each row of x, a matrix of (rows, columns).",
            _matrix,
            lambda x, rows, columns: {"y": x.softmax(1)},
            typical=(128, 512),
        ),
        Task(
            "void scan(const float* x, float* y, int n)",
            "y[i] = x[0] + ... + x[i] for i < n.",
            _vector,
            lambda x, n: {"y": x.cumsum(0)},
            typical=(1 << 16,),
            atol=1e-2,
        ),
        Task(
            f"void batch_norm(const float* x, float* y, {_SIZES}, float eps)",
            "y = (x - mean) / sqrt(var + eps) for x of shape (N, C, S), with the mean and the biased variance of\n"
            "each channel.",
            lambda draw: _images(draw) | {"eps": 1e-5},
            _batch_norm,
            typical=(16, 32, 784),
            atol=2e-3,
        ),
        Task(
            f"void forward_stats(const float* x, double* payload, {_SIZES}, double weight)",
            _STAGE + "payload is (3 C + 2): [w mean, w var, w mean^2, w, m] with w = weight and m = N S.",
            lambda draw: _images(draw) | {"weight": 2.0},
            lambda x, weight, **_: {"payload": reference.forward_stats(x, weight)},
            typical=(16, 32, 784),
            rtol=1e-6,
            atol=1e-4,
        ),
        Task(
            "void forward_apply(const float* x, const double* total, const float* gamma, const float* beta, float* y, "
            f"double* saved, {_SIZES}, double eps)",
            _STAGE + "y and saved (4 C) from the sum of all payloads, total, with D = max(W, 1).",
            _forward,
            _normalized,
            typical=(16, 32, 784),
            atol=2e-3,
        ),
        Task(
            f"void backward_stats(const float* dy, const float* x, const double* saved, double* payload, {_SIZES})",
            _STAGE + "payload is (2 C): [sum g, sum g xhat] with g = dy.",
            _backward,
            lambda dy, x, saved, **_: {"payload": reference.backward_stats(dy, x, saved)},
            typical=(16, 32, 784),
            atol=1e-1,
        ),
        Task(
            "void backward_apply(const float* dy, const float* x, const double* total, const double* saved, "
            f"const float* gamma, float* dx, {_SIZES}, double k)",
            _STAGE + "dx from the sum of all payloads, total, and k = w / m.",
            _backward,
            lambda dy, x, total, saved, gamma, k, **_: {"dx": reference.backward_apply(dy, x, total, saved, gamma, k)},
            typical=(16, 32, 784),
            atol=2e-3,
        ),
    )
}
