"""Write the matrix of libraries and trainers from the file that the tests record."""

from pathlib import Path

from benchmarks import load

DOCS = Path(__file__).parent
FILE = DOCS / "howto" / "reach.json"


def write(app: object) -> None:
    """Write the matrix; Sphinx calls this when it starts."""
    results = load(FILE)
    whats = [key for key in results.rows[0] if key != "with"]
    lines = ["| | " + " | ".join(whats) + " |", "| --- |" + " --- |" * len(whats)]
    notes: dict[str, int] = {}
    for row in results.rows:
        cells = [
            row[what] if row[what] == "✓" else f"[{notes.setdefault(row[what], len(notes) + 1)}]" for what in whats
        ]
        lines.append(f"| {row['with']} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {note}" for note, number in notes.items()), ""]
    (DOCS / "_generated").mkdir(exist_ok=True)
    (DOCS / "_generated" / "reach.md").write_text("\n".join([*lines, results.origin()]) + "\n")
