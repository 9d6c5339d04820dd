"""Draws the pictures of the derivations as SVG. The package computes every number in them, when the site is built.

Drawings are 360 units wide, a phone's width. ``site.css`` gives them the theme's colors, and the motion of ``dots``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from sbnref.conformance import oracle
from sbnref.debugging import agreement
from sbnref.impls import reference
from sbnref.modes import STATS_MODES, Statistics, combine, fixed_divisor, rank_weight
from sbnref.running import RunningStats, update_running_stats

OUT = Path(__file__).resolve().parent / "_generated" / "drawings"
COLUMNS = (62, 180, 298)  # the middles of three ranks
EPS, ONE, ZERO = 1e-5, torch.ones(1).double(), torch.zeros(1).double()
PLAY = "this.parentNode.getAnimations({subtree: true}).forEach((a) => { a.currentTime = 0; a.play(); })"


def write(app: object) -> None:
    """Sphinx calls this when it starts."""
    OUT.mkdir(parents=True, exist_ok=True)
    for draw in (split, modes, payload, backward, running, second, forward, padding, precision, hang):
        (OUT / f"{draw.__name__}.html").write_text(draw(Drawing()))


class Drawing:
    """SVG elements, and how they are put together."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.moves = 0  # rounds of dots

    def add(self, tag: str, kind: str, text: str = "", **attributes: object) -> None:
        given = "".join(f' {key}="{value}"' for key, value in attributes.items())
        self.parts.append(f'<{tag} class="{kind}"{given}>{escape(text)}</{tag}>')

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        self.add("text", kind, text, x=round(x, 1), y=round(y, 1))

    def line(self, points: Sequence[tuple[float, float]], kind: str = "") -> None:
        self.add("path", kind, d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points))

    def box(self, x: float, y: float, width: float, lines: Sequence[str], kind: str = "box") -> None:
        """Lines of text in a frame that is centered on x."""
        self.add("rect", kind, x=x - width / 2, y=y, width=width, height=16 * len(lines) + 8, rx=4)
        for i, line in enumerate(lines):
            self.text(x, y + 16 * i + 16, line, "middle")

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        self.line([(x, y), (to_x, to_y - 2)], "arrow")
        self.line([(to_x - 4, to_y - 7), (to_x, to_y), (to_x + 4, to_y - 7)], "arrow")

    def exchange(self, y: float, sent: Sequence[Sequence[str]], total: str, got: Sequence[Sequence[str]]) -> float:
        """Three ranks send, the sum comes back to each; returns where it ends."""
        bottom = y + 16 * len(sent[0]) + 8
        for top, lines, starts in ((y, sent, True), (bottom + 80, got, False)):
            for x, own in zip(COLUMNS, lines, strict=True):
                self.box(x, top, 112, own)
                self.arrow(x, bottom + (0 if starts else 52), x, bottom + (28 if starts else 80))
                move = f"--from: {0 if starts else 52}px; --to: {28 if starts else 80}px; --turn: {self.moves}"
                self.add("circle", "dot", cx=x, cy=bottom, r=5, style=move)
            self.moves += 1
        self.box(180, bottom + 28, 348, [total], "box sum")
        return bottom + 80 + 16 * len(got[0]) + 8

    def spread(self, y: float, label: str, x: Tensor, place: Callable[[float], float], kind: str = "") -> None:
        """Elements as dots; below them the mean, and a standard deviation to either side."""
        mean, std = x.mean().item(), x.std(correction=0).item()
        self.text(4, y + 4, label)
        for value in x.flatten().tolist():
            self.add("circle", f"element {kind}", cx=f"{place(value):.1f}", cy=y, r=4)
        self.line([(place(mean - std), y + 13), (place(mean + std), y + 13)], f"thick {kind}")
        self.line([(place(mean), y + 7), (place(mean), y + 19)], f"thick {kind}")
        self.text(356, y + 4, f"mean {number(mean)}", "end")
        self.text(356, y + 19, f"var {number(std**2)}", "end")

    def shares(self, y: float, parts: dict[str, float]) -> None:
        """A bar that is divided as the numbers are; the last part stands out."""
        left, scale = 4.0, 352 / sum(parts.values())
        for i, (label, value) in enumerate(parts.items()):
            last = i == len(parts) - 1
            self.add(
                "rect", "bar sum" if last else "bar", x=f"{left:.1f}", y=y, width=f"{value * scale:.1f}", height=20
            )
            middle = left + value * scale / 2
            self.text(middle, y + 14, number(value), "middle")
            self.text(356 if last else left, y + 34, label, "end" if last else "")
            left += value * scale

    def curves(self, y: float, curves: dict[str, list[tuple[float, float]]], ticks: tuple[dict, dict]) -> None:
        """Curves by kind, 150 high, on axes with ``{value: label}`` as ticks."""
        (x0, x1), (y0, y1) = ((min(axis), max(axis)) for axis in ticks)
        place = lambda p: (44 + 304 * (p[0] - x0) / (x1 - x0), y + 150 - 150 * (p[1] - y0) / (y1 - y0))  # noqa: E731
        self.line([(44, y), (44, y + 150), (348, y + 150)], "axis")
        for value, label in ticks[0].items():
            self.text(place((value, y0))[0], y + 167, label, "middle")
        for value, label in ticks[1].items():
            self.text(38, place((x0, value))[1] + 4, label, "end")
        for kind, points in curves.items():
            self.line([place(point) for point in points], f"curve {kind}")

    def figure(self, height: float, caption: str) -> str:
        """The drawing for a page, with a button where something moves."""
        picture = f'<svg viewBox="0 0 360 {height:g}" role="img" aria-label="{escape(caption)}">'
        button = f'<button type="button" onclick="{PLAY}">▶ Play</button>' if self.moves else ""
        body = "\n".join([picture, *self.parts, "</svg>"])
        return f'<figure class="drawing">\n{body}\n{button}<figcaption>{escape(caption)}</figcaption>\n</figure>\n'


