"""Print results on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .results import Results, tabulate

TITLES = {
    "one_process": "One process",
    "processes": "Several processes, one thread each",
    "scaling": "Collectives",
    "padding": "Padded sequences, three quarters of the positions valid",
    "overhead": "Overhead, on a few numbers",
    "gpu": "On a GPU: time of the device",
    "host": "On a GPU: time of the host, without pauses",
    "ladder": "On a GPU: the ladder of kernels of tutorial 5",
    "diagnose": "Overhead of sbnref.diagnose, every=10, on ResNet-20",
    "cpu_ladder": "On a CPU: the ladder of tutorial 11, forward",
}


def show(results: Results, console: Console | None = None) -> None:
    """Print the origin of the results, then a table for each suite."""
    console = console or Console()
    console.print(f"{results.machine}, {results.versions}, commit {results.commit}, {results.date}")
    for suite in dict.fromkeys(row["suite"] for row in results.rows):
        headings, inputs = tabulate([row for row in results.rows if row["suite"] == suite])
        table = Table(title=TITLES.get(suite, suite), title_justify="left", box=None, padding=(0, 1, 0, 0))
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for name, lines in inputs.items():
            table.add_row(f"\n[bold]{name}")
            for line in lines:
                table.add_row(*map(escape, line))
        console.print(table)


def show_comparison(rows: list[dict[str, Any]]) -> None:
    """Print the ratios of two runs, the slowest first."""
    shown = Table(title="Ratio of the medians, after / before")
    for heading in ("layer", "what", "shape", "layout", "dtype", "ratio", ""):
        shown.add_column(heading)
    for row in sorted(rows, key=lambda row: -row["ratio"]):
        names = (str(row.get(k) or "") for k in ("layer", "what", "shape", "layout", "dtype"))
        shown.add_row(*names, f"{row['ratio']:.2f}", "" if row["verdict"] == "same" else row["verdict"])
    Console().print(shown)
