"""Results as JSON files that name their machine and versions, with tables and comparisons."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
KEY = ("suite", "layer", "what", "shape", "layout", "dtype", "world_size")  # these identify a measurement


@dataclass
class Results:
    """A run of a benchmark.

    Attributes:
        machine: the system, the processor, its cores, and the GPU.
        versions: of sbnref, torch and Python.
        commit: of the source, with ``+`` for uncommitted changes; empty outside a repository.
        date: in UTC.
        rows: a dictionary for each measurement; times in seconds.
        notes: other data of the run, for example the bandwidth of copying.
    """

    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    commit: str = field(default_factory=lambda: commit())
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def origin(self) -> str:
        """Return the machine, the versions, the commit and the date in a line for a page."""
        where = ", ".join(f"{key} {value}" for key, value in {**self.machine, **self.versions}.items())
        return f"{where}; commit `{self.commit}`, {self.date}."

    def save(self, path: Path) -> None:
        """Write the file atomically, one row per line, so that a diff of two files is readable."""
        head = {key: value for key, value in asdict(self).items() if key != "rows"}
        rows = ",\n".join(json.dumps(row) for row in self.rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(head)[:-1] + f', "rows": [\n{rows}\n]}}\n')
        beside.replace(path)


def load(path: Path) -> Results:
    """Read a file that :meth:`Results.save` wrote.

    Raises:
        ValueError: the file does not hold results.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"expected results that python -m benchmarks wrote, but {path} is not JSON: {error}"
        ) from error
    keys = {field.name for field in fields(Results)}  # the defaults would describe this machine
    if not isinstance(content, dict) or content.keys() != keys:
        raise ValueError(
            f"expected results that python -m benchmarks wrote, with {', '.join(sorted(keys))}, but {path} has others"
        )
    return Results(**content)


def machine() -> dict[str, Any]:
    """Return the system, the processor, its cores, and the GPU."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    about = {"system": f"{platform.system()} {platform.machine()}", "cpu": model, "cores": os.cpu_count()}
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def versions() -> dict[str, str]:
    """Return the versions of sbnref, torch and Python."""
    from sbnref import __version__

    return {"sbnref": __version__, "torch": torch.__version__, "python": platform.python_version()}


def commit() -> str:
    """Return the source's commit."""
    where = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=where, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except FileNotFoundError:
        return ""


# Optional values of a row: the heading, and the text of the value.
EXTRAS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "peak_bytes": ("peak memory, inputs", lambda row: f"{row['peak_bytes'] / row['input_bytes']:.2f}"),
    "collectives": ("collectives", lambda row: str(row["collectives"])),
    "bytes_sent": ("bytes given", lambda row: f"{row['bytes_sent']:,}"),
    "bytes": ("bytes given", lambda row: f"{row['bytes']:,}"),
    "host_reads": ("host reads", lambda row: str(row["host_reads"])),
    "over_parts": ("over its parts", lambda row: f"{row['over_parts']:.2f}"),
    "over_floor": ("over the floor", lambda row: f"{row['over_floor']:.2f}"),
}


def tabulate(rows: list[Row]) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Arrange the rows of a suite in a table.

    Returns:
        The headings, and for each input a line per layer: its median times ± half the distance of the quartiles, their
        ratios to the first layer's, and the optional values.
    """
    whats = list(dict.fromkeys(row["what"] for row in rows))
    extras = [(name, *how) for name, how in EXTRAS.items() if any(name in row for row in rows)]
    inputs: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        layers = inputs.setdefault(_input(row), {})
        layers.setdefault(row["layer"], {})[row["what"]] = row
    headings = ["layer", *(heading for what in whats for heading in (f"{what}, µs", "×")), *(e[1] for e in extras)]
    lines: dict[str, list[list[str]]] = {}
    for name, layers in inputs.items():
        first = next(iter(layers.values()))
        lines[name] = [
            [
                layer,
                *(cell for what in whats for cell in _time(of.get(what), first.get(what))),
                *(next((write(row) for row in reversed(of.values()) if e in row), "") for e, _, write in extras),
            ]
            for layer, of in layers.items()
        ]
    return headings, lines


def _input(row: Row) -> str:
    if row["suite"] == "scaling":  # the two collectives send different dtypes
        words = [f"{row['shape'][0]} channels"]
    else:
        words = ["×".join(map(str, row["shape"])), row["dtype"]]
    if row.get("layout") == "channels_last":
        words.append("channels-last")
    if row["world_size"] > 1:
        words.append(f"{row['world_size']} ranks")
    return ", ".join(words)


def _time(row: Row | None, first: Row | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    half = (row["third_quartile"] - row["first_quartile"]) / 2
    ratio = f"{row['median'] / first['median']:.2f}" if first is not None else ""
    return f"{1e6 * row['median']:,.0f} ±{1e6 * half:,.0f}", ratio


def compare(before: Results, after: Results) -> list[Row]:
    """Return the measurements that both have, with the ratio of their medians and a verdict.

    A row is ``slower`` or ``faster`` if the quartiles do not overlap and the medians differ by more than 5 percent.

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