def number(value: float) -> str:
    """Three digits at most, with a proper minus sign."""
    return f"{round(float(value), 9) + 0:.3g}".replace("-", "−")


def numbers(x: Tensor) -> str:
    return "  ".join(map(number, x.flatten().tolist())) or "(empty)"


def ranks(*values: Sequence[float]) -> list[Tensor]:
    """Each rank's (N, 1) elements."""
    return [torch.tensor(own, dtype=torch.float64).reshape(-1, 1) for own in values]


def statistics(xs: list[Tensor], mode: str) -> tuple[list[Tensor], Tensor, Statistics]:
    """Each rank's payload, their sum, and the statistics that it says."""
    payloads = [reference.forward_stats(x, rank_weight(mode, len(x), x.numel())) for x in xs]
    total = torch.stack(payloads).sum(0)
    return payloads, total, combine(total, fixed_divisor(mode, len(xs)))


def split(d: Drawing) -> str:
    xs = ranks((1, 2, 3, 4), (3, 4, 5, 6), (8, 9, 10, 11))
    whole, place = torch.cat(xs), lambda value: 60 + value * 19
    for r, x in enumerate(xs):
        d.spread(14 + 44 * r, f"rank {r}", x, place)
    d.spread(14 + 44 * 3, "all", whole, place, "exact")
    within = sum(len(x) * x.var(correction=0) for x in xs).item() / len(whole)
    total = statistics(xs, "exact")[2].var.item()
    d.shares(196, {"within the ranks": within, "between their means": total - within})
    return d.figure(
        236,
        f"The variance of all elements, {number(total)}, is the mean of the ranks' variances, {number(within)}, plus the "
        f"variance of their means, {number(total - within)}. Ranks that do not synchronize see the first part alone.",
    )


