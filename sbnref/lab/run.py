"""``sbnref lab run``: run a CUDA program in the simulation, and report its faults and its launches."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..debugging.report import Report
from ..impls.compiling import DoesNotCompile
from ..impls.simulation import compile_program
from .kernels import LABORATORY, SECTOR
from .lines import Place, places

if TYPE_CHECKING:
    from rich.console import RenderableType

_FAULTY = 99  # the exit status of a program ended by a fault


@dataclass(frozen=True)
class Fault:
    """An operation that CUDA does not allow."""

    what: str  # a sentence; for kernels it names the kernel, the block and the thread
    at: Sequence[Place] = ()  # the line, and the lines of the calls that led there; empty if unknown
    other: Sequence[Place] = ()  # likewise for the access that it collides with
    handled: bool = False  # whether the program has read the error of a failed call


class Run(Report):
    """The result of a program. Printing it shows the first fault, or a table of the launches."""

    def __init__(self, program: Path, report: dict[str, Any], status: int) -> None:
        faults = [*filter(None, [report["fault"]]), *report["failed_calls"]]
        sites = [site for fault in faults for site in (fault["at"], fault.get("other", []))]
        found = iter(places(program, sites + [leak["at"] for leak in report["leaks"]]))  # in this order

        known = [Fault(fault["what"], next(found), next(found), fault.get("handled", False)) for fault in faults]
        #: the fault that ended the program, or None
        self.fault = known.pop(0) if report["fault"] else None
        #: launches with an invalid configuration, and other calls that returned an error; they fail the run unless the
        #: program has read the error, with ``cudaGetLastError`` for example
        self.failed_calls = known
        #: arrays that were never freed
        self.leaks = [Fault(f"{leak['name']}, {leak['bytes']} bytes", next(found)) for leak in report["leaks"]]
        #: for each launch: ``kernel``, ``line``, ``grid``, ``block``, ``shared_bytes`` of a block, ``bytes_read`` and
        #: ``bytes_written`` by the threads, ``accesses`` of warps to global memory, the 32-byte ``sectors`` touched,
        #: ``shared_accesses`` of warps, and bank ``conflicts`` in extra cycles
        self.launches: list[dict[str, Any]] = report["launches"]
        self.status = status  #: the program's exit status, negative for a signal

    @property
    def passed(self) -> bool:
        """Whether the program exited with 0 and did nothing that CUDA does not allow."""
        return self.fault is None and all(call.handled for call in self.failed_calls) and self.status == 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's types."""

        def plain(fault: Fault | None) -> Any:
            return fault and {"what": fault.what, "at": [*map(str, fault.at)], "other": [*map(str, fault.other)]}

        return {
            "fault": plain(self.fault),
            "failed_calls": [{**plain(call), "handled": call.handled} for call in self.failed_calls],
            "leaks": [*map(plain, self.leaks)],
            "launches": self.launches,
            "status": self.status,
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = []
        for fault in [*([] if self.fault is None else [self.fault]), *self.failed_calls]:
            mark = ("warning: ", "yellow") if fault.handled else ("✗ ", "bold red")
            parts.append(Text.assemble(mark, (fault.what, "bold")))
            parts += [Text(f"    at {place}") for place in fault.at[:1]]
            parts += [Text(f"    other access at {place}") for place in fault.other[:1]]
            parts += [Text(f"    called at {place}", "dim") for place in fault.at[1:]]
        if self.fault is None and self.status >= 0:  # a program ended by a signal leaves no report
            parts.append(_table(self.launches))
        for leak in self.leaks if self.fault is None else ():
            where = f", allocated at {leak.at[0]}" if leak.at else ""
            parts.append(Text(f"warning: never freed: {leak.what}{where}", "yellow"))
        if self.status < 0:
            number = -self.status
            name = signal.Signals(number).name if number in [*signal.Signals] else f"signal {number}"
            parts.append(Text(f"✗ the program was ended by {name}", "bold red"))
        elif self.status not in (0, _FAULTY):
            parts.append(Text(f"✗ the program exited with {self.status}", "bold red"))
        return Group(*parts)


def run(
    file: str | Path,  # CUDA source with main()
    arguments: Sequence[str] = (),  # of the program
    *,
    search: Iterable[str | Path] = (),  # more folders with headers
    flags: Iterable[str] = (),  # more compiler flags, such as -DN=64
    launches: int | None = None,  # end the program after this many launches, with exit status 0
    order: str | None = None,  # of blocks and threads: ascending, descending or random:SEED
    timeout: float | None = None,  # seconds for the program
) -> Run:
    """Compile a CUDA program and run it in the simulation. Its output goes to this process's output.

    Raises:
        ValueError: the file does not exist, or uses a feature that the simulation does not have.
        RuntimeError: it does not compile, there is no compiler, or it takes too long.
    """
    path = Path(file)
    if order is not None and not re.fullmatch(r"ascending|descending|random:\d+", order):
        raise ValueError(f"expected an order 'ascending', 'descending' or 'random:SEED', got {order!r}")
    if not path.is_file():
        raise ValueError(f"expected a CUDA source file, got {file}, which is not a file")
    try:
        program = compile_program(path, [*map(Path, search), LABORATORY], flags)
    except DoesNotCompile as error:
        if "undefined reference to `main'" not in str(error):
            raise
        raise ValueError(f"expected a program, got {file}, which has no main()") from None
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = {"SBNREF_LAB_REPORT": report, "SBNREF_LAB_LAUNCHES": launches, "SBNREF_CUDASIM_ORDER": order}
        environment = {name: str(value) for name, value in options.items() if value is not None}
        try:
            done = subprocess.run([program, *arguments], env=os.environ | environment, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{file} took longer than {timeout:g} s and was ended") from None
        found: dict[str, Any] = {"fault": None, "failed_calls": [], "launches": [], "leaks": []}
        if report.exists():
            found = json.loads(report.read_text(encoding="utf-8"))
    return Run(program, found, done.returncode)


def _table(launches: list[dict[str, Any]]) -> RenderableType:
    """Return a table of the launches; launches of one line and configuration share a row, with their sums."""
    from rich.table import Table
    from rich.text import Text

    if not launches:
        return Text("The program launched no kernel.")
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for launch in launches:
        rows.setdefault((launch["kernel"], launch["line"], *launch["grid"], *launch["block"]), []).append(launch)
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("kernel", style="bold", overflow="fold")
    for name in ("launches", "grid", "block", "read", "written", "sectors", "efficiency", "shared", "conflicts"):
        table.add_column(name, justify="right")
    keys = ("bytes_read", "bytes_written", "sectors", "conflicts")
    for same in rows.values():
        read, written, sectors, conflicts = (sum(launch[key] for launch in same) for key in keys)
        used = f"{(read + written) / (SECTOR * sectors):.0%}" if sectors else "–"
        grid, block, shared = _size(same[0]["grid"]), _size(same[0]["block"]), _bytes(same[0]["shared_bytes"])
        moved = _bytes(read), _bytes(written), f"{sectors:,}", used
        table.add_row(same[0]["kernel"], str(len(same)), grid, block, *moved, shared, f"{conflicts:,}")
    return table


def _size(size: list[int]) -> str:
    while len(size) > 1 and size[-1] == 1:
        size = size[:-1]
    return " × ".join(map(str, size))


def _bytes(size: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024 * 10:
            return f"{size:,} {unit}"
        size //= 1024
    return f"{size:,} GiB"
