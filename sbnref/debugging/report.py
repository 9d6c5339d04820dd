"""Reports for a terminal, a notebook and a log, and their shared phrases."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType


class Report(ABC):
    """A report that rich draws, also as plain text for ``print`` and as HTML for a notebook."""

    @abstractmethod
    def __rich__(self) -> RenderableType: ...

    def __str__(self) -> str:
        console = _console(self)
        return console.export_text().rstrip()

    def _repr_html_(self) -> str:
        style = "font-family: monospace; line-height: 1.2; overflow-x: auto; white-space: pre"
        return _console(self).export_html(inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>')


def _console(report: Report) -> Console:
    from rich.console import Console

    console = Console(file=io.StringIO(), record=True, width=100, force_terminal=True, force_jupyter=False)
    console.print(report)
    return console


def ranks_in_words(ranks: list[int]) -> str:
    """Return 'rank 2', or 'ranks 0, 1 and 3'."""
    return f"rank{'' if len(ranks) == 1 else 's'} {in_words(ranks)}"


def in_words(items: Sequence[Any]) -> str:
    """Return '0, 1 and 3'."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def times_allowed(ratio: float) -> str:
    """Return the ratio to the allowed difference, above 1, in words."""
    return f"{ratio:.3g} times what rounding explains" if ratio < math.inf else "which no rounding explains"


def jsonable(value: Any) -> Any:
    """Convert to JSON's types: tuples become lists, and numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: jsonable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