def modes(d: Drawing) -> str:
    a, b = ranks((1, 2, 2, 3, 4, 6), (7, 9, 11))
    place = lambda value: 60 + value * 19  # noqa: E731
    for i, (label, x) in enumerate({"set a": a, "set b": b, "both": torch.cat([a, b])}.items()):
        d.spread(14 + 44 * i, label, x, place, "exact" if i == 2 else "")
    stats = statistics([a, b], "exact")[2]
    mine, yours = (len(x) * x.var(correction=0).item() for x in (a, b))
    between = (stats.elements * stats.var).item() - mine - yours
    d.shares(152, {"m v of a": mine, "of b": yours, "from the distance of the means": between})
    return d.figure(
        192,
        f"Two sets merge by Chan's formula. The larger set pulls the mean more, to {number(stats.mean)}. The sum of "
        f"squared deviations, {number(stats.elements * stats.var)}, has three parts: {number(mine)} within a, "
        f"{number(yours)} within b, and {number(between)} because the means differ.",
    )


def payload(d: Drawing) -> str:
    xs = ranks((1, 3, 5), (4, 8), ())
    payloads, total, stats = statistics(xs, "exact")
    names = ("w·mean", "w·var", "w·mean²", "w", "m")
    sent = [[f"rank {r}: {numbers(x)}", *(f"{n} = {number(v)}" for n, v in zip(names, p.tolist(), strict=True))]
            for r, (x, p) in enumerate(zip(xs, payloads, strict=True))]  # fmt: skip
    got = [[f"mean {number(stats.mean)}", f"var {number(stats.var)}"]] * 3
    end = d.exchange(2, sent, f"sum:  {'   '.join(map(number, total.tolist()))}", got)
    return d.figure(
        end + 2,
        "One all-reduce. Each rank sends five numbers per channel. Their sums come back to every rank, so that all "
        "compute the same mean and variance. The empty rank sends zeros, and takes part.",
    )


def backward(d: Drawing) -> str:
    xs, gs = ranks((1, 3), (4, 8), ()), ranks((1, 0), (0, 2), ())
    _, total, _ = statistics(xs, "exact")
    applied = [reference.forward_apply(x, total, None, None, None, EPS, None, None) for x in xs]
    stats = [reference.backward_stats(g, x, saved) for g, x, (_, saved) in zip(gs, xs, applied, strict=True)]
    sums = torch.stack(stats).sum(0)
    k = [min(len(x), 1) for x in xs]  # w / m in mode 'exact'
    dxs = [reference.backward_apply(g, x, sums, saved, None, own)
           for g, x, (_, saved), own in zip(gs, xs, applied, k, strict=True)]  # fmt: skip
    sent = [[f"rank {r}", f"x: {numbers(x)}"] for r, x in enumerate(xs)]
    middle = d.exchange(2, sent, f"forward: mean and variance of all, from {number(total[-1])} elements",
                        [[f"y: {numbers(y)}"] for y, _ in applied])  # fmt: skip
    sent = [
        [f"g: {numbers(g)}", f"Σg = {number(s[0])}", f"Σg·x̂ = {number(s[1])}"] for g, s in zip(gs, stats, strict=True)
    ]
    end = d.exchange(middle + 14, sent, f"backward: A = {number(sums[0])}   B = {number(sums[1])}",
                     [[f"dx: {numbers(dx)}"] for dx in dxs])  # fmt: skip
    return d.figure(
        end + 2,
        "Forward and backward across three ranks. Each pass has one all-reduce, and its result goes to every rank. "
        "g is the gradient that arrives at y. The empty rank takes part in both.",
    )


