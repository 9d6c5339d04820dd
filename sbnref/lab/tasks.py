"""Tasks for CUDA kernels: the function to write, its inputs, its expected results and their tolerance.

A task is a few lines of Python; ``docs/cuda_without_a_gpu.md`` shows how to write one. Students write the function in a
file of ordinary CUDA. It launches kernels on arrays in the GPU's memory.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..impls import reference
from ..impls.user_module import error_in_words
from ..modes import combine

# By C type: the dtype of an array, and the ctypes type of a number.
TYPES: dict[str, tuple[torch.dtype, Any]] = {
    "float": (torch.float32, ctypes.c_float),
    "double": (torch.float64, ctypes.c_double),
    "int": (torch.int32, ctypes.c_int),
    "unsigned": (torch.int32, ctypes.c_uint),
    "int64_t": (torch.int64, ctypes.c_int64),
}


class Draw(Protocol):
    """Draws the inputs of a task, the simplest first."""

    def size(self, *sizes: int) -> int:
        """Draw one of these sizes, or of a default list."""

    def array(self, *shape: int) -> Tensor:
        """Draw float64 numbers: small whole numbers, normal ones, or normal ones far from zero."""


class Typical:
    """Draws fixed sizes, on which kernels are counted or recorded, and normal numbers."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes, self._generator = iter(sizes), torch.Generator().manual_seed(0)

    def size(self, *_: int) -> int:
        if (size := next(self._sizes, None)) is None:
            raise ValueError("expected one size for each that the task draws, got fewer")
        return size

    def array(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a task's function: ``type`` and ``name`` in C, and whether it is an array and an output."""

    type: str
    name: str
    is_array: bool
    is_output: bool

    def __str__(self) -> str:
        const = "const " if self.is_array and not self.is_output else ""
        return f"{const}{self.type}{'*' if self.is_array else ''} {self.name}"


@dataclass(frozen=True)
class Task:
    """A function to write in CUDA."""

    #: the function's signature in C; arrays are pointers, inputs are ``const``; types are ``float``, ``double``,
    #: ``int``, ``unsigned`` and ``int64_t``
    signature: str
    text: str  #: the description for students
    inputs: Callable[[Draw], dict[str, Any]]  #: returns the ``const`` arrays and the numbers, by name
    oracle: Callable[..., dict[str, Tensor]]  #: returns the results, by name, from the inputs in float64
    typical: Sequence[int]  #: the sizes for counting the kernels' traffic
    rtol: float = 1e-5  #: the relative error allowed for an element
    atol: float | Callable[..., Tensor] = 1e-5  #: the absolute error allowed in addition, or a function of the inputs
    passes: float = 1  #: the least traffic in multiples of the arrays' bytes; 1 if each is moved once

    @functools.cached_property
    def name(self) -> str:
        """The function's name."""
        return self._parsed[0]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The function's parameters, in order."""
        return self._parsed[1]

    @functools.cached_property
    def _parsed(self) -> tuple[str, tuple[Parameter, ...]]:
        match = re.fullmatch(r"\s*void\s+(\w+)\s*\((.*)\)\s*", self.signature, re.DOTALL)
        found = []
        for text in match[2].split(",") if match else ():
            one = re.fullmatch(r"\s*(const\s+)?(\w+)\s*(\*?)\s*(\w+)\s*", text)
            if one is None or one[2] not in TYPES:
                known = f"'const float* x' or 'int n', of {', '.join(TYPES)}"
                raise ValueError(f"expected parameters such as {known}, got {text!r}")
            found.append(Parameter(one[2], one[4], bool(one[3]), bool(one[3]) and not one[1]))
        if match is None or not any(parameter.is_output for parameter in found):
            raise ValueError(f"expected a signature such as 'void f(const float* x, float* y)', got {self.signature!r}")
        return match[1], tuple(found)

    def given(self, draw: Draw) -> dict[str, Any]:
        """Draw the function's arguments: arrays in the parameters' dtypes, and numbers."""
        inputs = self.inputs(draw)
        self._expect("inputs", [p.name for p in self.parameters if not p.is_output], inputs)
        return {
            p.name: inputs[p.name].to(TYPES[p.type][0]).contiguous() if p.is_array else inputs[p.name]
            for p in self.parameters
            if not p.is_output
        }

    def expected(self, given: dict[str, Any]) -> dict[str, Tensor]:
        """Return the expected results for inputs, in float64."""
        results = self.oracle(**_wide(given))
        self._expect("oracle", [p.name for p in self.parameters if p.is_output], results)
        return {name: value.double() for name, value in results.items()}

    def _expect(self, function: str, names: list[str], found: dict[str, Any]) -> None:
        if not found.keys() >= {*names}:
            raise ValueError(
                f"expected {function} of the task {self.name} to return {', '.join(names)}, got {', '.join(found)}"
            )

    def allowed(self, given: dict[str, Any], expected: Tensor) -> Tensor:
        """Return the error allowed for each element of a result, in float64."""
        atol = self.atol(**_wide(given)) if callable(self.atol) else self.atol
        return atol + self.rtol * expected.abs() + torch.finfo(torch.float32).tiny

    def small(self, elements: int = 300) -> tuple[int, ...]:
        """Return sizes for a recording: the typical ones, with the largest halved until the product is small enough."""
        sizes = list(self.typical)
        while math.prod(sizes) > elements:
            sizes[sizes.index(max(sizes))] //= 2
        return tuple(sizes)

    def template(self) -> str:
        """Return the text of a file to start from."""
        text = "\n".join(f"// {line}".rstrip() for line in self.text.splitlines())
        body = "{\n    // to be written: launch kernels here\n}\n"
        return (
            f"{text}\n//\n// The arrays are in the GPU's memory. Grade with: sbnref lab check FILE.cu --task "
            f"{self.name}\n#include <cuda_runtime.h>\n\n{self.signature} {body}"
        )


def _wide(given: dict[str, Any]) -> dict[str, Any]:
    return {name: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for name, v in given.items()}


def find_task(name: str) -> Task:
    """Return one of ``TASKS``, or the task that a Python file defines.

    Raises:
        ValueError: the name is unknown, or the file defines no task.
    """
    if name in TASKS:
        return TASKS[name]
    if name.endswith(".py") and Path(name).is_file():
        try:
            found = runpy.run_path(name).get("task")
        except Exception as error:
            raise ValueError(f"{name} cannot be run: {error_in_words(error)}") from error
        if not isinstance(found, Task):
            raise ValueError(f"expected {name} to define task = Task(...), got {type(found).__name__}")
        return found
    raise ValueError(f"expected a Python file that defines a task, or one of {', '.join(TASKS)}, got {name}")


# ---- the built-in tasks ----


def _matrix(draw: Draw) -> dict[str, Any]:
    rows, columns = draw.size(), draw.size()
    return {"x": draw.array(rows, columns), "rows": rows, "columns": columns}


def _vector(draw: Draw) -> dict[str, Any]:
    n = draw.size(1, 0, 2, 3, 31, 32, 33, 255, 256, 257, 1000, 4099)
    return {"x": draw.array(n), "n": n}


def _images(draw: Draw, *samples: int) -> dict[str, Any]:
    n, c, s = draw.size(*(samples or (1, 2, 3, 7))), draw.size(1, 2, 3, 33), draw.size(1, 2, 4, 7, 33, 260)
    return {"x": draw.array(n, c, s), "N": n, "C": c, "S": s}


def _rank(draw: Draw) -> dict[str, Any]:
    images = _images(draw, 1, 2, 3, 0, 7)
    return images | {"weight": 2.0 * (images["N"] > 0)}


def _forward(draw: Draw) -> dict[str, Any]:
    """Return inputs of the second stage, for this rank, which may be empty, and another rank with data."""
    rank = _rank(draw)
    c = rank["C"]
    payloads = reference.forward_stats(rank["x"], int(rank["weight"])), reference.forward_stats(draw.array(2, c, 3), 1)
    affine = {"gamma": draw.array(c), "beta": draw.array(c)}
    return rank | affine | {"total": sum(payloads), "D": rank["N"] % 4, "eps": 1e-5}


def _backward(draw: Draw) -> dict[str, Any]:
    given = _forward(draw)
    x, elements = given["x"], given["N"] * given["S"]
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel()), dtype=torch.float64)
    saved = _normalized(**given)["saved"]
    total = reference.backward_stats(dy, x, saved) + 1
    return given | {"dy": dy, "saved": saved, "total": total, "k": given["weight"] / max(elements, 1)}


