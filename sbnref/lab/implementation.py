"""An implementation from a CUDA file that defines stages of synchronized batch norm.

The functions are those of the tasks ``forward_stats``, ``forward_apply``, ``backward_stats`` and ``backward_apply``, in
float32. The implementation updates the running statistics itself, by the rule that all implementations share.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..impls import STAGES, reference
from ..impls.build import BuildError, find_cuda
from ..impls.from_file import NotAnImplementation, not_written
from ..impls.simulation.rewrite import blank
from ..modes import combine
from ..running import update_running_stats
from .task_call import TaskCall, compiled, lines_in, unwritten
from .tasks import TASKS


class StageKernels:
    """The stages in a CUDA file. A stage that is missing raises :class:`NotImplementedError`.

    On CPU tensors they run in the simulation, in another order of threads and blocks at every call. A fault raises a
    :class:`RuntimeError` that names the line, and so do results with unwritten elements. CUDA tensors need nvcc.

    Args:
        file: defines functions with the signatures of the tasks; see ``sbnref lab template forward_stats``.

    Raises:
        ValueError: the file does not exist, does not compile, or has none of the stages.
    """

    dtypes = (torch.float32,)
    forward_stats: Callable[..., Tensor]
    forward_apply: Callable[..., tuple[Tensor, Tensor]]
    backward_stats: Callable[..., Tensor]
    backward_apply: Callable[..., Tensor]

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise NotAnImplementation(f"expected a CUDA file, got {file}, which does not exist")
        text = blank(file.read_text(errors="replace"))
        self._tasks = [TASKS[stage] for stage in STAGES if re.search(rf"\bvoid\s+{stage}\s*\(", text)]
        if not self._tasks:
            raise NotAnImplementation(
                f"expected {file} to define {', '.join(STAGES[:-1])} or {STAGES[-1]}, found none of them; "
                "`sbnref lab template forward_stats` prints a file to start from"
            )
        self._file, self._orders = file.resolve(), itertools.cycle(("ascending", "descending", "random:1"))
        self._calls = functools.cache(self._load)
        try:
            self._calls(False)
        except RuntimeError as error:
            raise NotAnImplementation(str(error)) from None
        names = [task.name for task in self._tasks]
        for stage in STAGES:
            setattr(self, stage, functools.partial(self._run, stage) if stage in names else not_written(stage))

    def why_not(self, device: torch.device) -> str | None:
        """Return why the kernels cannot run on a device, or None."""
        if device.type not in ("cpu", "cuda"):
            return "the kernels need CUDA tensors or, in the simulation, CPU tensors"
        try:
            if device.type == "cuda":
                find_cuda()
        except BuildError as error:
            return str(error)
        return None

    def _load(self, cuda: bool) -> dict[str, TaskCall]:
        built = compiled(self._file, self._tasks, cuda)
        return {task.name: TaskCall(built, task.signature) for task in self._tasks}

    def _run(self, stage: str, *arguments: Any) -> Any:
        """Call a stage with the arguments of :mod:`sbnref.impls.reference`, and return the same kind of result."""
        given = dict(zip(inspect.signature(getattr(reference, stage)).parameters, arguments, strict=True))
        x: Tensor = given["x"]
        channels, divisor, running = x.shape[1], given.get("divisor"), given.pop("running", None)
        call = self._calls(x.is_cuda)[stage]
        for name, default in (("gamma", x.new_ones), ("beta", x.new_zeros)):
            if name in given and given[name] is None:
                given[name] = default(channels)
        for name in ("x", "dy", "gamma", "beta"):
            if name in given and given[name].dtype not in self.dtypes:
                raise TypeError(f"expected {name} in torch.float32 for CUDA files, got {given[name].dtype}")
        given = {name: t.detach().contiguous() if isinstance(t, Tensor) else t for name, t in given.items()}
        given |= {"N": x.shape[0], "C": channels, "S": x.shape[2:].numel(), "D": divisor or 0}
        payload = 3 * channels + 2 if stage == "forward_stats" else 2 * channels
        shapes = {"y": tuple(x.shape), "dx": tuple(x.shape), "saved": (4, channels), "payload": (payload,)}
        outputs = call.on_gpu(given, shapes, x.device) if x.is_cuda else self._simulate(call, given, shapes)
        if running is not None:
            update_running_stats(running, combine(given["total"], divisor), given["momentum"])
        return (outputs["y"], outputs["saved"]) if stage == "forward_apply" else next(iter(outputs.values()))

    def _simulate(self, call: TaskCall, given: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        found = call.run(given, shapes, next(self._orders))
        if found["fault"] is not None:
            line, other = lines_in(self._file, Path(call.library._name), found["sites"])
            more = "" if other is None else f"; the other access is in line {other}"
            raise RuntimeError(found["fault"] + ("" if line is None else f" (line {line}{more})"))
        outputs: dict[str, Tensor] = found["outputs"]
        for name, value in outputs.items():
            if (missing := unwritten(name, value)) is not None:
                raise RuntimeError(missing)
        return outputs
