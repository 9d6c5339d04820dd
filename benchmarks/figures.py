"""Draw results as figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from .results import Results, Row

COLORS = ("#00798c", "#d1495b", "#edae49", "#5c677d", "#66a182", "#8d5a97", "#8c564b", "#1f3b73")


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
    """Draw the ratio of a step's time to F.batch_norm, for each shape."""
    steps = [row for row in rows if row["what"] == "forward + backward" and row["dtype"] == "float32"]
    cases = list(dict.fromkeys((tuple(row["shape"]), row["layout"]) for row in steps))
    layers = [layer for layer in dict.fromkeys(row["layer"] for row in steps) if layer != "F.batch_norm"]
    base = {(tuple(r["shape"]), r["layout"]): r["median"] for r in steps if r["layer"] == "F.batch_norm"}
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.42 * len(cases)), layout="constrained")
    for layer, color in zip(layers, cycle(COLORS)):
        mine = {(tuple(r["shape"]), r["layout"]): r for r in steps if r["layer"] == layer}
        places = [i for i, case in enumerate(cases) if case in mine]
        ratios = [mine[cases[i]]["median"] / base[cases[i]] for i in places]
        axes.plot(ratios, places, "o", color=color, label=layer)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(cases)), [f"{'×'.join(map(str, shape))}, {layout}" for shape, layout in cases])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="time of forward + backward ÷ time of eager F.batch_norm, float32; less is faster")
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def scaling(plt: Any, rows: list[Row], results: Results) -> Any:
    """Draw the measured times of the two collectives by world size."""
    sizes = sorted({row["shape"][0] for row in rows if row["shape"][0] <= 4096})
    figure, both = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axes, channels in zip(both, (sizes[0], sizes[-1]), strict=True):
        for collective, color in zip(("all-reduce", "all-gather"), cycle(COLORS)):
            points = [row for row in rows if row["layer"] == collective and row["shape"][0] == channels]
            worlds, times = [row["world_size"] for row in points], [1e6 * row["median"] for row in points]
            axes.loglog(worlds, times, "o-", color=color, label=collective)
        axes.set(title=f"{channels} channels", xlabel="ranks")
    both[0].set(ylabel=f"µs, on {results.machine['cores']} cores")
    both[0].legend(frameon=False)
    return figure


def gpu(plt: Any, rows: list[Row], results: Results) -> Any:
    """Draw the bandwidth of captured passes by the bytes to move; the roof is the bandwidth of copying."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for axes, what in zip(both, ("forward", "backward"), strict=True):
        axes.axhline(results.notes["bandwidth"] / 1e9, color="black", linewidth=0.8, label="copying")
        for layer, color in zip(layers, cycle(COLORS)):
            for layout, marker in (("contiguous", "o"), ("channels_last", "^")):
                points = [r for r in rows if (r["layer"], r["what"], r["layout"]) == (layer, f"{what}, graph", layout)]
                sizes = [row["bytes_moved"] / 1e6 for row in points]
                speeds = [row["bytes_moved"] / row["median"] / 1e9 for row in points]
                name = {"contiguous": layer, "channels_last": f"{layer}, channels-last"}[layout]
                axes.loglog(sizes, speeds, marker, color=color, markersize=4, linestyle="", label=name)
        axes.set(title=f"{what}, replayed", xlabel="MB that the pass has to move")
    both[0].set(ylabel="GB/s")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def cpu_ladder(plt: Any, rows: list[Row], results: Results) -> Any:
    """Draw the bandwidth of each layer by the tensor's size; the roof is the bandwidth of copying."""
    whats = list(dict.fromkeys(row["what"] for row in rows))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    others = {"copy": ("-", "black"), "F.batch_norm": ("--", "gray"), "impl='cpu'": (":", "black")}
    colors = cycle(COLORS)
    looks = {layer: others.get(layer) or ("-", next(colors)) for layer in layers}
    figure, panels = plt.subplots(1, len(whats), figsize=(9, 4), sharey=True, squeeze=False, layout="constrained")
    for axes, what in zip(panels[0], whats, strict=True):
        for layer, (style, color) in looks.items():
            points = [row for row in rows if (row["layer"], row["what"]) == (layer, what)]
            sizes = [math.prod(row["shape"]) * 4 / 2**20 for row in points]
            speeds = [row["bytes_moved"] / row["median"] / 1e9 for row in points]
            axes.plot(sizes, speeds, style, color=color, marker=".", label=layer)
        for cache, size in results.notes["caches"].items():
            axes.axvline(size / 2**20, color="lightgray", linewidth=0.8, zorder=0)
            axes.text(size / 2**20, 0.99, f" {cache}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(title=what, xlabel="MiB of x")
    panels[0, 0].set(ylabel="GB/s of necessary traffic")
    machine, versions = results.machine, results.versions
    figure.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores, torch {versions['torch']}, sbnref {versions['sbnref']}",
        fontsize=9,
    )
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


FIGURES: dict[str, Callable[[Any, list[Row], Results], Any]] = {
    "one_process": one_process,
    "scaling": scaling,
    "gpu": gpu,
    "cpu_ladder": cpu_ladder,
}
