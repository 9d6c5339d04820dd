"""Watch the synchronized batch norms of a model as it trains: what each rank brought, and what each mode made of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .collectives import resolve, world_size
from .impls import reference
from .layers import input_of, synchronized_layers
from .modes import STATS_MODES, combine, fixed_divisor, payload_dtype, rank_weight
from .recompute import recomputing
from .report import Report, jsonable, ranks_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from torch.distributed import ProcessGroup

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
        sentences = [*self._skew(), *self._non_finite(), *self._disagreement()]
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

    def _disagreement(self) -> Iterator[str]:
        if (worst := max(step.disagreement for step in self.steps)) > 0:
            yield (
                f"the running statistics of two ranks differ by up to {worst:.2g}, so the ranks evaluate differently: "
                "load the same state on all of them"
            )


class Monitor(Report):
    """What :func:`monitor` recorded, the same on every rank. Printing it shows :meth:`summary`.

    Attributes:
        layers: a :class:`Layer` for each watched layer, by name.
    """

    def __init__(self, layers: dict[str, Layer]) -> None:
        self.layers = layers

    def summary(self) -> Monitor:
        """The table and the verdicts, to print or to leave last in a notebook cell."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {
            name: {
                "stats_mode": layer.stats_mode,
                "ranks": list(layer.ranks),
                "empty_share": layer.empty_share,
                "mean_off": {mode: layer.mean_off(mode) for mode in STATS_MODES},
                "var_off": {mode: layer.var_off(mode) for mode in STATS_MODES},
                "verdict": layer.verdict(),
                "steps": [_step_dict(step) for step in layer.steps],
            }
            for name, layer in self.layers.items()
        }

    def plot(self, layers: list[str] | None = None) -> Figure:
        """Per layer: the elements that each rank brought, and how far each mode's mean was off, step by step.

        Args:
            layers: the names of the layers to draw; None for the four whose mode was off the most.

        Raises:
            RuntimeError: matplotlib is not installed.
            KeyError: there is no layer of such a name.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise RuntimeError(
                "plot() draws with matplotlib, which is not installed: pip install matplotlib"
            ) from error
        if layers is None:
            by_skew = sorted(self.layers.values(), key=lambda layer: -layer.mean_off(layer.stats_mode))
            chosen = by_skew[:4]
        else:
            chosen = [self.layers[name] for name in layers]
        figure = Figure(figsize=(10, 2.6 * len(chosen)), layout="constrained")
        for row, layer in zip(figure.subplots(len(chosen), 2, squeeze=False, sharex="row"), chosen, strict=True):
            numbers = range(1, len(layer.steps) + 1)
            for place, rank in enumerate(layer.ranks):
                elements = [step.elements[place] for step in layer.steps]
                row[0].plot(numbers, elements, ".-", linewidth=0.8, markersize=3, label=f"rank {rank}")
            row[0].set(title=f"layer {layer.name}: elements per channel", xlabel="step")
            row[0].set_ylim(bottom=0)
            for mode in STATS_MODES:
                used = mode == layer.stats_mode
                off = [step.mean_off(mode) for step in layer.steps]
                row[1].plot(numbers, off, linewidth=2 if used else 1, label=f"'{mode}'{', in use' if used else ''}")
            row[1].set(title="the mean is off by, in standard deviations", xlabel="step")
            for axes in row:
                axes.xaxis.get_major_locator().set_params(integer=True)
                if layer.steps:
                    axes.legend(fontsize="small")
        return figure

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("layer", "mode"):
            table.add_column(heading)
        for heading in ("steps", "with an\nempty rank", "mean off by\n(std)", "variance\noff by", "NaN, Inf\n(steps)"):
            table.add_column(heading, justify="right")
        for layer in self.layers.values():
            table.add_row(
                layer.name,
                layer.stats_mode,
                str(len(layer.steps)),
                f"{layer.empty_share:.0%}",
                f"{layer.mean_off(layer.stats_mode):.3f}",
                f"{layer.var_off(layer.stats_mode):.1%}",
                str(sum(bool(step.non_finite) for step in layer.steps)),
            )
        return Group(table, "", *(Text(layer.verdict()) for layer in self.layers.values()))


@contextmanager
def monitor(model: nn.Module, *, every: int = 1) -> Iterator[Monitor]:
    """Watch every :class:`sbnref.SyncBatchNorm` and :class:`torch.nn.SyncBatchNorm` of a model while it trains.

    It adds one small collective per layer and recorded step, :math:`4C + 3` numbers from each rank, and waits for its
    result. Every rank of a layer's group has to be inside the block, or none. Nothing remains after it.

    Args:
        model: in training mode by the time it is called; steps in eval mode are not recorded.
        every: record each layer's first step and every so many after it.

    Raises:
        TypeError: it is not a module.
        ValueError: the model has no such layer, or ``every`` is below 1.

    Example:
        >>> layer = sbnref.SyncBatchNorm(8)
        >>> with sbnref.monitor(layer) as watch:
        ...     y = layer(torch.randn(4, 8))
        >>> watch.layers["SyncBatchNorm"].verdict()
        "layer SyncBatchNorm: 'default' gave the statistics of the whole batch."
    """
    if every < 1:
        raise ValueError(f"expected every to be at least 1, got {every}")
    watched = synchronized_layers(model, nn.SyncBatchNorm)
    layers = {name: Layer(name, getattr(layer, "stats_mode", "exact")) for name, layer in watched.items()}
    handles = [
        watched[name].register_forward_hook(_Recorder(record, every), with_kwargs=True)
        for name, record in layers.items()
    ]
    try:
        yield Monitor(layers)
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """The forward hook of one layer."""

    def __init__(self, record: Layer, every: int) -> None:
        self.record, self.every = record, every
        self.calls = 0

    @torch.no_grad()
    def __call__(self, layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> None:
        if not layer.training or recomputing():
            return
        self.calls += 1
        if (self.calls - 1) % self.every == 0:
            group = resolve(layer.process_group if isinstance(layer, nn.SyncBatchNorm) else layer.group)
            self.record.ranks = (0,) if group is None else tuple(dist.get_process_group_ranks(group))
            rows = _rows(layer, input_of(args, kwargs), group)
            self.record.steps.append(_step(rows, layer.num_features, self.record.ranks))


def _rows(layer: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:  # (G, 4C + 3)
    """Each rank's [n, mean, var + mean^2, 1 or 0, m, running mean, running variance]."""
    wide = payload_dtype(x.device)
    elements = x.numel() // x.shape[1]
    running = [b.to(wide) for b in (layer.running_mean, layer.running_var) if b is not None]
    row = torch.cat(
        [
            torch.tensor([x.shape[0]], dtype=wide, device=x.device),
            reference.forward_stats(x, min(elements, 1)),
            *running,
        ]
    )
    if group is None:
        return row[None].cpu()
    rows = [torch.empty_like(row) for _ in range(world_size(group))]
    dist.all_gather(rows, row, group=group)
    return torch.stack(rows).cpu()


