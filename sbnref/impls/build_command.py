"""Building libraries on purpose, for ``sbnref build``: with progress, and one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import build


def build_all(names: Sequence[str] = ()) -> None:
    """Build libraries, and say where they lie.

    Args:
        names: some of :data:`sbnref.impls.build.LIBRARIES`; ``cpu`` and, where there is a GPU, ``cuda`` if empty.

    Raises:
        ValueError: there is no library of that name, or two cannot be loaded at once.
        BuildError: one cannot be built, or does not load; the message says why and what to do about it.
    """
    names = names or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    if unknown := [name for name in names if name not in build.LIBRARIES]:
        raise ValueError(f"expected libraries of {tuple(build.LIBRARIES)}, got {unknown}")
    if {"cuda", "simulation"} <= set(names):
        raise ValueError("expected one of cuda and simulation, got both, whose operators have the same names")
    console = Console(stderr=True)
    for name in names:
        library = build.LIBRARIES[name]
        if build.built(library) is None:
            _build(name, library, console)
        build.load(library)
        console.print(f"{name}: {build.built(library)}", highlight=False, soft_wrap=True)


def _build(name: str, library: build.Library, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeElapsedColumn(),
    )
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bars, ThreadPoolExecutor(1) as pool:
        task = bars.add_task(name, total=len(library.sources))
        building = pool.submit(build.build, library)
        while not wait([building], timeout=0.2).done:
            bars.update(task, completed=build.compiled(library))
        building.result()
