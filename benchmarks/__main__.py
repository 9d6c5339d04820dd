"""``python -m benchmarks``: measure the layer against its peers on this machine's CPU, and read results."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sbnref.cli import make_folder, or_exit

from . import SUITES, load, run
from . import compare as compare_results
from .figures import draw
from .show import show, show_comparison

app = typer.Typer(help="Measure how fast the layer is, and read results.", invoke_without_command=True)


@app.callback(epilog="Example: python -m benchmarks --quick")
def bench_run(
    context: typer.Context,
    suite: Annotated[
        list[str] | None, typer.Option(help="one_process, processes, scaling, padding, overhead; all by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes and repetitions: about a minute.")] = False,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the results.")] = None,
) -> None:
    """Measure the layer against its peers on this machine's CPU, and print the tables."""
    if context.invoked_subcommand is not None:
        return

    if unknown := set(suite or []) - set(SUITES):
        raise typer.BadParameter(f"expected suites of {tuple(SUITES)}, got {sorted(unknown)}")
    if output is not None:
        or_exit(lambda: make_folder(output.parent))
    results = or_exit(lambda: run(suite or list(SUITES), quick))
    show(results)
    if output is not None:
        results.save(output)


@app.command("show", epilog="Example: python -m benchmarks show benchmarks/results/*.json --figures figures")
def bench_show(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Result files.")],
    figures: Annotated[Path | None, typer.Option(help="A folder to draw figures in.")] = None,
) -> None:
    """Print the tables of result files, and draw their figures."""
    for file in files:
        results = or_exit(partial(load, file))
        show(results)
        if figures is not None:
            for path in draw(results, figures, file.stem):
                typer.echo(f"Saved {path}")


@app.command("compare", epilog="Example: python -m benchmarks compare before.json after.json")
def bench_compare(
    before: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The baseline results.")],
    after: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The new results.")],
) -> None:
    """Compare two result files of one machine. Exits with 1 if a layer is slower by more than noise."""
    rows = or_exit(lambda: compare_results(load(before), load(after)))
    show_comparison(rows)
    raise typer.Exit(any(row["verdict"] == "slower" for row in rows))


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
