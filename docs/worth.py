"""Draws the figure and writes the tables of the page *Is it worth it?* from what benchmarks/worth.py found."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import load
from benchmarks.figures import COLORS
from benchmarks.results import Results, Row

DOCS = Path(__file__).parent
FILE = DOCS / "worth.json"
OUT = DOCS / "_generated"
NORMS = ("synchronized", "each for itself")


def write(app: object) -> None:
    """Sphinx calls this when it starts."""
    results = load(FILE)
    OUT.mkdir(exist_ok=True)
    figure = draw(results)
    figure.savefig(OUT / "worth.png", dpi=160)
    (OUT / "worth_rates.md").write_text(rates(results))
    (OUT / "worth_eval.md").write_text(in_eval(results))
    (OUT / "worth_where.md").write_text(f"{results.origin()}\n")


def training(results: Results) -> dict[tuple[str, int, float], Row]:
    """The rows of training by norm, batch per rank and learning rate."""
    return {(r["norm"], r["batch"], r["rate"]): r for r in results.rows if r["suite"] == "training"}


def best(results: Results, norm: str, batch: int) -> Row:
    """The row with the learning rate that is best on average over both norms, so that they are compared at the same."""
    rows = training(results)
    found = [rate for n, b, rate in rows if (n, b) == (norm, batch)]
    top = max(found, key=lambda rate: sum(mean(rows[n, batch, rate]["accuracy, 0.1"]) for n in NORMS))
    return rows[norm, batch, top]


def percent(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{100 * mean(values):.1f} ±{100 * stdev(values):.1f}"


def sizes(results: Results) -> list[int]:
    """Samples per rank."""
    return list(dict.fromkeys(batch for _, batch, _ in training(results)))


def rates(results: Results) -> str:
    """A table of the accuracy for each batch, norm and learning rate; the best of a line in bold."""
    rows = training(results)
    found = list(dict.fromkeys(rate for *_, rate in rows))
    lines = ["| per rank | | " + " | ".join(f"rate {rate}" for rate in found) + " |"]
    lines.append("| ---: | --- |" + " ---: |" * len(found))
    for batch in sizes(results):
        for norm in NORMS:
            top = max(found, key=lambda rate: mean(rows[norm, batch, rate]["accuracy, 0.1"]))
            cells = [percent(rows[norm, batch, rate]["accuracy, 0.1"]) for rate in found]
            cells = [f"**{cell}**" if rate == top else cell for cell, rate in zip(cells, found, strict=True)]
            lines.append(f"| {batch if norm == NORMS[0] else ''} | {norm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_eval(results: Results) -> str:
    """A table of what eval mode makes of the running statistics, at the best learning rate."""
    lines = ["| per rank | | mean off by | variance off by | momentum 0.1 | 0.01 | `None` | true statistics |"]
    lines.append("| ---: | --- |" + " ---: |" * 6)
    for batch in sizes(results):
        for norm in NORMS:
            row = best(results, norm, batch)
            cells = [percent(row[key]) for key in ("mean_error", "var_error")]
            cells += [percent(row[f"accuracy, {which}"]) for which in ("0.1", "0.01", "None", "true")]
            lines.append(f"| {batch if norm == NORMS[0] else ''} | {norm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(results: Results) -> Any:
    """Accuracy, the running statistics' errors and the spread of a batch's, by samples per rank."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ranks, batches = results.notes["ranks"], sizes(results)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for norm, color in zip(NORMS, COLORS, strict=False):
        rows = [best(results, norm, batch) for batch in batches]
        for axes, keys in (
            (left, {"running statistics": "accuracy, 0.1", "true statistics": "accuracy, true"}),
            (middle, {"variance": "var_error", "mean": "mean_error"}),
        ):
            for i, (name, key) in enumerate(keys.items()):
                values = [[100 * value for value in row[key]] for row in rows]
                about = [mean(value) for value in values], [stdev(value) for value in values]
                style = {"color": color, "marker": "os"[i], "linestyle": ("-", ":")[i], "capsize": 3}
                axes.errorbar(batches, about[0], about[1], **style, label=f"{norm}, {name}")
    spread = [row for row in results.rows if row["suite"] == "spread"]
    for pixels, marker in zip(dict.fromkeys(row["pixels"] for row in spread), "os", strict=False):
        of = {row["samples"]: 100 * row["var"] for row in spread if row["pixels"] == pixels}
        for norm, color, parts in zip(NORMS, COLORS, (ranks, 1), strict=False):
            mine = [of[parts * batch] for batch in batches]
            right.plot(batches, mine, marker=marker, color=color, label=f"{norm}, {pixels} pixels")
    left.set_title("Test accuracy, at the best rate", loc="left")
    middle.set_title("Running statistics off by", loc="left")
    right.set_title("Variance of a batch off by", loc="left")
    for axes in (left, middle, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, batches)
        axes.set(xlabel=f"samples per rank, of {ranks} ranks", ylabel="%")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    middle.set_yscale("log")
    right.set_yscale("log")
    for axes in (middle, right):
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    return figure


def numbers() -> dict[str, str]:
    """Those that the page's sentences may give, as ``{{ worth.KEY }}``."""
    results = load(FILE)
    found: dict[str, str] = {}
    for batch in sizes(results):
        for norm in NORMS:
            row, word = best(results, norm, batch), norm.split()[0]
            found[f"{word}_{batch}"] = f"{percent(row['accuracy, 0.1'])} %"
            found[f"{word}_true_{batch}"] = f"{percent(row['accuracy, true'])} %"
            found[f"{word}_hundredth_{batch}"] = f"{percent(row['accuracy, 0.01'])} %"
            found[f"{word}_none_{batch}"] = f"{percent(row['accuracy, None'])} %"
            found[f"{word}_var_{batch}"] = f"{100 * mean(row['var_error']):.1f} %"
            found[f"{word}_mean_{batch}"] = f"{100 * mean(row['mean_error']):.1f} %"
            found[f"{word}_rate_{batch}"] = f"{row['rate']}"
    spread = {(row["pixels"], row["samples"]): row for row in results.rows if row["suite"] == "spread"}
    for (pixels, samples), row in spread.items():
        found[f"spread_{pixels}_{samples}"] = f"{100 * row['var']:.1f} %"
        found[f"spread_mean_{pixels}_{samples}"] = f"{100 * row['mean']:.1f} %"
    for batch in sizes(results):
        found[f"gain_{batch}"] = f"{percent(gain(results, batch))} %".replace("-", "−")
        found[f"ahead_{batch}"], found[f"behind_{batch}"] = (f"{n} of {of}" for n, of in pairs(results, batch))
    return found


def gain(results: Results, batch: int) -> list[float]:
    """For each seed how much more accurate the synchronized training is, at the same rate from the same start."""
    pair = (best(results, norm, batch)["accuracy, 0.1"] for norm in NORMS)
    return [synchronized - alone for synchronized, alone in zip(*pair, strict=True)]


def pairs(results: Results, batch: int) -> list[tuple[int, int]]:
    """In how many pairs of the same start and rate, but the highest rate, synchronized is ahead, and behind; of all."""
    rows = training(results)
    top = max(rate for *_, rate in rows)
    differences = [
        synchronized - alone
        for (norm, b, rate), row in rows.items()
        if (norm, b) == (NORMS[0], batch) and rate < top
        for synchronized, alone in zip(row["accuracy, 0.1"], rows[NORMS[1], b, rate]["accuracy, 0.1"], strict=True)
    ]
    return [(sum(d > 0 for d in differences), len(differences)), (sum(d < 0 for d in differences), len(differences))]
