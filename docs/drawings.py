"""Draw the pictures of the derivations as SVG. The package computes every number in them at build time.

A drawing is 360 units wide, like a phone. ``site.css`` gives it the theme's colors, and moves its dots. The docstring
of a drawing function is the caption, filled with the values that the function returns beside the height.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import default_pg_timeout

from sbnref.conformance import oracle
from sbnref.debugging import agreement
from sbnref.impls import reference
from sbnref.modes import Statistics, combine, fixed_divisor, rank_weight
from sbnref.running import RunningStats, update_running_stats

OUT = Path(__file__).resolve().parent / "_generated" / "drawings"
COLUMNS = (62, 180, 298)  # the centers of three ranks
EPS, ONE, ZERO = 1e-5, torch.ones(1).double(), torch.zeros(1).double()
PLAY = "this.parentNode.getAnimations({subtree: true}).forEach((a) => { a.currentTime = 0; a.play(); })"
Caption = tuple[float, dict[str, object]]  # a drawing's height, and the values in its caption


def write(app: object) -> None:
    """Write the drawings; Sphinx calls this when it starts."""
    OUT.mkdir(parents=True, exist_ok=True)
    for draw in (split, modes, payload, backward, running, second, forward, padding, precision, hang):
        height, values = draw(drawing := Drawing())
        shown = {key: value if isinstance(value, str) else number(value) for key, value in values.items()}
        caption = escape(" ".join(draw.__doc__.format(**shown).split()))
        body = "\n".join(drawing.parts)
        button = f'<button type="button" onclick="{PLAY}">▶ Play</button>' if drawing.rounds else ""
        (OUT / f"{draw.__name__}.html").write_text(
            f'<figure class="drawing">\n<svg viewBox="0 0 360 {height:g}" role="img" aria-label="{caption}">\n{body}\n'
            f"</svg>\n{button}<figcaption>{caption}</figcaption>\n</figure>\n"
        )


class Drawing:
    """SVG elements, and the shapes that drawings share. Classes name colors and the text's alignment."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.rounds = 0  # of dots

    def add(self, tag: str, kind: str, text: str = "", **attributes: object) -> None:
        given = "".join(f' {k}="{v:.1f}"' if isinstance(v, float) else f' {k}="{v}"' for k, v in attributes.items())
        self.parts.append(f'<{tag} class="{kind}"{given}>{escape(text)}</{tag}>')

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        self.add("text", kind, text, x=x, y=y)

    def line(self, *points: tuple[float, float], kind: str = "") -> None:
        self.add("path", kind, d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points))

    def box(self, x: float, y: float, width: float, lines: Sequence[str], kind: str = "box") -> None:
        """Draw lines of text in a frame centered at x."""
        self.add("rect", kind, x=x - width / 2, y=y, width=width, height=16 * len(lines) + 8, rx=4)
        for i, line in enumerate(lines):
            self.text(x, y + 16 * i + 16, line, "middle")

    def exchange(self, y: float, sent: Sequence[Sequence[str]], total: str, got: Sequence[Sequence[str]]) -> float:
        """Draw the messages of three ranks, and the sum that returns to each. Return the lower end."""
        bottom = y + 16 * len(sent[0]) + 8
        self.box(180, bottom + 28, 348, [total], "sum")
        for top, texts, start, end in ((y, sent, bottom, bottom + 28), (bottom + 80, got, bottom + 52, bottom + 80)):
            for x, lines in zip(COLUMNS, texts, strict=True):
                self.box(x, top, 114, lines)
                self.line((x, start), (x, end))
                self.line((x - 4, end - 7), (x, end), (x + 4, end - 7))
                self.add("circle", "dot", cx=x, cy=start, r=5, style=f"--turn: {self.rounds}")
            self.rounds += 1
        return bottom + 80 + 16 * len(got[0]) + 8

    def spread(self, y: float, label: str, x: Tensor, kind: str = "") -> None:
        """Draw elements as dots, and below them the mean with a standard deviation to either side."""
        mean, std = x.mean().item(), x.std(correction=0).item()
        place: Callable[[float], float] = lambda value: 60 + value * 19  # noqa: E731
        for value in x.flatten().tolist():
            self.add("circle", f"element {kind}", cx=place(value), cy=y, r=4)
        self.line((place(mean - std), y + 13), (place(mean + std), y + 13), kind=f"thick {kind}")
        self.line((place(mean), y + 7), (place(mean), y + 19), kind=f"thick {kind}")
        self.text(4, y + 4, label)
        self.text(356, y + 4, f"mean {number(mean)}", "end")
        self.text(356, y + 19, f"var {number(std**2)}", "end")

    def shares(self, y: float, parts: dict[str, float]) -> None:
        """Draw a bar divided in proportion to the numbers."""
        left, scale = 4.0, 352 / sum(parts.values())
        for i, (label, value) in enumerate(parts.items()):
            last = i == len(parts) - 1
            self.add("rect", "sum" if last else "", x=left, y=y, width=value * scale, height=20)
            self.text(left + value * scale / 2, y + 14, number(value), "middle")
            self.text(356 if last else left, y + 34, label, "end" if last else "")
            left += value * scale

    def curves(self, title: str, x: dict[float, str], y: dict[float, str], **curves: list[tuple[float, float]]) -> None:
        """Draw curves by color on axes with the given ticks; the outermost ticks are the limits."""
        (x0, *_, x1), (y0, *_, y1) = x, y
        place = lambda px, py: (44 + 304 * (px - x0) / (x1 - x0), 174 - 150 * (py - y0) / (y1 - y0))  # noqa: E731
        self.text(4, 14, title)
        self.line((44, 24), (44, 174), (348, 174), kind="axis")
        for value, label in x.items():
            self.text(place(value, y0)[0] + (8 if value == x1 else 0), 191, label, "end" if value == x1 else "middle")
        for value, label in y.items():
            self.text(38, place(x0, value)[1] + 4, label, "end")
        for kind, points in curves.items():
            self.line(*(place(*point) for point in points), kind=f"thick {kind}")


