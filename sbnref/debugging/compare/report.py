"""The report: the comparison as a verdict, a table, and data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..report import Report, in_words, jsonable, times_allowed

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Row:
    """One quantity of one stage of one layer on one rank, from both implementations.

    Attributes:
        layer: its name in the model.
        stage: the stage function, ``'all-reduce'``, or ``'parameters'`` for the parameters' gradients.
        quantity: a result of the stage: payload, total, y, running_mean, dx and so on.
        rank: the rank in the default process group.
        unit: the dtype for ``ulp``.
        absolute: the largest difference.
        relative: the largest difference over the largest magnitude in its channel.
        ulp: ``relative`` in units in the last place of ``unit``.
        allowed: the difference that rounding explains, at the worst place.
        ratio: the difference over ``allowed``, at the worst place; above 1 the two diverge.
        channel: the channel of the worst place, None if the quantity has no channels.
        index: the index of the worst place.
        values: the value there from each implementation.
        exact: the value there in float64.
        wrong: the implementations that are further from float64 than rounding explains, or broke the contract.
        problems: by implementation, an error, a result of the wrong kind, or two results in two runs.
    """

    layer: str
    stage: str
    quantity: str
    rank: int
    unit: str
    absolute: float
    relative: float
    ulp: float
    allowed: float
    ratio: float
    channel: int | None
    index: tuple[int, ...]
    values: dict[str, float]
    exact: float
    wrong: tuple[str, ...]
    problems: dict[str, str]

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference, and there was no problem."""
        return self.ratio <= 1 and not self.problems


class Comparison(Report):
    """The result of :func:`compare`. Printing it, or leaving it last in a notebook cell, shows a table.

    Attributes:
        impls: the names of the two implementations.
        rows: a :class:`Row` for each rank, layer, stage and quantity; layers in the order in which they were called.
    """

    def __init__(self, impls: tuple[str, str], rows: list[Row]) -> None:
        self.impls = impls
        self.rows = rows

    @property
    def agrees(self) -> bool:
        """Whether rounding explains every difference."""
        return all(row.agrees for row in self.rows)

    @property
    def empty(self) -> bool:
        """Whether every layer's input was empty on every rank, so that there was next to nothing to compare."""
        return not any(row.index for row in self.rows if row.quantity == "dx")

    @property
    def first_divergence(self) -> Row | None:
        """The worst rank's row of the first stage that diverges, or None."""
        diverging = [row for row in self._worst_ranks() if not row.agrees]
        return diverging[0] if diverging else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's types; numbers that are not finite become None."""
        first = self.first_divergence
        return jsonable(
            {
                "impls": list(self.impls),
                "agrees": self.agrees,
                "empty": self.empty,
                "first_divergence": None if first is None else asdict(first),
                "rows": [{**asdict(row), "agrees": row.agrees} for row in self.rows],
            }
        )

    def verdict(self) -> str:
        """Return the result in a few sentences."""
        layers, ranks = len({row.layer for row in self.rows}), len({row.rank for row in self.rows})
        first = self.first_divergence
        a, b = self.impls
        if first is None and self.empty:
            return f"Nothing was compared: the input was empty on every rank. {a} and {b} both accept an empty input."
        if first is None:
            return (
                f"{a} and {b} agree in every stage of {_count(layers, 'layer')} on {_count(ranks, 'rank')}: "
                "rounding explains every difference."
            )
        place = f"The first stage that diverges is {first.stage} of layer {first.layer!r}"
        place += f", in {first.quantity} on rank {first.rank}"
        if first.problems:
            return f"{place}: " + "; ".join(f"{impl} {problem}" for impl, problem in first.problems.items()) + "."
        at = f"channel {first.channel}, index {first.index}" if first.channel is not None else f"index {first.index}"
        values = ", ".join(f"{impl} gave {value:.9g}" for impl, value in first.values.items())
        wrong = in_words(first.wrong or ["neither"])
        verdict = f"Further from float64 than rounding explains: {wrong}."
        return (
            f"{place}, worst at {at}: {values}, float64 gives {first.exact:.9g}. "
            f"They are {first.absolute:.3g} apart, {times_allowed(first.ratio)}. {verdict}"
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        layers: dict[str, list[Row]] = {}
        for row in self._worst_ranks():
            layers.setdefault(row.layer, []).append(row)
        parts: list[RenderableType] = []
        for name, rows in layers.items():
            if len(layers) <= 4 or not all(row.agrees for row in rows):
                parts += [Text(f"\nlayer {name}", "bold"), _table(rows)]
            else:
                closest = max(rows, key=lambda row: row.ratio)
                parts.append(
                    Text(f"layer {name}: agrees; {closest.quantity} comes closest, at {closest.ratio:.2f} of the limit")
                )
        color = "bold red" if not self.agrees else "yellow" if self.empty else "green"
        return Group(*parts, "", Text(self.verdict(), color))

    def _worst_ranks(self) -> list[Row]:
        """Return the row of the worst rank for each layer and quantity, layers and stages in order."""
        worst: dict[tuple[str, str, str], Row] = {}
        for row in self.rows:
            key = row.layer, row.stage, row.quantity
            if key not in worst or (bool(row.problems), row.ratio) > (bool(worst[key].problems), worst[key].ratio):
                worst[key] = row
        return list(worst.values())


def _table(rows: list[Row]) -> RenderableType:
    """Return one layer's quantities, in the order of the stages; fits a terminal of 80 columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading, width in (("stage", 14), ("quantity", 12)):
        table.add_column(heading, min_width=width)
    for heading, width in (("rank", 4), ("absolute", 8), ("relative", 8), ("ulp", 7), ("/ allowed", 9)):
        table.add_column(heading, min_width=width, justify="right")
    table.add_column("", min_width=8)
    stage = ""
    for row in rows:
        table.add_row(
            row.stage if row.stage != stage else "",
            {"num_batches_tracked": "steps"}.get(row.quantity, row.quantity.removeprefix("backward ")),
            str(row.rank),
            *(_short(v) for v in (row.absolute, row.relative, row.ulp)),
            f"{row.ratio:.2f}" if row.ratio < 100 else _short(row.ratio),
            Text("agrees", "green") if row.agrees else Text("DIVERGES", "bold red"),
        )
        stage = row.stage
    return table


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
