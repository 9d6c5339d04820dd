"""Somebody's kernels, graded: whether they are legal, right and frugal, and the smallest input on which they are not.

They are compiled against the simulation and run in a process of its own (:mod:`sbnref.grading.apart`), which is given
tensors and gives tensors back. What they were to be is worked out here. What the kernels do to memory is watched where
they run: a file that could get at that, by a pointer or in assembly, is refused before it is compiled.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...conformance.stages import ContractError, difference
from ...impls.target import OURS
from ...laboratory import Kernels
from ...laboratory.kernels import simulate
from ...laboratory.recording import sites_of
from ..apart.process import GRACE, Died, Job, Student, plain
from .frugal import LAYOUTS, MULTIPROCESSORS, SHAPE, SMALL, Frugality, Spent
from .inside import NOBODY
from .source import refusal
from .tell import PARTS, Fault, KernelGrade, Part

CALLS = ("run", "count", "conflicts")  # of the process in which kernels run
EPS = 1e-5
_SERVED = """import sys

sys.path.insert(0, {!r})
from sbnref.grading.kernels.inside import Served

served = Served({!r}, {!r}, {!r})
run, count, conflicts = served.run, served.count, served.conflicts
"""


def check_kernels(
    target: str | Path,
    parts: Sequence[str] = PARTS,
    *,
    examples: int = 100,
    timeout: float = 60,
    memory: float = 4,
    seed: int | None = None,
    hide: Sequence[str | Path] = (),
    user: str | None = None,
) -> KernelGrade:
    """Grade a file of CUDA kernels that normalizes a batch.

    Args:
        target: a file that includes ``laboratory.cuh`` and defines ``void forward(const Problem&)``; see
            ``sbnref check --template cuda``.
        parts: which of ``legal``, ``right`` and ``frugal`` to grade.
        examples: how many inputs to try.
        timeout: seconds for each part, after which the kernels are ended.
        memory: gigabytes that they may take, on Linux.
        seed: of the inputs and their numbers; None for another one each time.
        hide: folders that they are not to see, where they can be confined.
        user: as whom they run, such as ``'nobody'``, if root grades; None for whoever grades.

    Returns:
        The report. However the kernels fail, it is in there.

    Raises:
        ValueError: no such file, or no such part.
        RuntimeError: hypothesis, which searches for the smallest failure, or a C++ compiler is missing.
    """
    if importlib.util.find_spec("hypothesis") is None:
        raise RuntimeError(
            "sbnref check needs hypothesis, which searches for the smallest failure: pip install 'sbnref[check]'"
        )
    if unknown := [part for part in parts if part not in PARTS] or not parts:
        raise ValueError(f"expected parts among {PARTS}, got {unknown or 'none'}")
    parts = [part for part in PARTS if part in parts]
    file = Path(target).resolve()
    if not file.is_file():
        raise ValueError(f"expected a file of kernels, but there is no file {target}")
    seed = secrets.randbelow(2**20) if seed is None else seed
    text = file.read_text(errors="replace")
    if (refused := refusal(text)) is not None:
        return _none(str(target), parts, Fault(refused[1], line=refused[0]), seed)
    with tempfile.TemporaryDirectory(prefix="sbnref-check-", ignore_cleanup_errors=True) as place:
        place = os.path.realpath(place)  # as the compiler writes it into what it makes
        fast, watched = Path(place, "fast.so"), Path(place, "watched.so")
        # What was looked at is what is compiled, and nothing beside it can be included instead of what is meant.
        alone = Path(place, "alone", file.name)
        alone.parent.mkdir()
        alone.write_text(text)
        try:
            simulate(watched, Kernels(alone, recording=True))
            if "frugal" in parts:
                simulate(fast, Kernels(alone))
        except RuntimeError as error:
            return _none(str(target), parts, _complaint(alone, str(error), str(target)), seed)
        served = Path(place, "served.py")
        served.write_text(_SERVED.format(str(OURS.parent), str(alone), str(fast), str(watched)))
        seconds = 5 * timeout * (os.cpu_count() or 1)
        job = Job(str(served), place, memory, seconds, (), place=place, functions=CALLS, hide=hide, user=user)
        judge = _Judge(alone, watched, job, examples, timeout, seed)
        try:
            return judge.grade(str(target), parts)
        finally:
            judge.student.close()


def template() -> str:
    """The text of a file to start from."""
    return Path(__file__).with_name("template.cu").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Input:
    """What kernels are tried on. The simplest choice of every field comes first: there shrinking ends."""

    samples: int
    channels: int
    spatial: tuple[int, ...]
    layout: str
    values: str
    splits: int
    order: str
    seed: int

    def tensor(self) -> Tensor:
        """x, (N, C, \\*) float32."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.samples, self.channels, *self.spatial)
        if self.values == "whole numbers":
            x = torch.randint(-4, 5, shape, generator=generator).float()
        else:
            x = torch.randn(shape, generator=generator) + (1000 if self.values == "large mean" else 0)
        return x.movedim(1, -1).contiguous().movedim(-1, 1) if self.layout == "channels_last" else x

    def __str__(self) -> str:
        shape = (self.samples, self.channels, *self.spatial)
        layout = ", channels-last" if self.layout == "channels_last" else ""
        turns = "" if self.order == "ascending" else f", threads and blocks in the order {self.order}"
        return f"x of shape {shape}{layout}, values: {self.values}, p.splits {self.splits}{turns}, seed {self.seed}"