def number(value: float) -> str:
    """Format a number with at most three digits and a proper minus sign."""
    return f"{round(float(value), 9) + 0:.3g}".replace("-", "−")


def listed(x: Tensor) -> str:
    """Return the numbers, separated by commas."""
    return ", ".join(map(number, x.flatten().tolist())) or "(empty)"


def ranks(*values: Sequence[float]) -> list[Tensor]:
    """Return each rank's (N, 1) elements."""
    return [torch.tensor(own, dtype=torch.float64).reshape(-1, 1) for own in values]


def statistics(xs: list[Tensor], mode: str) -> tuple[list[Tensor], Tensor, Statistics]:
    """Return each rank's payload, their sum, and the statistics of the sum."""
    payloads = [reference.forward_stats(x, rank_weight(mode, len(x), x.numel())) for x in xs]
    total = torch.stack(payloads).sum(0)
    return payloads, total, combine(total, fixed_divisor(mode, len(xs)))


def split(d: Drawing) -> Caption:
    """The variance of all elements, {total}, is the mean of the ranks' variances, {within}, plus the variance of their
    means, {between}. A rank that does not synchronize sees its own variance only."""
    xs = ranks((1, 2, 3, 4), (3, 4, 5, 6), (8, 9, 10, 11))
    for r, x in enumerate(xs):
        d.spread(14 + 44 * r, f"rank {r}", x)
    d.spread(146, "all", torch.cat(xs), "exact")
    total = statistics(xs, "exact")[2].var.item()
    within = torch.cat([x.var(0, correction=0) for x in xs]).mean().item()
    d.shares(184, {"within the ranks": within, "between their means": total - within})
    return 222, {"total": total, "within": within, "between": total - within}


def modes(d: Drawing) -> Caption:
    """Two sets merge by Chan's formula. The larger set pulls the mean more, to {mean}. The sum of squared deviations,
    {total}, has three parts: {a} within set a, {b} within set b, and {between} because the means differ."""
    sets = ranks((1, 2, 2, 3, 4, 6), (7, 9, 11))
    for i, (label, x) in enumerate({"set a": sets[0], "set b": sets[1], "both": torch.cat(sets)}.items()):
        d.spread(14 + 44 * i, label, x, "exact" if i == 2 else "")
    stats = statistics(sets, "exact")[2]
    a, b = (len(x) * x.var(correction=0).item() for x in sets)
    total = (stats.elements * stats.var).item()
    d.shares(140, {"within a": a, "b": b, "because the means differ": total - a - b})
    return 178, {"mean": stats.mean, "total": total, "a": a, "b": b, "between": total - a - b}


def payload(d: Drawing) -> Caption:
    """One all-reduce. Each rank sends five numbers per channel. Their sums come back to every rank, so all ranks
    compute the same mean and variance. The empty rank sends zeros, and takes part."""
    xs = ranks((1, 3, 5), (4, 8), ())
    payloads, total, stats = statistics(xs, "exact")
    names = ("w·mean", "w·var", "w·mean²", "w", "m")
    sent = [[f"rank {r}: {listed(x)}", *(f"{name} = {number(p)}" for name, p in zip(names, own, strict=True))]
            for r, (x, own) in enumerate(zip(xs, payloads, strict=True))]  # fmt: skip
    got = [f"mean {number(stats.mean)}", f"var {number(stats.var)}"]
    return d.exchange(2, sent, f"sum: {listed(total)}", [got] * 3) + 2, {}


