"""The report: a table of the layers, data, and a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...modes import STATS_MODES
from ..report import Report, jsonable
from .steps import Layer, Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

#: A mode's color in every figure; ``docs/_static/site.css`` has the same ones and their dark variants.
MODE_COLORS = {"default": "#b3410e", "N": "#7a3fa8", "exact": "#0b6e5b"}


class Monitor(Report):
    """The records of :func:`monitor`, the same on every rank. Printing it shows :meth:`summary`.

    Attributes:
        layers: a :class:`Layer` for each layer that was called, by name; filled when the block ends.
    """

    def __init__(self, layers: dict[str, Layer]) -> None:
        self.layers = layers

    def summary(self) -> Monitor:
        """Return the table, to print or to leave last in a notebook cell."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's types."""
        return {
            name: {
                "stats_mode": layer.stats_mode,
                "ranks": list(layer.ranks),
                "empty_share": layer.empty_share,
                "mean_off": {mode: layer.mean_off(mode) for mode in STATS_MODES},
                "var_off": {mode: layer.var_off(mode) for mode in STATS_MODES},
                "steps": [_step_dict(step) for step in layer.steps],
            }
            for name, layer in self.layers.items()
        }

    def plot(self, layers: list[str] | None = None) -> Figure:
        """Draw, for each layer and step, the elements on each rank and the error of each mode's mean.

        Args:
            layers: the names of the layers to draw; None for the four with the largest errors.

        Raises:
            RuntimeError: matplotlib is not installed.
            KeyError: a name is unknown.
        """
        try:
            from matplotlib import colormaps
            from matplotlib.figure import Figure
        except ImportError as error:
            raise RuntimeError("plot() needs matplotlib, which is not installed: pip install matplotlib") from error
        by_skew = sorted(self.layers.values(), key=lambda layer: -layer.mean_off(layer.stats_mode))
        chosen = by_skew[:4] if layers is None else [self.layers[name] for name in layers]
        # One above the other: a step is below itself, and the figure fits a phone.
        figure = Figure(figsize=(4.4, 4.4 * len(chosen)), layout="constrained")
        axes_of_layers = figure.subplots(2 * len(chosen), squeeze=False).reshape(-1, 2)
        for row, layer in zip(axes_of_layers, chosen, strict=True):
            numbers = [step.number for step in layer.steps]
            blues = colormaps["Blues"].resampled(len(layer.ranks) + 2)  # the two palest are left out
            for i, rank in enumerate(layer.ranks):
                elements = [dict(zip(step.ranks, step.elements, strict=True)).get(rank, 0) for step in layer.steps]
                style = {"color": blues(i + 2), "linewidth": 0.8, "markersize": 3}
                row[0].plot(numbers, elements, ".-", label=f"rank {rank}", **style)
            row[0].set(title=f"layer {layer.name}: elements per channel", xlabel="step")
            row[0].set_ylim(bottom=0)
            for mode in STATS_MODES:
                used = mode == layer.stats_mode
                off = [step.mean_off(mode) for step in layer.steps]
                style = {"color": MODE_COLORS[mode], "linewidth": 2.5 if used else 1.2}
                row[1].plot(numbers, off, label=f"'{mode}'{', in use' if used else ''}", **style)
            row[1].set(title="the mean is off by, in standard deviations", xlabel="step")
            for axes in row:
                axes.xaxis.get_major_locator().set_params(integer=True)
                if layer.steps:
                    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25), "ncols": 4, "frameon": False}
                    axes.legend(**below, columnspacing=1, handlelength=1.2)
        return figure

    def __rich__(self) -> Table:
        from rich.table import Table

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
        return table


def _step_dict(step: Step) -> dict[str, Any]:
    return jsonable(
        {
            "number": step.number,
            "batch_sizes": step.batch_sizes,
            "elements": step.elements,
            "empty_ranks": step.empty_ranks,
            "mean": {mode: mean.tolist() for mode, mean in step.mean.items()},
            "var": {mode: var.tolist() for mode, var in step.var.items()},
            "mean_off": {mode: step.mean_off(mode) for mode in STATS_MODES},
            "var_off": {mode: step.var_off(mode) for mode in STATS_MODES},
            "non_finite": step.non_finite,
        }
    )
