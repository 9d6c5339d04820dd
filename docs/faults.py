"""Writes the table of faults from what the tests of faults saw, before the site is built."""

import re
from pathlib import Path

from benchmarks import load

DOCS = Path(__file__).parent
FILE = DOCS / "howto" / "faults.json"


def write(app: object) -> None:
    """Sphinx calls this when it starts."""
    results = load(FILE)
    impls = list(dict.fromkeys(row["impl"] for row in results.rows))
    lines = ["| | What happens | What is seen | " + " | ".join(f"`{impl}`" for impl in impls) + " |"]
    lines.append("| --- | --- | --- |" + " ---: |" * len(impls))
    launchers = list(dict.fromkeys(row["launcher"] for row in results.rows))
    rows = sorted(results.rows, key=lambda row: launchers.index(row["launcher"]))
    for launcher, fault in dict.fromkeys((row["launcher"], row["fault"]) for row in rows):
        of = {row["impl"]: row for row in rows if (row["launcher"], row["fault"]) == (launcher, fault)}
        told = re.sub(r"rank \d raises (\w+) .*?\[.*?\] ", r"\1: ", next(iter(of.values()))["told"])  # gloo's files
        lines.append(f"| {launcher} | {fault} | {told} | {' | '.join(_after(of.get(impl)) for impl in impls)} |")
    lines.append(f"\n{results.origin()}")
    (DOCS / "_generated").mkdir(exist_ok=True)
    (DOCS / "_generated" / "faults.md").write_text("\n".join(lines) + "\n")


def _after(row: dict[str, object] | None) -> str:
    """When the last of the other ranks, or who started them, saw it."""
    if row is None:
        return "not tried"
    return "✓" if row["seconds"] is None else f"{row['seconds']:.2f} s"
