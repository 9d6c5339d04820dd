"""The records of all ranks, combined by layer and step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...modes import STATS_MODES, combine, fixed_divisor, rank_weight
from ..layers import Settings
from ..recording import Recording, Row


@dataclass(frozen=True)
class Step:
    """One step of one layer, the same on every rank. Tensors are float64.

    Attributes:
        number: the step's number, from 1; unrecorded steps count.
        ranks: the ranks that called the layer, by their number in the world. The fields below are in their order.
        batch_sizes: samples on each rank.
        elements: elements per channel on each rank.
        mean: by mode, (C,): the mean that the mode would have used.
        var: by mode, (C,): the biased variance that the mode would have used.
        local: (G, 2, C): each rank's own mean and biased variance.
        running: (G, 2, C): each rank's running mean and variance before the step, or None.
        weights: (G, 2): a projection of each rank's weight and bias.
        in_eval: the ranks whose copy of the layer was in eval mode.
        non_finite: the ranks whose input held NaN or Inf.
    """

    number: int
    ranks: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    elements: tuple[int, ...]
    mean: dict[str, Tensor]
    var: dict[str, Tensor]
    local: Tensor
    running: Tensor | None
    weights: Tensor
    in_eval: tuple[int, ...]
    non_finite: tuple[int, ...]

    @property
    def empty_ranks(self) -> tuple[int, ...]:
        """The ranks without an element, while others had some."""
        empty = tuple(r for r, m in zip(self.ranks, self.elements, strict=True) if m == 0)
        return empty if any(self.elements) else ()

    def mean_off(self, mode: str) -> float:
        """Return the distance of the mode's mean from the whole batch's, in standard deviations, over all channels."""
        std = self.var["exact"].sum().sqrt()
        return float((self.mean[mode] - self.mean["exact"]).norm() / std.clamp(min=1e-30))

    def var_off(self, mode: str) -> float:
        """Return the relative error of the mode's variance against the whole batch's."""
        true = self.var["exact"]
        return float((self.var[mode] - true).norm() / true.norm().clamp(min=1e-30))

    def scaled_by(self, mode: str) -> tuple[float, float] | None:
        """Return the factors by which the mode scaled mean and variance, or None if scaling is not its main error."""
        mean, rest = _projection(self.mean[mode], self.mean["exact"])
        var, _ = _projection(self.var[mode], self.var["exact"])
        return (mean, var) if rest < abs(1 - mean) / 2 else None


@dataclass
class Layer:
    """A layer and its steps, in one group of ranks.

    Attributes:
        name: its name in the model.
        settings: by rank, for the ranks of its group.
        steps: a :class:`Step` for each training step that was recorded.
        evaluations: a :class:`Step` for each evaluation step that was recorded.
        final: by rank, (2, C): the running statistics at the end, or None.
    """

    name: str
    settings: dict[int, Settings]
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Step] = field(default_factory=list)
    final: dict[int, Tensor | None] = field(default_factory=dict)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its group, by their number in the world."""
        return tuple(self.settings)

    @property
    def first(self) -> Settings:
        """The settings on its first rank."""
        return next(iter(self.settings.values()))

    @property
    def synchronized(self) -> bool:
        """Whether it synchronizes its statistics."""
        return bool(self.stats_mode)

    @property
    def stats_mode(self) -> str:
        """The mode it uses; ``'exact'`` for :class:`torch.nn.SyncBatchNorm`, ``''`` if it does not synchronize."""
        return self.first.stats_mode

    @property
    def empty_share(self) -> float:
        """The share of the steps in which some rank, but not all, was empty."""
        return sum(bool(step.empty_ranks) for step in self.steps) / max(len(self.steps), 1)

    def mean_off(self, mode: str) -> float:
        """Return the average of :meth:`Step.mean_off`."""
        return average(step.mean_off(mode) for step in self.steps)

    def var_off(self, mode: str) -> float:
        """Return the average of :meth:`Step.var_off`."""
        return average(step.var_off(mode) for step in self.steps)


def layers_of(recordings: dict[int, Recording]) -> list[Layer]:
    """Return the layers in the order of their calls, each once for every group of ranks that it synchronizes in."""
    names = dict.fromkeys(name for recording in recordings.values() for name in recording.settings)
    kept = _kept_by_all(list(recordings.values()))
    layers = []
    for name in names:
        settings = {rank: r.settings[name] for rank, r in sorted(recordings.items()) if name in r.settings}
        for group in dict.fromkeys(s.group for s in settings.values()):
            layer = Layer(name, {rank: s for rank, s in settings.items() if rank in group})
            rows = {rank: recordings[rank].rows[name] for rank in layer.ranks}
            layer.steps, layer.evaluations = _steps(rows, kept, False), _steps(rows, kept, True)
            layer.final = {rank: recordings[rank].final.get(name) for rank in layer.ranks}
            layers.append(layer)
    return layers


def _kept_by_all(recordings: list[Recording]) -> set[tuple[bool, int]]:
    """Return the steps that every rank still has, among those it made: a rank with more steps dropped more of them."""

    def made(recording: Recording, evaluation: bool) -> int:
        return recording.evaluation_steps if evaluation else recording.training_steps

    steps = set().union(*(recording.kept for recording in recordings))
    return {step for step in steps if all(step in r.kept or step[1] > made(r, step[0]) for r in recordings)}


def _steps(rows: dict[int, list[Row]], kept: set[tuple[bool, int]], evaluation: bool) -> list[Step]:
    """Combine the ranks' records by step. A layer that is called n times in a step has n steps of one number."""
    found: dict[tuple[int, int], dict[int, Row]] = {}
    for rank, its_rows in rows.items():
        calls: Counter[int] = Counter()
        for row in its_rows:
            if row.evaluation == evaluation and (evaluation, row.step) in kept:
                calls[row.step] += 1
                found.setdefault((row.step, calls[row.step]), {})[rank] = row
    return [_step(number, by_rank) for (number, _), by_rank in sorted(found.items())]


def _step(number: int, by_rank: dict[int, Row]) -> Step:
    ranks, rows = tuple(by_rank), list(by_rank.values())
    local = torch.stack([row.stats for row in rows])
    means, variances = {}, {}
    for mode in STATS_MODES:
        total = torch.stack([_payload(mode, row) for row in rows]).sum(0)
        means[mode], variances[mode], *_ = combine(total, fixed_divisor(mode, len(rows)))
    running = [row.running for row in rows if row.running is not None]
    return Step(
        number,
        ranks,
        tuple(row.batch_size for row in rows),
        tuple(row.elements for row in rows),
        means,
        variances,
        local,
        torch.stack(running) if len(running) == len(rows) else None,
        torch.stack([row.weights for row in rows]),
        tuple(rank for rank, row in by_rank.items() if not row.training),
        tuple(rank for rank, row in by_rank.items() if not row.stats.isfinite().all()),
    )


def _payload(mode: str, row: Row) -> Tensor:  # (3C + 2,)
    mean, var = row.stats
    w = rank_weight(mode, row.batch_size, row.elements)
    return torch.cat([w * mean, w * var, w * mean * mean, mean.new_tensor([w, row.elements])])


def _projection(got: Tensor, true: Tensor) -> tuple[float, float]:
    """Return the factor f for which f * true is nearest to got, and the remaining distance relative to true."""
    factor = float((got * true).sum() / (true * true).sum().clamp(min=1e-60))
    return factor, float((got - factor * true).norm() / true.norm().clamp(min=1e-30))


def average(values: Iterable[float]) -> float:
    """Return the average of the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else 0.0