def running(d: Drawing) -> str:
    torch.manual_seed(0)
    means = {mode: [(0.0, 4.0)] for mode in ("default", "exact")}
    kept = {mode: RunningStats(4 * ONE, ONE.clone(), None) for mode in means}
    for step in range(1, 61):
        xs = [4 + torch.randn(0 if r == 3 and 20 < step <= 40 else 64, 1).double() for r in range(4)]
        for mode, points in means.items():
            update_running_stats(kept[mode], statistics(xs, mode)[2], 0.1)
            points.append((step, kept[mode].mean.item()))
    d.text(4, 14, "running mean (true mean: 4)")
    d.add("rect", "shade", x=44 + 304 / 3, y=24, width=304 / 3, height=150)
    d.text(196, 40, "rank 3 is empty", "middle")
    d.curves(24, means, ({0: "0", 20: "20", 40: "40", 60: "step 60"}, {2.75: "", 3: "3", 3.5: "3.5", 4: "4", 4.25: ""}))
    d.text(116, 160, "'default'", "default")
    d.text(300, 62, "'exact'", "exact")
    lowest = min(value for _, value in means["default"])
    return d.figure(
        196,
        f"Four ranks; rank 3 is empty in steps 21 to 40. The running mean of mode 'default' drifts to {number(lowest)}, "
        "towards 3 of 4 ranks × 4 = 3, and needs as long to come back. Mode 'exact' stays at the true mean.",
    )


def second(d: Drawing) -> str:
    xs, gs = ranks((1, 3), (4, 8), ()), ranks((1, 0), (0, 2), ())

    def penalty(first: Tensor) -> Tensor:  # of rank 0's first element
        inputs = [torch.cat([first.reshape(1, 1), xs[0][1:]]), *xs[1:]]
        inputs = [x if x.requires_grad else x.requires_grad_() for x in inputs]
        ys, _, _ = oracle.forward(inputs, ONE, ZERO, "exact", EPS)
        loss = sum((y * g).sum() for y, g in zip(ys, gs, strict=True))
        return sum(dx.square().sum() for dx in torch.autograd.grad(loss, inputs, create_graph=True))

    at = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    value = penalty(at)
    (slope,) = torch.autograd.grad(value, at)
    p, s = value.item(), slope.item()
    points = [(h / 10, penalty(torch.tensor(h / 10, dtype=torch.float64)).item()) for h in range(-20, 31)]
    tangent = [(1 - 1.5, p - 1.5 * s), (1 + 1.5, p + 1.5 * s)]
    low, high = min(v for _, v in points), max(v for _, v in points)
    d.text(4, 14, "P, the squared gradient on all ranks")
    d.curves(24, {"exact": points, "thin": tangent}, ({-2: "−2", 0: "0", 1: "1", 3: "x on rank 0"},
             {low: number(low), high: number(high)}))  # fmt: skip
    return d.figure(
        196,
        f"A gradient penalty P over two ranks with data and an empty one, as one element of rank 0 moves. At 1 the second "
        f"derivative through both all-reduces gives the slope {number(s)}: the line touches the curve.",
    )


def forward(d: Drawing) -> str:
    xs = ranks((1, 3, 5), (4, 8, 6), (2, 7, 9))
    moved = [torch.tensor([[1.0], [0], [0]]).double(), *[torch.zeros(3, 1).double()] * 2]
    outputs = lambda *inputs: tuple(oracle.forward(list(inputs), ONE, ZERO, "exact", EPS)[0])  # noqa: E731
    _, tangents = torch.func.jvp(outputs, tuple(xs), tuple(moved))
    scale = 52 / torch.cat(tangents).abs().max().item()
    for label, y, values, height in (("ẋ", 66, moved, 52.0), ("ẏ", 164, tangents, scale)):
        d.text(4, y + 4, label)
        d.line([(24, y), (356, y)], "axis")
        for r, x in enumerate(COLUMNS):
            d.text(x + 10, 14, f"rank {r}", "middle")
            for i, value in enumerate(values[r].flatten().tolist()):
                bar = x + 10 + 30 * (i - 1)
                top = y - max(value, 0) * height
                d.add("rect", "bar sum", x=bar - 9, y=f"{top:.1f}", width=18, height=f"{abs(value) * height:.1f}")
                d.text(bar, y + 15 if value >= 0 else y - 6, number(round(value, 2)), "middle")
    return d.figure(
        200,
        "The input moves in one element of rank 0 only (above). The outputs of all ranks move (below), because the mean "
        "and the variance do: that is why forward mode needs a sum over the ranks as well.",
    )


