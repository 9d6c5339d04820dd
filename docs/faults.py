"""Write the table of faults from the file that `make faults` records."""

import re
from pathlib import Path

from benchmarks import load

DOCS = Path(__file__).parent


def write(app: object) -> None:
    """Write the table; Sphinx calls this when it starts."""
    results = load(DOCS / "howto" / "faults.json")
    lines = ["| Launcher | Fault | `impl` | Result | Seconds |", "| --- | --- | --- | --- | ---: |"]
    for row in results.rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        seen = re.sub(r"\[/\S+\] ", "", row["seen"])  # gloo's source files
        lines.append(f"| {row['launcher']} | {row['fault']} | `{row['impl']}` | {seen} | {seconds} |")
    lines.append(f"\n{results.origin()}")
    (DOCS / "_generated").mkdir(exist_ok=True)
    (DOCS / "_generated" / "faults.md").write_text("\n".join(lines) + "\n")