def backward(d: Drawing) -> Caption:
    """Forward and backward across three ranks. Each pass has one all-reduce, and every rank gets its result. The
    gradient g arrives at y. The empty rank takes part in both passes."""
    xs, gs = ranks((1, 3), (4, 8), ()), ranks((1, 0), (0, 2), ())
    _, total, stats = statistics(xs, "exact")
    ys, saved = zip(*(reference.forward_apply(x, total, None, None, None, EPS, None, None) for x in xs), strict=True)
    sums = [reference.backward_stats(g, x, s) for g, x, s in zip(gs, xs, saved, strict=True)]
    both = torch.stack(sums).sum(0)
    dxs = [reference.backward_apply(g, x, both, s, None, min(len(x), 1)) for g, x, s in zip(gs, xs, saved, strict=True)]
    sent = [[f"rank {r}", f"x: {listed(x)}"] for r, x in enumerate(xs)]
    to_all = f"forward: mean {number(stats.mean)}, variance {number(stats.var)}"
    end = d.exchange(2, sent, to_all, [[f"y: {listed(y)}"] for y in ys])
    sent = [
        [f"g: {listed(g)}", f"Σg = {number(s[0])}", f"Σg·x̂ = {number(s[1])}"] for g, s in zip(gs, sums, strict=True)
    ]
    to_all = f"backward: A = {number(both[0])}, B = {number(both[1])}"
    return d.exchange(end + 14, sent, to_all, [[f"dx: {listed(dx)}"] for dx in dxs]) + 2, {}


def running(d: Drawing) -> Caption:
    """Four ranks, and rank 3 is empty in steps 21 to 40. The running mean of mode 'default' drifts to {lowest}, towards
    3/4 of the true mean, and comes back as slowly. Mode 'exact' stays at the true mean, 4."""
    torch.manual_seed(0)
    means = {mode: [(0.0, 4.0)] for mode in ("default", "exact")}
    kept = {mode: RunningStats(4 * ONE, ONE.clone(), None) for mode in means}
    for step in range(1, 61):
        xs = [4 + torch.randn(0 if r == 3 and 20 < step <= 40 else 64, 1).double() for r in range(4)]
        for mode, points in means.items():
            update_running_stats(kept[mode], statistics(xs, mode)[2], 0.1)
            points.append((step, kept[mode].mean.item()))
    d.add("rect", "shade", x=44 + 304 / 3, y=24, width=304 / 3, height=150)
    y = {2.75: "", 3: "3", 3.5: "3.5", 4: "4", 4.25: ""}
    d.curves("running mean", {0: "0", 20: "20", 40: "40", 60: "step 60"}, y, **means)
    d.text(196, 168, "rank 3 is empty", "middle")
    d.text(270, 128, "'default'", "default")
    d.text(56, 40, "'exact'", "exact")
    return 196, {"lowest": min(value for _, value in means["default"])}


def second(d: Drawing) -> Caption:
    """A gradient penalty P over three ranks, one of them empty, as one element of rank 0 moves. At x = 1 the
    second derivative, through the all-reduces of both passes, gives the slope {slope}: the line touches the curve."""
    (_, *xs), gs = ranks((), (3,), (4, 8), ()), ranks((1, 0), (0, 2), ())

    def penalty(first: Tensor) -> Tensor:
        inputs = [x.requires_grad_() for x in (torch.cat([first.view(1, 1), xs[0]]), *xs[1:])]
        ys, _, _ = oracle.forward(inputs, ONE, ZERO, "exact", EPS)
        loss = torch.stack([(y * g).sum() for y, g in zip(ys, gs, strict=True)]).sum()
        return torch.cat(torch.autograd.grad(loss, inputs, create_graph=True)).square().sum()

    at = ONE[0].clone().requires_grad_()
    p = penalty(at)
    (slope,) = (g.item() for g in torch.autograd.grad(p, at))
    curve = [(h / 10, penalty(ONE[0] * h / 10).item()) for h in range(-20, 31)]
    tangent = [(1 + h, p.item() + h * slope) for h in (-1.5, 1.5)]
    low, high = min(v for _, v in curve), max(v for _, v in curve + tangent)
    y = {low: number(low), p.item(): number(p.item()), high: ""}
    d.curves("P, the squared gradient on all ranks", {-2: "−2", 0: "0", 1: "1", 3: "x on rank 0"}, y,
             layer=curve, plain=tangent)  # fmt: skip
    return 196, {"slope": slope}