def padding(d: Drawing) -> str:
    xs = ranks((2, 3, 2, 4, 3, 3), (7, 9), (5,))
    for r, x in enumerate(xs):
        d.text(4, 24 + 34 * r, f"rank {r}")
        for i in range(6):
            valid = i < len(x)
            d.box(74 + 34 * i, 8 + 34 * r, 28, [number(x[i]) if valid else ""], "box sum" if valid else "box nothing")
        d.text(356, 24 + 34 * r, f"mean {number(x.mean())}", "end")
    for i, mode in enumerate(("exact", "default")):
        mean = statistics(xs, mode)[2].mean
        rule = "sum of the valid ÷ their number" if mode == "exact" else "mean of the three means"
        d.text(4, 130 + 20 * i, f"'{mode}'", mode)
        d.text(64, 130 + 20 * i, rule)
        d.text(356, 130 + 20 * i, f"mean {number(mean)}", f"end {mode}")
    return d.figure(
        156,
        "Dashed positions are padding, and enter no sum. Averaging the ranks' means, as mode 'default' does, counts the "
        "one position of rank 2 as much as the six of rank 0.",
    )


def precision(d: Drawing) -> str:
    torch.manual_seed(0)
    z = torch.randn(4096, 1).double()
    errors: dict[str, list[tuple[float, float]]] = {"default": [], "exact": []}
    negative = []
    for tenth in range(51):
        x = (z + 10 ** (tenth / 10)).float()
        true = x.double().var(correction=0).item()
        plain = (x.square().mean() - x.mean().square()).item()
        for kind, var in (("default", plain), ("exact", statistics([x], "exact")[2].var.item())):
            off = torch.tensor(abs(var - true) / true).clamp(1e-9, 1e3).log10().item()
            errors[kind].append((tenth / 10, off))
        negative += [tenth / 10] if plain < 0 else []
    d.text(4, 14, "relative error of the variance, float32")
    d.curves(24, errors, ({0: "1", 2: "100", 4: "10⁴", 5: "mean ÷ std"},
             {-9: "10⁻⁹", -6: "10⁻⁶", -3: "10⁻³", 0: "1", 3: "10³"}))  # fmt: skip
    d.text(70, 84, "E[x²] − E[x]²", "default")
    d.text(290, 146, "the layer", "end exact")
    return d.figure(
        196,
        "Cancellation in float32, for 4096 elements. The plain formula loses digits with the square of the mean; "
        f"from a mean of {number(10 ** min(negative))} standard deviations on, it can even be negative. The layer keeps "
        "its digits.",
    )


def hang(d: Drawing) -> str:
    limit = dist.distributed_c10d.default_pg_timeout.total_seconds() / 60
    for r in range(3):
        y, skips = 8 + 44 * r, r == 1
        d.text(4, y + 16, f"rank {r}")
        d.box(88, y, 64, ["call 1"], "box sum")
        d.box(162, y, 64, ["skipped" if skips else "call 2"], "box nothing" if skips else "box")
        d.box(
            278,
            y,
            148,
            ["its batch is empty" if skips else f"waits, up to {limit:g} min"],
            "none" if skips else "shade",
        )
    for start, end in ((34, 50), (94, 78)):
        d.line([(162, start), (162, end)], "arrow wait")
    d.text(4, 160, "With SBNREF_DEBUG=1 every rank stops and reports:")
    d.text(4, 178, "rank 1 did not make call 2 of this group", "default")
    return d.figure(
        186,
        "A hang. Ranks 0 and 2 wait in the second all-reduce for rank 1, which skipped the layer because it had no data. "
        f"Without the debug flag they wait for the group's timeout, with gloo {limit:g} minutes; with the flag, "
        f"{agreement._timeout():g} seconds.",
    )
