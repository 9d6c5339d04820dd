"""Try a stage on training steps, and describe its failures.

The ranks of a step run one after the other in one process, and the all-reduce between the stages is a plain sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume, strategies
from torch import Tensor

from ...conformance.oracle import over
from ...conformance.stages import Bounded, ContractError, Exact, Share, difference, run_stage
from ...debugging.report import times_allowed
from ...impls import Implementation, reference
from ...impls.user_module import error_in_words
from ...modes import STATS_MODES
from ...running import RunningStats
from ..sandbox.process import Died, Student
from .search import CUT_SHORT, Found, search

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # the simplest first
MAX_NUMBERS = 24  # a quantity with more is shown at its worst place only


@dataclass(frozen=True)
class TrainingStep:
    """A training step of a few ranks. The simplest choice of every field comes first: shrinking ends there."""

    batch_sizes: tuple[int, ...]  # of each rank
    spatial: tuple[tuple[int, ...], ...]  # of each rank
    channels: int
    stats_mode: str
    dtype: torch.dtype
    values: str
    affine: bool
    running: str
    layout: str
    seed: int

    def shares(self) -> list[Share]:
        """Return each rank's share of the step."""
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            if self.values == "whole numbers":
                return torch.randint(-4, 5, shape, generator=generator).double()
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        narrow = torch.float32 if self.dtype == torch.float64 else self.dtype
        gamma = beta = running = None
        if self.affine:
            gamma, beta = (random(self.channels) / 4 + 1).to(narrow), random(self.channels).to(narrow)
        if self.running != "none":
            mean, var = torch.zeros(self.channels), torch.ones(self.channels)
            running = RunningStats(mean, var, torch.tensor(3))
        momentum = None if self.running == "cumulative average" else 0.1
        shares = []
        for n, spatial in zip(self.batch_sizes, self.spatial, strict=True):
            x = random(n, self.channels, *spatial)
            if self.values == "large mean":
                x = x + 1000
            elif self.values == "a mean for each rank":
                x = x + over(x, random(self.channels) * 5)
            x, dy = x.to(self.dtype), random(n, self.channels, *spatial).to(self.dtype)
            if self.layout == "channels last":
                x = x.movedim(1, -1).contiguous().movedim(-1, 1)
            elif self.layout == "with gaps":
                x = torch.stack([x, x], -1)[..., 0]
            world_size = len(self.batch_sizes)
            shares.append(Share(x, dy, gamma, beta, running, 1e-5, momentum, self.stats_mode, world_size))
        return shares

    def __str__(self) -> str:
        shapes = ", ".join(str((n, self.channels, *s)) for n, s in zip(self.batch_sizes, self.spatial, strict=True))
        many = len(self.batch_sizes) > 1
        ranks = f"{len(self.batch_sizes)} ranks with inputs of shape" if many else "1 rank with input of shape"
        rest = [f"values: {self.values}", "gamma and beta" if self.affine else "no gamma or beta"]
        rest.append({"none": "no running statistics"}.get(self.running, f"running statistics: {self.running}"))
        if self.layout != "contiguous":
            rest.append(f"laid out {self.layout}")
        return f"{ranks} {shapes}, {self.dtype}, stats_mode={self.stats_mode!r}, {', '.join(rest)}, seed {self.seed}"


@strategies.composite
def steps(draw: Callable[..., Any], seed: int) -> TrainingStep:
    """Draw training steps, the simplest first. Their numbers follow from ``seed``."""
    world_size = draw(strategies.integers(1, 4))
    dimensions = draw(strategies.integers(0, 3))
    sizes = tuple(draw(strategies.integers(0, 4)) for _ in range(world_size))
    spatial = tuple(tuple(draw(strategies.integers(1, 5)) for _ in range(dimensions)) for _ in range(world_size))
    assume(world_size > 1 or sizes[0] != 1 or any(s > 1 for s in spatial[0]))  # one value per channel is invalid
    return TrainingStep(
        sizes,
        spatial,
        draw(strategies.integers(1, 4)),
        draw(strategies.sampled_from(STATS_MODES)),
        draw(strategies.sampled_from(DTYPES)),
        draw(strategies.sampled_from(["whole numbers", "normal", "a mean for each rank", "large mean"])),
        draw(strategies.booleans()),
        draw(strategies.sampled_from(["none", "momentum 0.1", "cumulative average"])),
        draw(strategies.sampled_from(["contiguous", "channels last", "with gaps"])),
        4 * seed + draw(strategies.integers(0, 3)),
    )


@dataclass
class Failure:
    """A failure of a stage."""

    step: str  # the training step in words
    what: str  # the failure in a sentence
    quantity: str | None = None  # the wrong result
    rank: int | None = None
    index: tuple[int, ...] | None = None  # the worst place
    expected: list[float] | float | None = None  # the number there, or all numbers if they are few
    given: list[float] | float | None = None  # the stage's number there, or all
    relative: float | None = None  # the largest difference, over the largest magnitude in its channel
    features: tuple[str, ...] = ()  # of the smallest step, for the hint: all of them matter
    printed: str = ""  # the last output of a process that ended


