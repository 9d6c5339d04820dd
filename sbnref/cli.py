"""The command line. Each command reads its options here and does its work in a room of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Synchronized batch normalization, to read and to debug with.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


@app.callback()
def main() -> None:
    """Keeps `sbnref COMMAND` a group even while it has a single command."""


@app.command(epilog="Example: sbnref demo --ranks 4 --steps 100 --output demo-output")
def demo(
    ranks: Annotated[int, typer.Option(min=2, help="Processes that train together.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Training steps in each mode.")] = 120,
    seed: Annotated[int, typer.Option(help="Of the weights and of the batches, the same in every mode.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")] = Path("demo-output"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Train on handwritten digits with ranks that are often empty, in every statistics mode, and compare."""
    from .demo import run

    run(ranks=ranks, steps=steps, seed=seed, output=output, as_json=json)
