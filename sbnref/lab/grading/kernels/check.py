"""Grade kernels: whether they are legal, right and efficient, and the smallest input on which they are not.

They are compiled against the simulation and run in a process of its own (:mod:`sbnref.lab.sandbox`), which is given
tensors and gives tensors back. What they were to be is worked out here. What the kernels do to memory is watched where
they run: a file that could get at that, by a pointer or in assembly, is refused before it is compiled.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....conformance.oracle import over
from ....conformance.stages import ContractError, difference
from ....impls.build import find_cuda
from ....launch import RankError, Ranks
from ... import Kernels
from ...gpu_timing import time_file
from ...sandbox.process import GRACE, Died, Job, Student, plain
from ...watching import lines, unwritten
from .. import require_hypothesis
from ..hints import LARGE_MEAN
from .efficiency import LAYOUTS, MULTIPROCESSORS, SHAPE, SMALL, Efficiency, Spent
from .job import Functions, RefusedFile, job_of
from .report import PARTS, Fault, KernelGrade, Part
from .worker import COUNTED

EPS = 1e-5
STOPPED = Fault("the kernels do something illegal; see the part above")
ROUNDING = 1e-5  # of y, relative, besides what the mean's own rounding leads to
NEAR = 1e-3  # what is called so holds what it is called
TIMING = 300  # seconds that compiling for a GPU and timing may take
WORDS = {"mean": "mean", "var": "variance"}
_FUNCTIONS = Functions(
    """from sbnref.lab.grading.kernels.worker import Worker

worker = Worker({file}, {built})
run, writer, count, conflicts = worker.run, worker.writer, worker.count, worker.conflicts
""",
    ("run", "writer", "count", "conflicts"),
)


def check_kernels(
    target: str | Path,
    parts: Sequence[str] = PARTS,
    *,
    examples: int = 100,
    timeout: float = 60,
    memory: float = 4,
    seed: int | None = None,
    gpu: bool = False,
    hide: Sequence[str | Path] = (),
    user: str | None = None,
) -> KernelGrade:
    """Grade a file of CUDA kernels that normalizes a batch.

    Args:
        target: a file that includes ``laboratory.cuh`` and defines ``void forward(const Problem&)``; see
            ``sbnref lab template kernels``.
        parts: which of ``legal``, ``right`` and ``efficient`` to grade.
        examples: how many inputs to try.
        timeout: seconds for each part, after which the kernels are ended.
        memory: gigabytes that they may take, on Linux.
        seed: of the inputs and their numbers; None for another one each time.
        gpu: whether to time kernels that are legal and right on a CUDA GPU. They run there with the rights of whoever
            grades, and nothing checks what they access.
        hide: folders and files that they are not to see, where they can be confined.
        user: the user that they run as, such as ``'nobody'``, if root grades; None for the user who grades.

    Returns:
        The report. However the kernels fail, it is in there.

    Raises:
        ValueError: no such file, no such part, or kernels are to be timed that are not to be graded.
        RuntimeError: hypothesis, which searches for the smallest failure, or a C++ compiler is missing; or the GPU that
            is asked for, or what compiles for it.
    """
    require_hypothesis()
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"expected parts among {PARTS}, got {unknown or 'none'}")
    parts = [part for part in PARTS if part in parts]
    file = Path(target).resolve()
    if not file.is_file():
        raise ValueError(f"expected a file of kernels, but there is no file {target}")
    if gpu:
        _expect_gpu(parts)
    seed = secrets.randbelow(2**20) if seed is None else seed
    try:
        with job_of(str(target), Kernels(file), _FUNCTIONS, memory, 5 * timeout, hide, user) as (job, compiled):
            judge = Judge(compiled, job, examples, timeout, seed)
            try:
                report = judge.grade(str(target), parts)
            finally:
                judge.student.close()
    except RefusedFile as refused:
        report = no_grade(str(target), parts, refused.fault, seed)
    if gpu:
        _time(file, report)
    return report


def template(stages: bool = False) -> str:
    """The text of a file to start from: the forward pass of one process, or the four stages."""
    return Path(__file__).with_name("template_stages.cu" if stages else "template.cu").read_text(encoding="utf-8")


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


@dataclass(frozen=True)
class _Statistics:
    """What the statistics of a tensor are, in float64, and how far off float32 may be."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,)
    allowed: Tensor  # (C,), of the mean: a few units in the last place of the largest value

    @classmethod
    def of(cls, x: Tensor) -> _Statistics:
        if x.numel() == 0:
            return cls(*x.new_zeros(3, x.shape[1], dtype=torch.float64))
        values = x.double().movedim(1, 0).flatten(1)  # (C, N * S)
        var, mean = torch.var_mean(values, 1, correction=0)
        return cls(mean, var, 4 * torch.finfo(torch.float32).eps * values.abs().amax(1))

    @property
    def sigma(self) -> Tensor:  # (C,)
        return (self.var + EPS).sqrt()

    def may_be_off(self, statistic: str) -> Tensor:  # (C,)
        """By how much a statistic may be, so that y is no further off than it may be."""
        if statistic == "mean":
            return self.allowed + ROUNDING * self.sigma
        return 2 * ROUNDING * (self.var + EPS)


