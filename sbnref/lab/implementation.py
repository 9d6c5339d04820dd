"""A file of CUDA that defines stages of synchronized batch norm, as an implementation.

The functions are those of the tasks ``forward_stats``, ``forward_apply``, ``backward_stats`` and ``backward_apply``.
They take float32. The implementation updates the running statistics by the rule that all implementations share.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..impls import STAGES
from ..impls.build import BuildError, find_cuda
from ..impls.from_file import NotAnImplementation
from ..impls.simulation.rewrite import blank
from ..modes import combine
from ..running import RunningStats, update_running_stats
from .task_call import TaskCall, compiled, lines_in, unwritten
from .tasks import TASKS

_FLOAT32 = {"x", "dy", "gamma", "beta"}


class StageKernels:
    """The stages in a CUDA file; one that it does not define raises :class:`NotImplementedError`.

    On CPU tensors they run in the simulation, and a fault is a :class:`RuntimeError` that names the line; so are
    results that are not written everywhere. Threads and blocks take turns in another order at every call. CUDA tensors
    take nvcc.

    Args:
        file: defines functions with the signatures of the tasks; see ``sbnref lab template forward_stats``.

    Raises:
        ValueError: there is no such file, it does not compile, or it has none of the stages.
    """

    dtypes = (torch.float32,)

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise NotAnImplementation(f"expected a CUDA file, but there is no file {file}")
        text = blank(file.read_text(errors="replace"))
        self._tasks = [TASKS[stage] for stage in STAGES if re.search(rf"\bvoid\s+{stage}\s*\(", text)]
        if not self._tasks:
            raise NotAnImplementation(
                f"expected {file} to define {', '.join(STAGES[:-1])} or {STAGES[-1]}, but it has none of them; "
                "`sbnref lab template forward_stats` prints a file to start from"
            )
        self._file, self._orders = file.resolve(), itertools.cycle(("ascending", "descending", "random:1"))
        self._calls: dict[bool, dict[str, TaskCall]] = {}
        try:
            self._call("", cuda=False)
        except RuntimeError as error:
            raise NotAnImplementation(str(error)) from None

    def why_not(self, device: torch.device) -> str | None:
        """Why the kernels cannot run on a device."""
        if device.type not in ("cpu", "cuda"):
            return "kernels run on CUDA tensors and, in a simulation, on CPU tensors"
        try:
            if device.type == "cuda":
                find_cuda()
        except BuildError as error:
            return str(error)
        return None

    def forward_stats(self, x: Tensor, weight: int) -> Tensor:
        return self._run("forward_stats", x, {"payload": (3 * x.shape[1] + 2,)}, weight=weight)["payload"]

    def forward_apply(
        self,
        x: Tensor,
        total: Tensor,
        divisor: int | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        running: RunningStats | None,
        momentum: float | None,
    ) -> tuple[Tensor, Tensor]:
        gamma = x.new_ones(x.shape[1]) if gamma is None else gamma
        beta = x.new_zeros(x.shape[1]) if beta is None else beta
        shapes = {"y": tuple(x.shape), "saved": (4, x.shape[1])}
        out = self._run("forward_apply", x, shapes, total=total, gamma=gamma, beta=beta, D=divisor or 0, eps=eps)
        if running is not None:
            update_running_stats(running, combine(total, divisor), momentum)
        return out["y"], out["saved"]

    def backward_stats(self, dy: Tensor, x: Tensor, saved: Tensor) -> Tensor:
        return self._run("backward_stats", x, {"payload": (2 * x.shape[1],)}, dy=dy, saved=saved)["payload"]

    def backward_apply(
        self, dy: Tensor, x: Tensor, total: Tensor, saved: Tensor, gamma: Tensor | None, k: float
    ) -> Tensor:
        gamma = x.new_ones(x.shape[1]) if gamma is None else gamma
        given = {"dy": dy, "total": total, "saved": saved, "gamma": gamma, "k": k}
        return self._run("backward_apply", x, {"dx": tuple(x.shape)}, **given)["dx"]

    def _call(self, stage: str, cuda: bool) -> TaskCall | None:
        if cuda not in self._calls:
            built = compiled(self._file, self._tasks, cuda)
            self._calls[cuda] = {task.name: TaskCall(built, task.signature) for task in self._tasks}
        return self._calls[cuda].get(stage)

    def _run(self, stage: str, x: Tensor, shapes: dict[str, tuple[int, ...]], **given: Any) -> dict[str, Tensor]:
        """The results of a stage, by name, in the shapes that are given."""
        if (call := self._call(stage, x.is_cuda)) is None:
            raise NotImplementedError(f"there is no function {stage}")
        given = {"x": x, **given}
        for name in _FLOAT32 & given.keys():
            if given[name].dtype not in self.dtypes:
                raise TypeError(
                    f"expected {name} in torch.float32, which is what CUDA files take, got {given[name].dtype}"
                )
        given = {name: t.detach().contiguous() if isinstance(t, Tensor) else t for name, t in given.items()}
        n, c = x.shape[:2]
        given |= {"N": n, "C": c, "S": x.shape[2:].numel()}
        if x.is_cuda:
            return call.on_gpu(given, shapes, x.device)
        found = call.run(given, shapes, next(self._orders))
        if found["refused"] is not None:
            line, other = lines_in(self._file, Path(call.library._name), found["frames"].tolist())
            more = "" if other is None else f"; the other access is in line {other}"
            raise RuntimeError(found["refused"] + ("" if line is None else f" (line {line}{more})"))
        outputs: dict[str, Tensor] = found["outputs"]
        for name, value in outputs.items():
            if (never := unwritten(value)).any():
                first = never.nonzero()[0].tolist()
                raise RuntimeError(f"some elements of {name} are never written, such as {name}{first}")
        return outputs
