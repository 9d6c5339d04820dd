"""What was seen of each layer, step by step, and what a person should know of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ...modes import STATS_MODES
from ..report import ranks_in_words

TOLERABLE = 0.01  # a mean off by a hundredth of a standard deviation, a variance by a hundredth of itself


@dataclass(frozen=True)
class Step:
    """One training step of one layer, the same on every rank.

    Attributes:
        batch_sizes: samples on each rank of the layer's group.
        elements: elements per channel on each rank.
        mean: by mode, (C,) float64: the mean that the mode would have used.
        var: by mode, (C,) float64: the biased variance that the mode would have used.
        non_finite: the ranks (of the default process group) whose input held NaN or Inf.
        disagreement: the largest difference between two ranks' running statistics after the step.
    """

    batch_sizes: tuple[int, ...]
    elements: tuple[int, ...]
    mean: dict[str, Tensor]
    var: dict[str, Tensor]
    non_finite: tuple[int, ...]
    disagreement: float

    @property
    def empty_ranks(self) -> tuple[int, ...]:
        """The ranks without an element, while others had some."""
        return tuple(r for r, m in enumerate(self.elements) if m == 0) if any(self.elements) else ()

    def mean_off(self, mode: str) -> float:
        """How far the mode's mean is from the whole batch's, in standard deviations, all channels."""
        std = self.var["exact"].sum().sqrt()
        return float((self.mean[mode] - self.mean["exact"]).norm() / std.clamp(min=1e-30))

    def var_off(self, mode: str) -> float:
        """How far the mode's variance is from the whole batch's, relative to it."""
        return _relative(self.var[mode], self.var["exact"])

    def scaled_by(self, mode: str) -> tuple[float, float] | None:
        """The factors by which the mode scaled mean and variance, None where scaling is not most of what it did."""
        (mean, rest), (var, _) = (
            _projection(getattr(self, what)[mode], getattr(self, what)["exact"]) for what in ("mean", "var")
        )
        return (mean, var) if rest < abs(1 - mean) / 2 else None


@dataclass
class Layer:
    """A watched layer and its steps.

    Attributes:
        name: its name in the model.
        stats_mode: the mode it uses; ``'exact'`` for :class:`torch.nn.SyncBatchNorm`.
        ranks: those of its group, by their number in the default process group.
        steps: a :class:`Step` for each training step that was recorded.
    """

    name: str
    stats_mode: str
    ranks: tuple[int, ...] = ()
    steps: list[Step] = field(default_factory=list)

    @property
    def empty_share(self) -> float:
        """The share of the steps in which some rank, but not all, was empty."""
        return sum(bool(step.empty_ranks) for step in self.steps) / max(len(self.steps), 1)

    def mean_off(self, mode: str) -> float:
        """The average of :meth:`Step.mean_off`."""
        return _average(step.mean_off(mode) for step in self.steps)

    def var_off(self, mode: str) -> float:
        """The average of :meth:`Step.var_off`."""
        return _average(step.var_off(mode) for step in self.steps)

    def verdict(self) -> str:
        """What a person should know, in plain words."""
        if not self.steps:
            return f"layer {self.name}: no training step was seen."
        sentences = [*self._skew(), *self._non_finite(), *self._offset(), *self._disagreement()]
        return f"layer {self.name}: {'; '.join(sentences) or 'no step had data'}."

    def _skew(self) -> Iterator[str]:
        """What the layer's mode did to the statistics, in the steps with an empty rank if there are any."""
        empty = [step for step in self.steps if step.empty_ranks]
        steps = [step for step in empty or self.steps if any(step.elements) and not step.non_finite]
        if empty:
            yield f"{self.empty_share:.0%} of steps had an empty rank"
        if not steps:
            return

        def off(mode: str) -> bool:
            means, variances = (_average(getattr(s, what)(mode) for s in steps) for what in ("mean_off", "var_off"))
            return max(means, variances) > TOLERABLE

        if not off(self.stats_mode):
            yield f"'{self.stats_mode}' gave the statistics of the whole batch"
            return
        scales = [scale for step in steps if (scale := step.scaled_by(self.stats_mode)) is not None]
        if len(scales) > len(steps) / 2:
            changed = _changed(_average(s[0] for s in scales) - 1, _average(s[1] for s in scales) - 1)
        else:
            mean, var = (_average(getattr(s, what)(self.stats_mode) for s in steps) for what in ("mean_off", "var_off"))
            changed = f"moved the mean by {mean:.2f} standard deviations and the variance by {var:.0%}"
        yield f"{'in those ' if empty else ''}'{self.stats_mode}' {changed}"
        yield "use " + " or ".join(f"'{mode}'" for mode in STATS_MODES if not off(mode))

    def _non_finite(self) -> Iterator[str]:
        if bad := [(number, step) for number, step in enumerate(self.steps, 1) if step.non_finite]:
            number, step = bad[0]
            more = f" and {len(bad) - 1} later" if len(bad) > 1 else ""
            yield f"NaN or Inf came in on {ranks_in_words(list(step.non_finite))} in step {number}{more}"

    def _offset(self) -> Iterator[str]:
        """A mean so large that the rounding of the payload shows in the variance: see :func:`sbnref.modes.combine`."""
        steps = [step for step in self.steps if sum(m > 0 for m in step.elements) > 1 and not step.non_finite]
        errors = [1e-15 * step.mean["exact"] ** 2 / (step.var["exact"] + 1e-5) for step in steps]
        if errors and (worst := max(float(error.max()) for error in errors)) > TOLERABLE:
            yield (
                f"the mean is so far from zero that the variance may be off by {min(worst, 1):.0%}: "
                "subtract a constant from the input, before the layer"
            )

    def _disagreement(self) -> Iterator[str]:
        if (worst := max(step.disagreement for step in self.steps)) > 0:
            yield (
                f"the running statistics of two ranks differ by up to {worst:.2g}, so the ranks evaluate differently: "
                "load the same state on all of them"
            )


def _relative(got: Tensor, true: Tensor) -> float:
    """The distance of two vectors over the length of the second."""
    return float((got - true).norm() / true.norm().clamp(min=1e-30))


def _projection(got: Tensor, true: Tensor) -> tuple[float, float]:
    """The factor f that brings f * true nearest to got, and the distance that is left, relative to true."""
    factor = float((got * true).sum() / (true * true).sum().clamp(min=1e-60))
    return factor, float((got - factor * true).norm() / true.norm().clamp(min=1e-30))


def _average(values: Iterable[float]) -> float:
    """Of those that are finite."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else 0.0


def _changed(mean: float, var: float) -> str:
    """How mean and variance were scaled, in words."""
    words = [
        f"{'shrank' if change < 0 else 'stretched'} the {name} by {abs(change):.0%}"
        for name, change in (("mean", mean), ("variance", var))
    ]
    if (mean < 0) == (var < 0):
        words[1] = words[1].split(" ", 1)[1]
    return " and ".join(words)