def _step(rows: Tensor, channels: int, ranks: tuple[int, ...]) -> Step:
    batch_sizes, rows = [int(n) for n in rows[:, 0]], rows[:, 1:].double()
    payloads, running = rows[:, : 2 * channels + 2], rows[:, 2 * channels + 2 :]
    elements = [int(m) for m in payloads[:, -1]]
    means, variances = {}, {}
    for mode in STATS_MODES:
        weights = [rank_weight(mode, n, m) for n, m in zip(batch_sizes, elements, strict=True)]
        w = torch.tensor(weights, dtype=torch.float64)[:, None]
        total = torch.cat([w * payloads[:, :-1], payloads[:, -1:]], 1).sum(0)  # payloads have weight 1, or 0 if empty
        stats = combine(total, fixed_divisor(mode, len(elements)))
        means[mode], variances[mode] = stats.mean, stats.var
    return Step(
        tuple(batch_sizes),
        tuple(elements),
        means,
        variances,
        tuple(r for r, bad in zip(ranks, (~payloads.isfinite()).any(1), strict=True) if bad),
        _spread(running),
    )


def _spread(running: Tensor) -> float:  # (G, 2C or 0)
    """The largest difference between two ranks; infinite where one of them alone has NaN."""
    if running.numel() == 0:
        return 0.0
    nan = running.isnan()
    if (nan.any(0) != nan.all(0)).any():
        return torch.inf
    return float((running.amax(0) - running.amin(0)).nan_to_num(0).max())


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
    return statistics.fmean(finite) if finite else 0.0


def _changed(mean: float, var: float) -> str:
    """How mean and variance were scaled, in words."""
    words = [
        f"{'shrank' if change < 0 else 'stretched'} the {name} by {abs(change):.0%}"
        for name, change in (("mean", mean), ("variance", var))
    ]
    if (mean < 0) == (var < 0):
        words[1] = words[1].split(" ", 1)[1]
    return " and ".join(words)


def _step_dict(step: Step) -> dict[str, Any]:
    return jsonable(
        {
            "batch_sizes": step.batch_sizes,
            "elements": step.elements,
            "empty_ranks": step.empty_ranks,
            "mean": {mode: mean.tolist() for mode, mean in step.mean.items()},
            "var": {mode: var.tolist() for mode, var in step.var.items()},
            "mean_off": {mode: step.mean_off(mode) for mode in STATS_MODES},
            "var_off": {mode: step.var_off(mode) for mode in STATS_MODES},
            "non_finite": step.non_finite,
            "disagreement": step.disagreement,
        }
    )
