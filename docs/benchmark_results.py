"""Writes the tables and figures of the Benchmarks page from the committed result files, before the site is built."""

from pathlib import Path

from benchmarks import load
from benchmarks.figures import draw
from benchmarks.results import Results, Row, tabulate
from benchmarks.show import TITLES

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
    parts = [f"## {file.stem}\n\n{results.origin()}"]
    figures = {path.stem.removeprefix(f"{file.stem}-"): path for path in draw(results, OUT, file.stem)}
    for suite in dict.fromkeys(row["suite"] for row in results.rows):
        rows = [row for row in results.rows if row["suite"] == suite]
        parts.append(f"### {TITLES.get(suite, suite)}")
        if suite in figures:
            parts.append(f"![{TITLES.get(suite, suite)}](_generated/{figures[suite].name})")
        parts.append(f"<details>\n<summary>The numbers</summary>\n\n{table(rows)}\n\n</details>")
    return "\n\n".join(parts)


def table(rows: list[Row]) -> str:
    """Markdown: for each input a line for each layer."""
    headings, inputs = tabulate(rows)
    body = []
    for name, lines in inputs.items():
        body += [[f"**{name}**", *[""] * (len(headings) - 1)], *lines]
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, marks, *body])