class _Wrong(Exception):
    """Carries what is wrong out of a search."""


class Judge:
    """Answers the three questions, one after the other."""

    def __init__(self, kernels: Kernels, job: Job, examples: int, timeout: float, seed: int) -> None:
        self.kernels, self.examples, self.timeout, self.seed = kernels, examples, timeout, seed
        self.student = Student(job)
        self._stopped = 0  # inputs of a search on which the kernels did something illegal

    def grade(self, target: str, parts: Sequence[str]) -> KernelGrade:
        try:
            self.student.start(self.timeout)
        except Died as death:
            return no_grade(target, parts, Fault(death.what, printed=death.printed), self.seed, status_of(death))
        self.student.job = replace(self.student.job, confined=self.student.unconfined is None)
        graded, efficiency = [], None
        if "legal" in parts:
            graded.append(self._search("legal", self._legal))
        if "right" in parts:
            graded.append(self._search("right", self._right))
        if "efficient" in parts:
            efficiency, part = self._count()
            graded.append(part)
        return KernelGrade(target, graded, efficiency, self.seed, self.student.unconfined)

    def _inputs(self) -> Any:
        return _inputs(self.seed)

    # ---- on one input ----

    def _run(self, given: Input, order: str) -> dict[str, Any]:
        out = self.student.call("run", given.tensor(), given.splits, order)
        told = [out.get(name) for name in ("y", *WORDS, "frames")] if isinstance(out, dict) else [None]
        tensors = [tensor for tensor in told if isinstance(tensor, Tensor) and not tensor.is_meta]
        wrong = [t for t in tensors[1:3] if t.shape != (given.channels,) or t.dtype != torch.float32]
        if len(tensors) < len(told) or wrong:
            raise ContractError("the process of the kernels gave no answer")
        _y_of(out, given)
        return out

    def _legal(self, given: Any) -> Fault | None:
        first, second = (self._run(given, order) for order in ("ascending", given.order))
        for out in (first, second):
            if out["refused"] is not None:
                line, other = self._lines(out["frames"])
                return Fault(plain(out["refused"]), str(given), line, other)
        if unwritten(first["y"]).any():
            return Fault("some elements of y are never written; reading them returns uninitialized memory", str(given))
        if not torch.equal(first["y"].nan_to_num(), second["y"].nan_to_num()):
            return Fault("the results depend on the order in which blocks and threads take turns", str(given))
        return None

    def _right(self, given: Any) -> Fault | None:
        out = self._run(given, "ascending")
        if out["refused"] is not None:  # which is for the other question
            self._stopped += 1
            return None
        return _off(out["y"], given)

    def _located(self, fault: Fault, given: Any) -> Fault:
        """The fault of a wrong number with the line that wrote what went wrong first.

        That is a statistic, where ``p.mean`` and ``p.var`` hold what their names say and one of them is off; or else y.
        """
        hint = LARGE_MEAN if given.values == "large mean" else None
        if fault.index is None:
            return fault
        x, channel = given.tensor(), fault.index[1]
        exact = _Statistics.of(x)
        element, name, what = sum(map(math.prod, zip(fault.index, x.stride(), strict=True))), "y", fault.what
        out = self._run(given, "ascending")
        for statistic in self._held(replace(given, values="normal")):
            got, want = float(out[statistic][channel]), float(getattr(exact, statistic)[channel])
            if not abs(got - want) <= exact.may_be_off(statistic)[channel]:
                element, name = channel, statistic
                what += f": p.{statistic}[{channel}] is {got:.7g}, and the {WORDS[statistic]} is {want:.7g}"
                break
        line, _ = self._lines(self.student.call("writer", x, given.splits, name, element))
        return replace(fault, what=what, line=line, hint=hint)

    def _held(self, mild: Input) -> list[str]:
        """Which of ``p.mean`` and ``p.var`` hold what their names say: are near it on an input that does no harm."""
        out, exact = self._run(mild, "ascending"), _Statistics.of(mild.tensor())
        return [
            name for name in WORDS if torch.allclose(out[name].double(), getattr(exact, name), rtol=NEAR, atol=NEAR)
        ]

    # ---- the questions ----

    def _search(self, name: str, question: Callable[[Input], Fault | None]) -> Part:
        """The answer on the smallest input where it is no, if there is one."""
        from ..search import CUT_SHORT, explore

        start = time.monotonic()
        late = start + 0.7 * self.timeout
        self.student.apart, self.student.deadline = None, start + self.timeout
        self._stopped = 0
        smallest: list[tuple[Fault, Input]] = []
        deaths: list[Died] = []
        tried = 0
        cut_short = False

        def fails(case: Input) -> None:
            nonlocal tried, cut_short
            if time.monotonic() > late:
                cut_short = True
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
                smallest[:] = [(fault, case)]
                raise _Wrong

        explore(self._inputs(), fails, examples=self.examples, seed=self.seed, stop=_Wrong)
        if smallest:
            fault, case = smallest[0]
            if not deaths:
                with suppress(ContractError, Died):  # of code that does something else this time
                    fault = self._located(fault, case)
            if cut_short:
                fault = replace(fault, on=f"{fault.on}{CUT_SHORT}")
            return Part(name, status_of(deaths[0]) if deaths else "failed", 0.0, tried, fault)
        if self._stopped:  # right on some inputs only is not right
            return Part(name, "not graded", 0.0, tried, STOPPED)
        if tried < self.examples / 4:
            slow = Fault(f"so slow that of {self.examples} inputs only {tried} could be tried in {self.timeout:g} s")
            return Part(name, "timed out", 0.0, tried, slow)
        return Part(name, "passed", 1.0, tried)

    def _count(self) -> tuple[Efficiency | None, Part]:
        self.student.apart, self.student.deadline = None, time.monotonic() + self.timeout
        splits = -(-MULTIPROCESSORS // SHAPE[1])
        try:
            spent = []
            for layout in LAYOUTS:
                shape = Input(SHAPE[0], SHAPE[1], SHAPE[2:], layout, "normal", splits, "ascending", 0)
                spent.append(Spent(layout, **self._counts(shape, "count", *COUNTED)))
                if (why := spent[-1].impossible()) is not None:
                    raise ContractError(f"{why}; counted on {shape}")
            small = Input(SMALL[0], SMALL[1], SMALL[2:], "contiguous", "normal", 1, "ascending", 0)
            found = Efficiency(spent, **self._counts(small, "conflicts", "shared", "conflicts"))
        except ContractError as error:
            if "kernel " in str(error):
                return None, Part("efficient", "not graded", 0.0, 0, STOPPED)
            return None, Part("efficient", "failed", 0.0, 0, Fault(str(error).removeprefix("raised ")))
        except Died as death:
            return None, Part("efficient", status_of(death), 0.0, 0, Fault(death.what, printed=death.printed))
        return found, Part("efficient", "measured", found.score)

    def _counts(self, given: Input, function: str, *names: str) -> dict[str, int]:
        """What is counted where the kernels run, on an input on which y has to be right too."""
        told = self.student.call(function, given.tensor(), given.splits)
        if (fault := _off(_y_of(told, given), given)) is not None:
            raise ContractError(f"{fault.what} where it is counted, on {fault.on}")
        counts = {name: told.get(name) for name in names}
        if not all(type(number) is int for number in counts.values()):
            raise ContractError("the process of the kernels gave no counts")
        return counts

    def _lines(self, frames: object) -> tuple[int | None, int | None]:
        """The lines of the file in which something happened, and in which what it collides with did."""
        if not isinstance(frames, Tensor) or frames.is_meta or frames.dtype != torch.int64 or frames.numel() == 0:
            return None, None
        return lines(self.kernels, frames.tolist()[:1000])


def _expect_gpu(parts: Sequence[str]) -> None:
    if not {"legal", "right"} <= set(parts):
        raise ValueError(f"expected legal and right among the parts of kernels that a GPU is to run, got {parts}")
    find_cuda()
    if not torch.cuda.is_available():
        raise RuntimeError("expected a CUDA GPU to time the kernels on, and PyTorch sees none")


def _time(file: Path, report: KernelGrade) -> None:
    """Time kernels that passed, in a process that they may take with them."""
    if not report.passed:
        report.untimed = "only kernels that are legal and right go to the GPU"
        return
    with Ranks(1, timeout=TIMING) as ranks:
        try:
            (report.timed,) = ranks.run(time_file, file)
        except (RankError, TimeoutError) as error:
            report.untimed = str(error).strip().splitlines()[-1]


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


def _y_of(told: object, given: Input) -> Tensor:
    """The kernels' y, if the process in which they run gave one."""
    y, shape = told.get("y") if isinstance(told, dict) else None, (given.samples, given.channels, *given.spatial)
    if not isinstance(y, Tensor) or y.is_meta or y.shape != shape or y.dtype != torch.float32:
        raise ContractError("the process of the kernels gave no answer")
    return y


def _off(y: Tensor, given: Input) -> Fault | None:
    """What is wrong with y by more than float32 explains."""
    x = given.tensor()
    exact = _Statistics.of(x)
    want = (x.double() - over(x, exact.mean)) / over(x, exact.sigma)
    allowed = over(x, exact.allowed) / over(x, exact.sigma) + ROUNDING * (1 + want.abs())
    apart = difference(y, want, allowed, torch.float32)
    if apart.share <= 1:
        return None
    what = "some elements of y are never written" if unwritten(y).any() else f"y is off by {apart.absolute:.3g}"
    return Fault(what, str(given), index=apart.index, expected=apart.want, given=apart.got)


def status_of(death: Died) -> str:
    """How a part ended whose process died."""
    return "timed out" if death.hung else "crashed"


def no_grade(target: str, parts: Sequence[str], fault: Fault, seed: int, status: str = "failed") -> KernelGrade:
    """The grade of a file of which nothing can be said but why."""
    first, *others = parts
    rest = [Part(name, "not graded", 0.0, fault=fault) for name in others]
    return KernelGrade(target, [Part(first, status, 0.0, fault=fault), *rest], None, seed, None)
