"""A file of kernels that defines the four stages, as an implementation.

It takes float32, in both memory formats. The running statistics are not the kernels' business: they are moved by the
rule that all implementations share.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
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
from .kernels import SPLITS, Call, Kernels, channels_last, compiled, set_order
from .recording import WARP
from .watching import Refusal, lines, mark_unwritten, unwritten, watch

THREADS = 64  # of a block: as many as show what threads of two warps do wrong, and no more, since each takes its time
_SCRATCH = {"mean", "var", "partials"}  # uninitialized before the call
_FLOAT32 = {"x", "dy", "gamma", "beta"}


class StageKernels:
    """The stages in a file of kernels; one that it does not define raises :class:`NotImplementedError`.

    On CPU tensors they run in the simulation and are watched: what CUDA does not allow is a :class:`RuntimeError` that
    names the line, and so are results that are not written everywhere. Threads and blocks take turns in another order
    every time, so that what depends on it differs from call to call. CUDA tensors take nvcc.

    Args:
        file: includes ``laboratory.cuh`` and defines functions by the stages' names, of a ``Problem``; see
            ``sbnref lab template stages``.
        built: the library of the file, where it has been compiled already.

    Raises:
        ValueError: there is no such file, it does not compile, or it has none of the stages.
    """

    dtypes = (torch.float32,)

    def __init__(self, file: Path, built: Path | None = None) -> None:
        self._kernels = replace(stages_of(file), built=built)
        self._orders = itertools.cycle(("ascending", "descending", "random:1"))
        if built is None:
            try:
                self._kernels = replace(self._kernels, built=compiled(self._kernels))
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
        payload = x.new_empty(3 * x.shape[1] + 2, dtype=torch.float64)
        return self._run("forward_stats", "payload", x, weight=weight, payload=payload)

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
        saved = x.new_empty(4, x.shape[1], dtype=torch.float64)
        gamma = x.new_ones(x.shape[1]) if gamma is None else gamma
        beta = x.new_zeros(x.shape[1]) if beta is None else beta
        affine = {"gamma": gamma, "beta": beta}
        y = self._run("forward_apply", "y", x, eps=eps, divisor=divisor or 0, total=total, saved=saved, **affine)
        if running is not None:
            update_running_stats(running, combine(total, divisor), momentum)
        return y, saved

    def backward_stats(self, dy: Tensor, x: Tensor, saved: Tensor) -> Tensor:
        payload = x.new_empty(2 * x.shape[1], dtype=torch.float64)
        return self._run("backward_stats", "payload", x, dy=dy, saved=saved, payload=payload)

    def backward_apply(
        self, dy: Tensor, x: Tensor, total: Tensor, saved: Tensor, gamma: Tensor | None, k: float
    ) -> Tensor:
        gamma = x.new_ones(x.shape[1]) if gamma is None else gamma
        return self._run("backward_apply", "dx", x, k=k, dy=dy, total=total, saved=saved, gamma=gamma)

    def _run(self, stage: str, result: str, x: Tensor, **given: Any) -> Tensor:
        """Launch a stage's kernels on arrays and numbers of a ``Problem``; its result, made here if it is as x."""
        if stage not in self._kernels.functions:
            raise NotImplementedError(f"there is no function {stage}")
        for name, tensor in {"x": x, **given}.items():
            if name in _FLOAT32 and tensor.dtype not in self.dtypes:
                raise TypeError(
                    f"expected {name} in torch.float32, which is all that a file of kernels takes, got {tensor.dtype}"
                )
        last = channels_last(x)
        x = _dense(x, last)
        if "dy" in given:
            given["dy"] = _dense(given["dy"], last)
        if result not in given:
            given[result] = torch.empty_like(x)
        channels, count = x.shape[1], x[:, 0].numel()
        splits = max(1, min(-(-SPLITS // channels), count // WARP))
        kernels = Kernels(self._kernels.file, self._kernels.functions) if x.is_cuda else self._kernels
        call = Call(kernels, x, splits=splits, room=SPLITS, **{"y": None, "payload": None, **given})
        if x.is_cuda:
            call.launch(stage)
        else:
            self._watch(call, stage, result)
        out: Tensor = given[result]
        return out

    def _watch(self, call: Call, stage: str, result: str) -> None:
        made = {result, "saved"} if stage == "forward_apply" else {result}
        for name in made:
            mark_unwritten(call.arrays[name])
        set_order(next(self._orders), call.kernels)
        refusal = watch(call, stage, written=call.arrays.keys() - made - _SCRATCH)
        if refusal is not None:
            raise RuntimeError(refusal.what + self._where(refusal))
        if (never := unwritten(call.arrays[result])).any():
            first = tuple(never.nonzero()[0].tolist())
            raise RuntimeError(f"some elements of {result} are never written, such as {result}{list(first)}")

    def _where(self, refusal: Refusal) -> str:
        line, other = lines(self._kernels, refusal.frames.tolist())
        more = "" if other is None else f"; the other access is in line {other}"
        return "" if line is None else f" (line {line}{more})"


def stages_of(file: Path) -> Kernels:
    """The stages that a file of kernels defines.

    Raises:
        NotAnImplementation: there is no such file, or it defines none.
    """
    if not file.is_file():
        raise NotAnImplementation(f"expected a file of kernels, but there is no file {file}")
    if not (found := tuple(stage for stage in STAGES if _defines(file, stage))):
        raise NotAnImplementation(
            f"expected {file} to define void {', '.join(STAGES[:-1])} or {STAGES[-1]}(const Problem&), but it has none "
            "of them; `sbnref lab template stages` prints a file to start from"
        )
    return Kernels(file, found, THREADS)


def only_stages(file: Path) -> bool:
    """Whether a file of kernels defines stages, and no ``forward`` of its own."""
    return file.is_file() and not _defines(file, "forward") and any(_defines(file, stage) for stage in STAGES)


def _defines(file: Path, function: str) -> bool:
    return defines(file.read_text(errors="replace"), function)


def defines(text: str, function: str) -> bool:
    """Whether a text defines a function of a ``Problem``."""
    return re.search(rf"\bvoid\s+{function}\s*\(\s*const\s+Problem\b[^();{{]*\)[^;{{]*{{", blank(text)) is not None


def _dense(tensor: Tensor, last: bool) -> Tensor:
    """The tensor without gaps, its channels last or not; a copy where it lies otherwise."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if last else tensor.contiguous()
