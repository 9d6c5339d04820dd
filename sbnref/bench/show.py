"""Results on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .results import Results, Row, table

TITLES = {
    "one_process": "One process: µs, median ± half the distance of the quartiles",
    "processes": "Several processes, one thread each: µs of a training step",
    "scaling": "Collectives: µs",
    "overhead": "Overhead on a few numbers: µs of a training step",
    "gpu": "GPU: µs of device time",
}


def show(results: Results, console: Console | None = None) -> None:
    """Print where the results are from, then a table for each suite."""
    console = console or Console()
    console.print(f"{results.machine}, {results.versions}, commit {results.commit}, {results.date}")
    for suite in dict.fromkeys(row["suite"] for row in results.rows):
        rows = [row for row in results.rows if row["suite"] == suite]
        console.print(table(rows, TITLES.get(suite, suite)))
        if any("peak_bytes" in row for row in rows):
            steps = [row for row in rows if "peak_bytes" in row]
            console.print(table(steps, "Peak memory of a training step, in sizes of the input", memory))
        if any("collectives" in row for row in rows):
            console.print(table(rows, "Collectives of a training step, and bytes each rank gives", communication))
    for collective, model in results.notes.get("scaling", {}).items():
        console.print(
            f"{collective}: {1e6 * model['alpha']:.0f} µs a message and {1e9 * model['beta']:.2f} ns a byte fit the "
            f"measurements up to {model['measured_up_to']} ranks to {model['median_error']:.0%} in the median "
            f"({model['largest_error']:.0%} at most)."
        )


def memory(row: Row) -> str:
    """Peak over the input's size."""
    return f"{row['peak_bytes'] / row['input_bytes']:.2f}"


def communication(row: Row) -> str:
    """How many collectives, and their bytes."""
    return f"{row['collectives']}: {row['bytes_sent']:,} B"


def show_comparison(rows: list[dict[str, Any]]) -> None:
    """Print what became slower or faster."""
    shown = Table(title="Ratio of the medians, after / before")
    for heading in ("layer", "what", "shape", "layout", "dtype", "ratio", ""):
        shown.add_column(heading)
    for row in sorted(rows, key=lambda row: -row["ratio"]):
        names = (str(row.get(k) or "") for k in ("layer", "what", "shape", "layout", "dtype"))
        shown.add_row(*names, f"{row['ratio']:.2f}", "" if row["verdict"] == "same" else row["verdict"])
    Console().print(shown)
