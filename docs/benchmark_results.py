"""Write the answer, the figures and the tables of the Benchmarks page from the committed result files."""

from collections.abc import Callable
from pathlib import Path

from benchmarks import load
from benchmarks.figures import draw
from benchmarks.results import Results, Row, tabulate
from benchmarks.show import TITLES

DOCS = Path(__file__).parent
FILES = sorted((DOCS.parent / "benchmarks" / "results").glob("*.json"))
OUT = DOCS / "_generated"
ORDER = ["one_process", "processes", "scaling", "padding", "overhead", "diagnose", "gpu"]  # then all others


def write(app: object) -> None:
    """Write the page's parts; Sphinx calls this when it starts."""
    OUT.mkdir(exist_ok=True)
    results = {file: load(file) for file in FILES}
    answers, sections = [], []
    for file, result in results.items():
        figures = {path.stem.removeprefix(f"{file.stem}-"): path for path in draw(result, OUT, file.stem)}
        suites: dict[str, list[Row]] = {}
        for row in result.rows:
            suites.setdefault(row["suite"], []).append(row)
        for suite, rows in suites.items():
            place = ORDER.index(suite) if suite in ORDER else len(ORDER)
            sections.append((place, section(headline(suite, rows), file, result, rows, figures.get(suite))))
        if "one_process" in suites:
            answers.append(answer(result, suites["one_process"]))
    text = [section for _, section in sorted(sections, key=lambda pair: pair[0])]
    if not any(row["suite"] == "gpu" for result in results.values() for row in result.rows):
        text.append(
            "## No result on a GPU is committed yet\n\n`make gpu-check` on a machine with a CUDA GPU writes a result "
            "under `benchmarks/results/`, and this page then shows it."
        )
    (OUT / "benchmarks_answer.md").write_text("\n\n".join(answers) + "\n")
    (OUT / "benchmarks.md").write_text("\n\n".join(text) + "\n")


def section(title: str, file: Path, results: Results, rows: list[Row], figure: Path | None) -> str:
    """Return a suite of a result file in Markdown: heading, figure, numbers."""
    parts = [f"## {title}"]
    if figure is not None:
        parts.append(f"![{title.replace('`', '')}](_generated/{figure.name})")
    parts.append(f"<details>\n<summary>The numbers</summary>\n\n{table(rows)}\n\n</details>")
    parts.append(f"From `{file.relative_to(DOCS.parent)}`: {results.origin()}")
    return "\n\n".join(parts)