def forward(d: Drawing) -> Caption:
    """The input moves by ẋ, in one element of rank 0 only. The outputs of all ranks move by ẏ, because the mean and the
    variance move: forward mode needs a sum over the ranks too."""
    xs, moved = ranks((1, 3, 5), (4, 8, 6), (2, 7, 9)), ranks((1, 0, 0), (0, 0, 0), (0, 0, 0))
    outputs = lambda *inputs: tuple(oracle.forward(list(inputs), ONE, ZERO, "exact", EPS)[0])  # noqa: E731
    _, tangents = torch.func.jvp(outputs, tuple(xs), tuple(moved))
    for label, y, rows in (("ẋ", 74, moved), ("ẏ", 164, tangents)):
        d.text(4, y + 4, label)
        d.line((24, y), (356, y), kind="axis")
        unit = 44 / torch.cat(tuple(rows)).abs().max().item()
        for r, row in enumerate(rows):
            d.text(COLUMNS[r] + 10, 12, f"rank {r}", "middle")
            for i, value in enumerate(row.flatten().tolist()):
                x, tip = COLUMNS[r] + 10 + 34 * (i - 1), y - value * unit
                d.add("rect", "sum", x=x - 9.0, y=min(y, tip), width=18, height=abs(value) * unit)
                d.text(x, tip - 5 if value >= 0 else tip + 14, number(round(value, 2)).replace("0.", "."), "middle")
    return 204, {}


def padding(d: Drawing) -> Caption:
    """Dashed positions are padding, and enter no sum. Averaging the ranks' means, as mode 'default' does, counts the
    one position of rank 2 as much as the six of rank 0."""
    xs = ranks((2, 3, 2, 4, 3, 3), (7, 9), (5,))
    for r, x in enumerate(xs):
        d.text(4, 24 + 34 * r, f"rank {r}")
        for i, value in enumerate([*x.flatten().tolist(), *[None] * (6 - len(x))]):
            d.box(74 + 34 * i, 8 + 34 * r, 28, [number(value or 0) * bool(value)], "sum" if value else "nothing")
        d.text(356, 24 + 34 * r, f"mean {number(x.mean())}", "end")
    rules = {"exact": f"all valid positions ÷ {sum(map(len, xs))}", "default": f"the ranks' means ÷ {len(xs)}"}
    for y, (mode, rule) in zip((130, 150), rules.items(), strict=True):
        d.text(4, y, f"'{mode}'", mode)
        d.text(64, y, rule)
        d.text(356, y, f"mean {number(statistics(xs, mode)[2].mean)}", f"end {mode}")
    return 156, {}


def precision(d: Drawing) -> Caption:
    """Cancellation in float32, for 4096 elements. The plain formula loses digits with the square of the mean. From
    about {lost} standard deviations on, its variance can even be negative. The layer keeps its digits."""
    torch.manual_seed(0)
    z, negative = torch.randn(4096, 1).double(), []
    errors: dict[str, list[tuple[float, float]]] = {"plain": [], "layer": []}
    for power in torch.linspace(0, 5, 41).tolist():
        x = (z + 10**power).float()
        true, plain = x.double().var(correction=0), x.square().mean() - x.mean().square()
        for kind, var in (("plain", plain), ("layer", statistics([x], "exact")[2].var)):
            errors[kind].append((power, ((var - true) / true).abs().clamp(1e-9, 1e3).log10().item()))
        negative += [10**power] if plain < 0 else []
    y = {-9: "10⁻⁹", -6: "10⁻⁶", -3: "10⁻³", 0: "1", 3: "10³"}
    d.curves("relative error of the variance", {0: "1", 2: "100", 5: "mean ÷ std"}, y, **errors)
    d.text(70, 84, "E[x²] − E[x]²", "plain")
    d.text(340, 132, "the layer", "end layer")
    return 196, {"lost": f"{float(f'{min(negative):.1g}'):,.0f}"}


def hang(d: Drawing) -> Caption:
    """A hang. Rank 1 has an empty batch and skips the second call of the layer; the other ranks wait for it in the
    all-reduce. They give up after the group's timeout, by default {minutes} minutes with gloo. With SBNREF_DEBUG=1
    every rank raises an error after {seconds} seconds, and the message names rank 1."""
    for rank, gone in enumerate((False, True, False)):
        y = 8 + 44 * rank
        d.text(4, y + 16, f"rank {rank}")
        d.box(84, y, 68, ["call 1"], "sum")
        d.box(164, y, 68, ["skipped" if gone else "call 2"], "nothing" if gone else "sum")
        d.box(280, y, 144, ["goes on without it" if gone else "waits for rank 1"], "none" if gone else "shade")
    for start, end, back in ((32, 52, -7), (96, 76, 7)):
        d.line((164, start), (164, end), kind="wait")
        d.line((160, end + back), (164, end), (168, end + back), kind="wait")
    return 124, {"minutes": default_pg_timeout.total_seconds() / 60, "seconds": agreement._timeout()}
