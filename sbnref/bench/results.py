"""Results as JSON files that name their machine and versions, and what is made of them: tables, and comparisons."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

Row = dict[str, Any]
KEY = ("suite", "layer", "what", "shape", "layout", "dtype", "world_size")  # what makes two rows the same measurement


@dataclass
class Results:
    """A run of a benchmark.

    Attributes:
        machine: what it ran on.
        versions: what it ran with.
        commit: of the source, with ``+`` where it was changed since; empty where there is no repository.
        date: when, in UTC.
        rows: a dictionary for each measurement; times in seconds.
        notes: what else belongs to the results, a fitted model for example.
    """

    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    commit: str = field(default_factory=lambda: commit())
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, a row a line, so that a difference of two files can be read."""
        head = {key: value for key, value in asdict(self).items() if key != "rows"}
        rows = ",\n".join(json.dumps(row) for row in self.rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head)[:-1] + f', "rows": [\n{rows}\n]}}\n')


def load(path: Path) -> Results:
    """Read a file that :meth:`Results.save` wrote."""
    return Results(**json.loads(path.read_text()))


def machine() -> dict[str, Any]:
    """What tells one machine from another."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"system": f"{platform.system()} {platform.machine()}", "cpu": model, "cores": os.cpu_count()}


def versions() -> dict[str, str]:
    """Of what a time depends on."""
    from .. import __version__

    return {"sbnref": __version__, "torch": torch.__version__, "python": platform.python_version()}


def commit() -> str:
    """The source's commit."""
    where = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=where, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except FileNotFoundError:
        return ""


def microseconds(row: Row) -> str:
    """The median, and half the distance of the quartiles as its spread."""
    half = (row["third_quartile"] - row["first_quartile"]) / 2
    return f"{1e6 * row['median']:,.0f} ±{1e6 * half:,.0f}"


def table(rows: list[Row], title: str, cell: Callable[[Row], str] = microseconds) -> Table:
    """A line for each shape, layout, dtype and what is timed; a column for each layer."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = (*(str(row.get(k, "")) for k in ("shape", "layout", "dtype", "world_size")), row["what"])
        lines.setdefault(key, {})[row["layer"]] = row
    shown = Table(title=title)
    for heading in ("shape", "layout", "dtype", "ranks", "what"):
        shown.add_column(heading)
    for layer in layers:
        shown.add_column(layer, justify="right")
    for key, by_layer in lines.items():
        shown.add_row(*key, *(cell(by_layer[layer]) if layer in by_layer else "" for layer in layers))
    return shown


def compare(before: Results, after: Results) -> list[Row]:
    """The measurements that both have, with the ratio of their medians and whether it is more than noise.

    A row is ``slower`` or ``faster`` where the quartiles of the two do not overlap and the medians differ by more than
    5 percent; times of different machines cannot be compared.

    Raises:
        ValueError: the results are from different machines.
    """
    if before.machine != after.machine:
        raise ValueError(f"expected results of one machine, got {before.machine} and {after.machine}")
    olds = {_key(row): row for row in before.rows}
    compared = []
    for row in after.rows:
        old = olds.get(_key(row))
        if old is None:
            continue
        ratio = row["median"] / old["median"]
        verdict = "same"
        if ratio > 1.05 and row["first_quartile"] > old["third_quartile"]:
            verdict = "slower"
        elif ratio < 0.95 and row["third_quartile"] < old["first_quartile"]:
            verdict = "faster"
        compared.append({**{k: row.get(k) for k in KEY}, "ratio": ratio, "verdict": verdict})
    return compared


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(k)) for k in KEY)
