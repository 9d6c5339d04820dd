"""Writes the tables and figures of the Benchmarks page from the committed result files, before the site is built."""

from pathlib import Path

from sbnref.bench import load
from sbnref.bench.figures import draw
from sbnref.bench.results import Results, Row, microseconds
from sbnref.bench.show import TITLES, communication, memory

DOCS = Path(__file__).parent
FILES = sorted((DOCS.parent / "benchmarks" / "results").glob("*.json"))
OUT = DOCS / "_generated"


def write(app: object) -> None:
    """Sphinx calls this when it starts."""
    OUT.mkdir(exist_ok=True)
    results = {file: load(file) for file in FILES}
    text = [section(file, result) for file, result in results.items()]
    if not any(row["suite"] == "gpu" for result in results.values() for row in result.rows):
        text.append(
            "## On a GPU\n\nNo GPU result is committed yet. `make gpu-check` on a machine with a CUDA GPU writes one "
            "under `benchmarks/results/`, and this page is drawn from the files there."
        )
    (OUT / "benchmarks.md").write_text("\n\n".join(text) + "\n")


def section(file: Path, results: Results) -> str:
    """A result file as a part of the page."""
    where = ", ".join(f"{key} {value}" for key, value in {**results.machine, **results.versions}.items())
    parts = [f"## {file.stem}\n\n{where}; commit `{results.commit}`, {results.date}."]
    figures = {path.stem.removeprefix(f"{file.stem}-"): path for path in draw(results, OUT, file.stem)}
    for suite in dict.fromkeys(row["suite"] for row in results.rows):
        rows = [row for row in results.rows if row["suite"] == suite]
        parts.append(f"### {TITLES.get(suite, suite)}")
        if suite in figures:
            parts.append(f"![{TITLES.get(suite, suite)}](_generated/{figures[suite].name})")
        parts.append(table(rows, microseconds))
        if any("peak_bytes" in row for row in rows):
            parts.append("Peak memory of a training step, in sizes of the input:")
            parts.append(table([row for row in rows if "peak_bytes" in row], memory))
        if any("collectives" in row for row in rows):
            parts.append("Collectives of a training step, and the bytes that each rank gives:")
            parts.append(table(rows, communication))
    for collective, model in results.notes.get("scaling", {}).items():
        alpha, beta = f"{1e6 * model['alpha']:.0f} µs a message", f"{1e9 * model['beta']:.2f} ns a byte"
        parts.append(
            f"**{collective}**: {alpha} and {beta} fit the measurements, up to {model['measured_up_to']} ranks, to "
            f"{model['median_error']:.0%} in the median and {model['largest_error']:.0%} at most. Lines beyond the "
            "measured points are this model's, with rings and equal links assumed."
        )
    return "\n\n".join(parts)


def table(rows: list[Row], cell: object) -> str:
    """Markdown: a line for each input, a column for each layer."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    lines: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        shape = "×".join(map(str, row["shape"]))
        key = (shape, row.get("layout", ""), row["dtype"], row["world_size"], row["what"])
        lines.setdefault(key, {})[row["layer"]] = row
    names = ["shape", "layout", "dtype", "ranks", "", *layers]
    body = [
        [*map(str, key), *(cell(of[layer]) if layer in of else "" for layer in layers)] for key, of in lines.items()
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, ["---"] * len(names), *body])