def answer(results: Results, rows: list[Row]) -> str:
    """Return the ratio of a step's time to ``F.batch_norm`` in one process: a sentence, and a table by input."""
    layers = {"CPU kernels": "cpu kernels", "reference, compiled": "reference, compiled", "reference": "reference"}
    steps = [row for row in rows if row["what"] == "forward + backward"]
    kinds: dict[str, list[Row]] = {}
    for row in sorted(steps, key=lambda row: (len(row["shape"]) == 2, row["dtype"] != "float32")):
        layout = {"contiguous": "channels-first", "channels_last": "channels-last"}[row["layout"]]
        kinds.setdefault(f"{row['dtype']}, {'(N, C)' if len(row['shape']) == 2 else layout}", []).append(row)
    memory = {
        layer: max(row["peak_bytes"] / row["input_bytes"] for row in steps if row["layer"] == layer)
        for layer in ("cpu kernels", "F.batch_norm")
    }
    lines = [f"| input | {' | '.join(layers)} |", "| --- |" + " ---: |" * len(layers)]
    for kind, those in kinds.items():
        cells = [span(ratios(those, layer, "F.batch_norm")) for layer in layers.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    machine, versions, times = results.machine, results.versions, ratios(steps, "cpu kernels", "F.batch_norm")
    return "\n\n".join(
        [
            f"On {machine['cpu']} with {machine['cores']} cores, in one process, a training step of the CPU kernels "
            f"(`impl='cpu'`) takes **{span(times)} × the time of `F.batch_norm`**. It needs "
            f"{memory['cpu kernels']:.0f} × the input's size in memory; `F.batch_norm` needs "
            f"{memory['F.batch_norm']:.0f} ×. Versions: torch {versions['torch']}, Python {versions['python']}, "
            f"sbnref {versions['sbnref']}.",
            "Time of forward and backward / time of `F.batch_norm`, smallest to largest over the inputs:",
            "\n".join(lines),
        ]
    )


def headline(suite: str, rows: list[Row]) -> str:
    """Return the result of a suite in a sentence, or its title if a layer was not measured."""
    try:
        return HEADLINES[suite](rows)
    except (KeyError, ValueError):
        return TITLES.get(suite, suite)


def ratios(rows: list[Row], layer: str, base: str) -> list[float]:
    """Return the ratios of two layers' times, for each input that both have."""
    times: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        key = tuple(str(row.get(name)) for name in ("what", "shape", "layout", "dtype", "world_size"))
        times.setdefault(key, {})[row["layer"]] = row["median"]
    return [of[layer] / of[base] for of in times.values() if layer in of and base in of]


def span(values: list[float], form: str = ".2f") -> str:
    """Return the smallest and the largest value, rounded."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}–{high}"


def _one_process(rows: list[Row]) -> str:
    steps = [row for row in rows if row["what"] == "forward + backward"]
    times = ratios(steps, "cpu kernels", "F.batch_norm")
    return f"One process: the CPU kernels take {span(times)} × `F.batch_norm`'s time"


def _processes(rows: list[Row]) -> str:
    return f"Several ranks: the CPU kernels take {span(ratios(rows, 'cpu kernels', 'fairscale'))} × fairscale's time"


def _scaling(rows: list[Row]) -> str:
    world = max(row["world_size"] for row in rows)
    rows = [row for row in rows if row["world_size"] == world]
    time = {(row["layer"], row["shape"][0]): row["median"] for row in rows}
    ratio = {c: time["all-reduce", c] / time["all-gather", c] for c in sorted({c for _, c in time})}
    most = max(ratio)
    return (
        f"Collectives on {world} ranks: an all-reduce takes {span([ratio[c] for c in ratio if c <= 4096])} × an "
        f"all-gather's time up to 4,096 channels, {ratio[most]:.2f} × at {most:,}"
    )


def _padding(rows: list[Row]) -> str:
    packing = [
        span(ratios(rows, "packing alone", f"{impl}, valid positions packed"), ".1f")
        for impl in ("reference", "cpu kernels")
    ]
    return (
        f"Padded sequences: packing takes {packing[0]} × the time of the reference's norm, "
        f"{packing[1]} × that of the CPU kernels' norm"
    )


def _overhead(rows: list[Row]) -> str:
    time = {row["layer"]: 1e6 * row["median"] for row in rows}
    shape = "×".join(map(str, rows[0]["shape"]))
    return (
        f"Overhead: a step on an input of {shape} takes {time['cpu kernels']:.0f} µs with the CPU kernels, "
        f"{time['F.batch_norm']:.0f} µs with `F.batch_norm`"
    )


def _diagnose(rows: list[Row]) -> str:
    added = [f"{100 * (ratio - 1):.0f} %" for ratio in ratios(rows, "every=10", "alone")]
    worlds = list(dict.fromkeys(row["world_size"] for row in rows))
    where = [f"{a} {'in one process' if n == 1 else f'on {n} ranks'}" for a, n in zip(added, worlds, strict=True)]
    return f"`sbnref.diagnose` with `every=10` adds {' and '.join(where)} to a training step of ResNet-20"


def _cpu_ladder(rows: list[Row]) -> str:
    size = max(row["bytes_moved"] for row in rows if row["layer"] != "copy")
    largest = [row for row in rows if row["bytes_moved"] == size and row["layer"][0].isdigit()]
    first, last = (f"{row['bytes_moved'] / row['median'] / 1e9:.1f} GB/s" for row in (largest[0], largest[-1]))
    return f"The ladder of tutorial 11: from {first} to {last} on the largest input"


HEADLINES: dict[str, Callable[[list[Row]], str]] = {
    "one_process": _one_process,
    "processes": _processes,
    "scaling": _scaling,
    "padding": _padding,
    "overhead": _overhead,
    "diagnose": _diagnose,
    "cpu_ladder": _cpu_ladder,
}


def table(rows: list[Row]) -> str:
    """Return a Markdown table: for each input, a line per layer."""
    headings, inputs = tabulate(rows)
    body = []
    for name, lines in inputs.items():
        body += [[f"**{name}**", *[""] * (len(headings) - 1)], *lines]
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, marks, *body])