def _normalized(
    x: Tensor, total: Tensor, gamma: Tensor, beta: Tensor, D: float, eps: float, **_: Any
) -> dict[str, Tensor]:
    y, saved = reference.forward_apply(x, total, int(D) or None, gamma, beta, eps, None, None)
    return {"y": y, "saved": saved}


def _batch_norm(x: Tensor, eps: float, **_: Any) -> dict[str, Tensor]:
    mean, var = combine(reference.forward_stats(x, 1), None)[:2]
    return {"y": (x - mean[:, None]) / (var[:, None] + eps).sqrt()}


def _rounding_of_the_mean(x: Tensor, eps: float, **_: Any) -> Tensor:
    """Return the error of y if the mean is off by four units in its last place."""
    var = combine(reference.forward_stats(x, 1), None).var
    most = x.abs().amax((0, 2))
    return 1e-5 + (4 * torch.finfo(torch.float32).eps * most / (var + eps).sqrt())[:, None]


_SIZES = "int N, int C, int S"
_STAGE = (
    "x is a rank's batch, (N, C, S); N may be 0. This is a stage of synchronized batch norm: see\n"
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
            f"void moments(const float* x, float* mean, float* var, {_SIZES})",
            "The mean and the biased variance of each channel of x, which is of shape (N, C, S).",
            _images,
            lambda x, **_: dict(zip(("var", "mean"), torch.var_mean(x, (0, 2), correction=0), strict=True)),
            typical=(16, 32, 784),
            atol=1e-4,
        ),
        Task(
            f"void batch_norm(const float* x, float* y, {_SIZES}, float eps)",
            "y = (x - mean) / sqrt(var + eps) for x of shape (N, C, S), with the mean and the biased variance of\n"
            "each channel.",
            lambda draw: _images(draw) | {"eps": 1e-5},
            _batch_norm,
            typical=(16, 32, 784),
            atol=_rounding_of_the_mean,
            passes=1.5,  # x is too large for a block to keep: it is read twice, and y is written
        ),
        Task(
            f"void forward_stats(const float* x, double* payload, {_SIZES}, double weight)",
            _STAGE + "payload is (3 C + 2): [w mean, w var, w mean^2, w, m] with w = weight and m = N S.",
            _rank,
            lambda x, weight, **_: {"payload": reference.forward_stats(x, weight)},
            typical=(16, 32, 784),
            rtol=1e-6,
            atol=1e-4,
        ),
        Task(
            "void forward_apply(const float* x, const double* total, const float* gamma, const float* beta, float* y, "
            f"double* saved, {_SIZES}, double D, double eps)",
            _STAGE + "y and saved, (4, C), from the sum of all payloads, total. D = 0 stands for max(W, 1).\n"
            "saved holds mean, 1 / sigma, mean / sigma (1 - W / D) and 1 / D.",
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