def examine(stage: str, impl: Implementation, step: TrainingStep, saved_by: Implementation) -> Failure | None:
    """Run one stage on every rank of a step, twice, and compare the results with float64.

    For a backward stage, ``forward_apply`` of ``saved_by`` makes ``saved``.
    """
    failure = functools.partial(Failure, str(step), features=features_of(step))
    shares = step.shares()
    exact = [Exact(share) for share in shares]
    expected = [e.forward_stats() for e in exact]
    total: Tensor | None = None
    saved: list[Tensor | None] = [None] * len(shares)
    rank = 0
    try:
        if stage != "forward_stats":
            total = torch.stack([e["payload"].value for e in expected]).sum(0)
            expected = [e.forward_apply(total) for e in exact]
        if stage.startswith("backward"):
            for rank, share in enumerate(shares):
                saved[rank] = _call("forward_apply", saved_by, share, total)["saved"]
            expected = [e.backward_stats() for e in exact]
        if stage == "backward_apply":
            total = torch.stack([e["backward payload"].value for e in expected]).sum(0)
            expected = [e.backward_apply(total) for e in exact]
        for rank, share in enumerate(shares):
            once, again = (_call(stage, impl, share, total, saved[rank]) for _ in range(2))
            for quantity, bounded in expected[rank].items():
                if (numbers := _off(quantity, once[quantity], bounded)) is not None:
                    return failure(quantity=quantity, rank=rank, **numbers)
            for quantity, value in once.items():
                if not torch.equal(value.nan_to_num(), again[quantity].nan_to_num()):
                    what = f"the same call gave two different results for {quantity}"
                    return failure(what, quantity=quantity, rank=rank)
    except ContractError as error:
        return failure(str(error), rank=rank)
    return None


def _call(
    stage: str, impl: Implementation, share: Share, total: Tensor | None, saved: Tensor | None = None
) -> dict[str, Tensor]:
    """Call untrusted code; raise ContractError if it raises an error or changes its inputs."""
    inputs = {"x": share.x, "dy": share.dy, "gamma": share.gamma, "total": total, "saved": saved}
    before = [(name, t, t.clone()) for name, t in inputs.items() if t is not None]
    try:
        out = run_stage(stage, impl, share, total, saved)
    except (ContractError, NotImplementedError, Died):
        raise
    except (Exception, SystemExit) as error:
        raise ContractError(f"raised {error_in_words(error)}") from None
    for name, tensor, copy in before:
        if not torch.equal(tensor.nan_to_num(), copy.nan_to_num()):
            raise ContractError(f"{stage} changed its input {name}; work on a copy")
    return out


def _off(quantity: str, got: Tensor, bounded: Bounded) -> dict[str, Any] | None:
    """Describe a quantity that differs by more than rounding; None if it does not."""
    apart = difference(got, bounded.value, bounded.allowed, bounded.unit)
    if apart.ratio <= 1:
        return None
    few = got.numel() <= MAX_NUMBERS
    return {
        "what": f"{quantity} is off by {apart.absolute:.3g}, {times_allowed(apart.ratio)}",
        "index": apart.index,
        "relative": apart.relative,
        "expected": bounded.value.tolist() if few else apart.want,
        "given": got.double().tolist() if few else apart.got,
    }


def features_of(step: TrainingStep) -> tuple[str, ...]:
    """Return the features of a step that the simplest step does not have. After shrinking, all of them matter."""
    sizes = step.batch_sizes
    found = {
        "half": step.dtype.itemsize == 2,
        "float64": step.dtype == torch.float64,
        "large mean": step.values == "large mean",
        "ranks": len(sizes) > 1,
        "empty rank": 0 in sizes and sum(sizes) > 0,
        "all empty": sum(sizes) == 0,
        "unequal batches": len({n for n in sizes if n}) > 1,
        "layout": step.layout != "contiguous",
        "cumulative": step.running == "cumulative average",
    }
    return (step.stats_mode, *(name for name, there in found.items() if there))


def search_steps(
    stage: str,
    impl: Implementation,
    *,
    saved_by: Implementation = reference,
    examples: int = 100,
    seed: int = 0,
    seconds: float = float("inf"),
    student: Student | None = None,
) -> Found[TrainingStep, Failure]:
    """Search for the smallest training step on which a stage is wrong: see :func:`examine` and :func:`search`.

    Raises:
        NotImplementedError: the stage is not written yet.
    """

    def trial(step: TrainingStep) -> Failure | None:
        return examine(stage, impl, step, saved_by)

    def died(step: TrainingStep, death: Died) -> Failure:
        return Failure(str(step), death.what, features=features_of(step), printed=death.printed)

    found = search(steps(seed), trial, died, examples, seed, seconds, student)
    if found.fault is not None and found.cut_short:
        found.fault.step += CUT_SHORT
    return found
