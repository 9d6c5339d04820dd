"""Write the table of the page Channels last from the committed measurements."""

from pathlib import Path

from benchmarks import load
from benchmarks.results import Row

DOCS = Path(__file__).parent
FILE = DOCS.parent / "benchmarks" / "results" / "amd-epyc-2-cores.json"
LAYERS = ("reference", "reference, compiled", "cpu kernels", "F.batch_norm")


def write(app: object) -> None:
    """Write the table; Sphinx calls this when it starts."""
    results = load(FILE)
    (DOCS / "_generated").mkdir(exist_ok=True)
    (DOCS / "_generated" / "channels_last.md").write_text(f"{table(results.rows)}\n\n{results.origin()}\n")


def table(rows: list[Row]) -> str:
    """Return a Markdown table: forward + backward of each layer, for each input measured in both memory formats."""
    times: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for row in rows:
        if row["suite"] == "one_process" and row["what"] == "forward + backward" and row["layer"] in LAYERS:
            name = "×".join(map(str, row["shape"])), row["dtype"]
            times.setdefault(name, {})[row["layer"], row["layout"]] = row["median"]
    lines = ["| input | " + " | ".join(f"`{name}`" if "." in name else name for name in LAYERS) + " |"]
    lines.append("| --- |" + " ---: |" * len(LAYERS))
    for (shape, dtype), of in times.items():
        if (LAYERS[0], "channels_last") in of:
            cells = (_cell(of.get((layer, "contiguous")), of.get((layer, "channels_last"))) for layer in LAYERS)
            lines.append(f"| {shape}, {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(first: float | None, last: float | None) -> str:
    return "" if first is None or last is None else f"{1e3 * first:.1f} → {1e3 * last:.1f}"
