"""Judge the rows that ``gpu.py`` measures by the project's requirements, and tabulate them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Any

from gpu_layers import KERNELS, LAYERS, OURS, RELU

Row = dict[str, Any]
Cases = dict[tuple[Any, ...], Row]

EAGER, GRAPH = "eager", "graph"
TIMINGS = {
    EAGER: "called from Python, timed by events",
    GRAPH: "captured in a CUDA graph, its replay timed by events",
}
# The least speedup over a peer: in each case, and in the geometric mean.
PEERS = {"torch sync": (1.0, 2.0), "mmcv's algorithm": (0.0, 4.0), "F.batch_norm": (0.0, 0.0)}
FLOOR = 1.15  # the largest ratio to the floor beyond the cache
# In cache, launches and reductions take longer than the traffic, and no floor bounds them: there our kernels are
# compared with F.batch_norm.
IN_CACHE = (0.0, 1.0)


def verdicts(rows: list[Row], failures: list[Row], left_out: list[Any]) -> dict[str, dict[str, Any]]:
    """Judge the rows by the project's requirements.

    Each comparison is between rows with the same input, pass and timing.

    Returns:
        For each requirement whether it is ``met``, with the worst case. Missing cases leave it unmet.
    """
    answers = {}
    for timing in TIMINGS:
        of: dict[str, Cases] = {}
        for row in rows:
            if row["what"].endswith(f", {timing}"):
                case = str(row["shape"]), row["dtype"], row["layout"], row["what"]
                of.setdefault(row["layer"], {})[case] = row
        for peer, limits in PEERS.items():
            answers[f"times as fast as {peer}, {timing}"] = _faster(of.get(OURS, {}), of.get(peer, {}), *limits)
        for layer in (KERNELS, OURS):
            over = {case: row["over_floor"] for case, row in _passes(of.get(layer, {}), beyond_cache=True).items()}
            answers[f"{layer} over its floor, beyond the cache, {timing}"] = _at_most(over, FLOOR)
        within = _passes(of.get(KERNELS, {}), beyond_cache=False)
        answers[f"{KERNELS} in cache, times as fast as F.batch_norm, {timing}"] = _faster(
            within, of.get("F.batch_norm", {}), *IN_CACHE
        )
    missing = [*failures, *left_out] if rows else ["everything"]
    answers["everything was measured"] = {"met": not missing, "missing": missing}
    return answers


def _passes(cases: Cases, beyond_cache: bool) -> Cases:
    """Return the forward and backward cases, beyond the cache or within it."""
    names = ("forward", "backward")
    return {c: r for c, r in cases.items() if r["beyond_cache"] == beyond_cache and c[-1].split(",")[0] in names}


def _faster(ours: Cases, theirs: Cases, each: float, mean: float) -> dict[str, Any]:
    ratios = {case: theirs[case]["median"] / row["median"] for case, row in ours.items() if case in theirs}
    if not ratios:
        return {"met": False, "missing": "no case was measured with both"}
    worst = min(ratios, key=ratios.__getitem__)
    geometric = math.exp(statistics.fmean(map(math.log, ratios.values())))
    missing = [case for case in ours if case not in theirs]
    return {
        "met": geometric >= mean and ratios[worst] >= each and not missing,
        "geometric_mean": geometric,
        "worst": ratios[worst],
        "worst_case": worst,
        "cases": len(ratios),
        "missing": missing,
    }


def _at_most(ratios: dict[tuple[Any, ...], float], limit: float) -> dict[str, Any]:
    if not ratios:
        return {"met": False, "missing": "no case was measured"}
    worst = max(ratios, key=ratios.__getitem__)
    return {"met": ratios[worst] <= limit, "worst": ratios[worst], "worst_case": worst, "cases": len(ratios)}


def lines(rows: list[Row]) -> Iterator[str]:
    """Yield the table of the suite ``gpu``, and the host's times."""
    layers = [*LAYERS, *RELU]
    yield f"{'shape':24} {'dtype':9} {'layout':14} {'what':21} {'traffic':>8} " + " ".join(f"{n:>17}" for n in layers)
    keys = ("shape", "dtype", "layout", "what")
    for case, group in itertools.groupby(
        sorted((r for r in rows if r["suite"] == "gpu"), key=lambda r: [str(r[k]) for k in keys]),
        lambda r: [r[k] for k in keys],
    ):
        by_layer = {row["layer"]: row for row in group}
        cells = (
            f"{1e6 * by_layer[n]['median']:9.1f} ({by_layer[n]['over_floor']:5.2f})" if n in by_layer else ""
            for n in layers
        )
        traffic = 1e6 * next(iter(by_layer.values()))["traffic"]
        shape, dtype, layout, what = case
        yield f"{shape!s:24} {dtype:9} {layout:14} {what:21} {traffic:8.1f} " + " ".join(
            f"{cell:>17}" for cell in cells
        )
    yield "Microseconds; in parentheses the ratio to the layer's own floor."
    yield from (f"{timing}: {how}" for timing, how in TIMINGS.items())
    for row in rows:
        if row["suite"] == "host":
            yield f"host's time: {row['layer']}, {row['what']}: {1e6 * row['median']:.1f} µs a call"
