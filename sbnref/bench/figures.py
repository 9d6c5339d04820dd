"""Results as figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .growth import WORLDS, predict
from .results import Results, Row

COLORS = ("#00798c", "#d1495b", "#edae49", "#5c677d", "#66a182", "#8d5a97")


def draw(results: Results, folder: Path, name: str) -> list[Path]:
    """Draw a figure for each suite that has one, and return the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for suite, make in FIGURES.items():
        rows = [row for row in results.rows if row["suite"] == suite]
        if not rows:
            continue
        figure = make(plt, rows, results)
        paths.append(folder / f"{name}-{suite}.png")
        figure.savefig(paths[-1], dpi=160)
        plt.close(figure)
    return paths


def one_process(plt: Any, rows: list[Row], results: Results) -> Any:
    """Time of a step over that of F.batch_norm, for each shape."""
    steps = [row for row in rows if row["what"] == "forward + backward" and row["dtype"] == "float32"]
    cases = list(dict.fromkeys((tuple(row["shape"]), row["layout"]) for row in steps))
    layers = [layer for layer in dict.fromkeys(row["layer"] for row in steps) if layer != "F.batch_norm"]
    base = {(tuple(r["shape"]), r["layout"]): r["median"] for r in steps if r["layer"] == "F.batch_norm"}
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.42 * len(cases)), layout="constrained")
    for layer, color in zip(layers, COLORS, strict=False):
        mine = {(tuple(r["shape"]), r["layout"]): r for r in steps if r["layer"] == layer}
        places = [i for i, case in enumerate(cases) if case in mine]
        ratios = [mine[cases[i]]["median"] / base[cases[i]] for i in places]
        axes.plot(ratios, places, "o", color=color, label=layer)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(cases)), [f"{'×'.join(map(str, shape))}, {layout}" for shape, layout in cases])
    axes.set_xscale("log", base=2)
    axes.set(xlabel="time of forward + backward over eager F.batch_norm's, float32; less is faster")
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)
    return figure


def scaling(plt: Any, rows: list[Row], results: Results) -> Any:
    """Measured times of the two collectives and the fitted model, by world size."""
    sizes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    figure, both = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, shape in zip(both, (sizes[0], sizes[-1]), strict=True):
        for collective, color in zip(("all-reduce", "all-gather"), COLORS, strict=False):
            points = [row for row in rows if row["layer"] == collective and tuple(row["shape"]) == shape]
            worlds = [row["world_size"] for row in points]
            axes.loglog(worlds, [1e6 * row["median"] for row in points], "o", color=color, label=collective)
            model = results.notes["scaling"][collective]
            modeled = [1e6 * predict(model, collective, world, points[0]["bytes"]) for world in WORLDS]
            axes.loglog(WORLDS, modeled, "-", color=color, linewidth=1)
        axes.set(title=f"{shape[0]} channels", xlabel="ranks (points: measured; lines: the model)")
    both[0].set(ylabel="µs")
    both[0].legend(frameon=False)
    return figure


FIGURES: dict[str, Callable[[Any, list[Row], Results], Any]] = {"one_process": one_process, "scaling": scaling}