class _Wrong(Exception):
    """Carries what is wrong out of a search."""


class _Judge:
    """Answers the three questions, one after the other."""

    def __init__(self, file: Path, watched: Path, job: Job, examples: int, timeout: float, seed: int) -> None:
        self.file, self.watched, self.examples, self.timeout, self.seed = file, watched, examples, timeout, seed
        self.student = Student(job)
        self._stopped = 0  # inputs of a search on which the kernels did what is not legal

    def grade(self, target: str, parts: Sequence[str]) -> KernelGrade:
        try:
            self.student.start(self.timeout)
        except Died as death:
            return _none(target, parts, Fault(death.what, printed=death.printed), self.seed, _status(death))
        self.student.job = replace(self.student.job, confined=self.student.unconfined is None)
        graded, frugality = [], None
        if "legal" in parts:
            graded.append(self._search("legal", self._legal))
        if "right" in parts:
            graded.append(self._search("right", self._right))
        if "frugal" in parts:
            frugality, part = self._count()
            graded.append(part)
        return KernelGrade(target, graded, frugality, self.seed, self.student.unconfined)

    # ---- on one input ----

    def _run(self, given: Input, order: str) -> dict[str, Any]:
        out = self.student.call("run", given.tensor(), given.splits, order)
        if not isinstance(out, dict) or not isinstance(out.get("y"), Tensor):
            raise ContractError("the process of the kernels gave no answer")
        return out

    def _legal(self, given: Input) -> Fault | None:
        first, second = (self._run(given, order) for order in ("ascending", given.order))
        for out in (first, second):
            if out["refused"] is not None:
                line, other = self._lines(out["frames"])
                return Fault(plain(out["refused"]), str(given), line, other)
        if not torch.equal(first["y"].nan_to_num(), second["y"].nan_to_num()):
            return Fault("the results depend on the order in which blocks and threads take turns", str(given))
        return None

    def _right(self, given: Input) -> Fault | None:
        out = self._run(given, "ascending")
        x, y = given.tensor(), out["y"]
        if out["refused"] is not None:  # which is for the other question
            self._stopped += 1
            return None
        if y.shape != x.shape or y.dtype != x.dtype:
            raise ContractError(f"the process gave y of shape {tuple(y.shape)} in {y.dtype}")
        dims = [d for d in range(x.dim()) if d != 1]
        var, mean = torch.var_mean(x.double(), dims, correction=0, keepdim=True) if x.numel() else (x.sum(), x.sum())
        sigma = (var + EPS).sqrt()
        want = (x.double() - mean) / sigma
        # Float32: the mean to a few units in its last place, and the rest of the arithmetic.
        largest = x.abs().amax(dims, keepdim=True).double() if x.numel() else x.sum()
        allowed = 4 * torch.finfo(torch.float32).eps * largest / sigma + 1e-5 * (1 + want.abs())
        apart = difference(y, want, allowed.expand_as(want), torch.float32)
        if apart.share <= 1:
            return None
        unwritten = (y.view(torch.int32) == NOBODY).any()
        what = "y is not written everywhere" if unwritten else f"y is off by {apart.absolute:.3g}"
        return Fault(what, str(given), index=apart.index, expected=apart.want, given=apart.got)

    # ---- the questions ----

    def _search(self, name: str, question: Callable[[Input], Fault | None]) -> Part:
        """The answer on the smallest input where it is no, if there is one."""
        from ..search import explore  # hypothesis, which not everybody has, takes its time

        start = time.monotonic()
        late = start + 0.7 * self.timeout
        self.student.apart, self.student.deadline = None, start + self.timeout
        self._stopped = 0
        smallest: list[Fault] = []
        deaths: list[Died] = []
        tried = 0

        def fails(case: Input) -> None:
            nonlocal tried
            if time.monotonic() > late:
                return
            tried += 1
            try:
                fault = question(case)
            except ContractError as error:
                fault = Fault(str(error), str(case))
            except Died as death:  # the rest is tried in forks of another process
                deaths.append(death)
                self.student.apart = max(1.0, self.timeout / 20)
                self.student.deadline = time.monotonic() + self.timeout + GRACE
                fault = Fault(death.what, str(case), printed=death.printed)
            if fault is not None:
                smallest[:] = [fault]
                raise _Wrong

        explore(_inputs(self.seed), fails, examples=self.examples, seed=self.seed, stop=_Wrong)
        if smallest:
            return Part(name, _status(deaths[0]) if deaths else "failed", 0.0, tried, smallest[0])
        if self._stopped == tried > 0:
            return Part(name, "not graded", 0.0, tried, Fault("the kernels are stopped by what is not legal"))
        if tried < self.examples / 4:
            slow = Fault(f"so slow that of {self.examples} inputs only {tried} could be tried in {self.timeout:g} s")
            return Part(name, "timed out", 0.0, tried, slow)
        return Part(name, "passed", 1.0, tried)

    def _count(self) -> tuple[Frugality | None, Part]:
        self.student.apart, self.student.deadline = None, time.monotonic() + self.timeout
        splits = -(-MULTIPROCESSORS // SHAPE[1])
        try:
            spent = []
            for layout in LAYOUTS:
                shape = Input(SHAPE[0], SHAPE[1], SHAPE[2:], layout, "normal", splits, "ascending", 0)
                spent.append(Spent(layout, **_integers(self.student.call("count", shape.tensor(), splits))))
                if (why := spent[-1].impossible()) is not None:
                    return None, Part("frugal", "failed", 0.0, 0, Fault(why, str(shape)))
            small = Input(SMALL[0], SMALL[1], SMALL[2:], "contiguous", "normal", 1, "ascending", 0)
            found = Frugality(spent, **_integers(self.student.call("conflicts", small.tensor(), 1)))
        except ContractError as error:
            return None, Part("frugal", "failed", 0.0, 0, Fault(str(error).removeprefix("raised ")))
        except Died as death:
            return None, Part("frugal", _status(death), 0.0, 0, Fault(death.what, printed=death.printed))
        return found, Part("frugal", "measured", found.score)

    def _lines(self, frames: object) -> tuple[int | None, int | None]:
        """The lines of the file in which something happened, and in which what it collides with did."""
        if not isinstance(frames, Tensor) or frames.dtype != torch.int64 or frames.numel() == 0:
            return None, None
        sites = sites_of(self.watched, frames.tolist()[:1000])
        lines = [next((line for path, line in site if Path(path) == self.file), None) for site in sites]
        line, other, *_ = [*lines, None, None]
        return line, other


def _inputs(seed: int) -> Any:
    """Inputs, the simplest first. Their numbers follow from ``seed``."""
    from hypothesis import assume, strategies

    @strategies.composite
    def draw_input(draw: Callable[..., Any]) -> Input:
        size = strategies.sampled_from([1, 2, 3, 4, 5, 7, 8, 16, 33, 260])
        spatial = tuple(draw(size) for _ in range(draw(strategies.integers(0, 3))))
        channels = draw(strategies.sampled_from([1, 2, 3, 5, 8, 33, 40]))
        samples = draw(strategies.sampled_from([1, 2, 3, 0, 5, 300]))
        elements = samples * channels * torch.Size(spatial).numel()
        assume(elements <= 6000)
        return Input(
            samples,
            channels,
            spatial,
            draw(strategies.sampled_from(LAYOUTS)),
            draw(strategies.sampled_from(["whole numbers", "normal", "large mean"])),
            draw(strategies.integers(1, 3)),
            draw(strategies.sampled_from(["descending", "random:1", "random:2"])),
            4 * seed + draw(strategies.integers(0, 3)),
        )

    return draw_input()


def _integers(told: object) -> dict[str, int]:
    if not isinstance(told, dict) or not all(type(value) is int for value in told.values()):
        raise ContractError("the process of the kernels gave no counts")
    return told


def _status(death: Died) -> str:
    return "timed out" if death.hung else "crashed"


def _complaint(file: Path, said: str, target: str) -> Fault:
    """What the compiler said of the file, for whoever wrote it and knows it as ``target``."""
    errors = re.findall(rf"^{re.escape(str(file))}:(\d+):\d+: (?:fatal )?error: (.*)$", said, re.MULTILINE)
    if not errors:
        return Fault(said.replace(str(file), target)[:2000])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Fault(f"it does not compile: {errors[0][1]}{more}", line=int(errors[0][0]))


def _none(target: str, parts: Sequence[str], fault: Fault, seed: int, status: str = "failed") -> KernelGrade:
    """The grade of a file of which nothing can be said but why."""
    first, *others = parts
    rest = [Part(name, "not graded", 0.0) for name in others]
    return KernelGrade(target, [Part(first, status, 0.0, fault=fault), *rest], None, seed, None)
