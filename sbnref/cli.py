"""The command line. Each command reads its options here and does its work in a room of its own."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")

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

    _or_exit(lambda: _make_folder(output))
    run(ranks=ranks, steps=steps, seed=seed, output=output, as_json=json)


@app.command(epilog="Example: sbnref compare --impl reference --impl cpu --ranks 2 --shape 4,8,16,16 --empty-rank 1")
def compare(
    target: Annotated[
        str,
        typer.Argument(
            help="What to run: FILE.py:FUNCTION or MODULE:FUNCTION, called on each rank, returns (model, inputs). "
            "Without it a layer on random numbers."
        ),
    ] = "",
    impl: Annotated[
        list[str] | None,
        typer.Option(
            help="Twice: names of implementations, or files with the four stage functions. The reference and the "
            "device's kernels if left out."
        ),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that compare together.")] = 2,
    shape: Annotated[str, typer.Option(help="Of each rank's input, without a target.")] = "4,8,16,16",
    empty_rank: Annotated[int | None, typer.Option(help="A rank whose input is empty, without a target.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the input, without a target.")] = "float32",
    stats_mode: Annotated[str, typer.Option(help="Without a target: default, N or exact.")] = "default",
    device: Annotated[str, typer.Option(help="Where the layer and its input lie, without a target.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Run two implementations on the same input and the same gradient, and find the first stage that diverges.

    Exit code 0: they agree. 1: they diverge. 2: there was nothing to compare, or it was refused.
    """
    from .debugging.compare.ranks import Comparison, RandomLayer, compare_on_ranks

    def run() -> Comparison:
        what = target or RandomLayer(_sizes(shape), empty_rank, dtype, stats_mode, device)
        return compare_on_ranks(what, impl, ranks)

    report = _or_exit(run)
    _show(report, json)
    raise typer.Exit(2 if report.agrees and report.empty else not report.agrees)


@app.command(epilog="Example: sbnref check --template > mine.py, then sbnref check mine.py --stage forward_stats")
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_MODULE",
            help="Defines the four stage functions, in Python or in CUDA; or, FILE.cu, kernels that normalize.",
        ),
    ] = "",
    stage: Annotated[
        list[str] | None, typer.Option(help="Grade this only; may be repeated. Of kernels: legal, right, frugal.")
    ] = None,
    suite: Annotated[
        bool, typer.Option("--suite", help="Run the whole conformance suite too, on 1 to 4 ranks.")
    ] = False,
    examples: Annotated[int, typer.Option(min=1, help="Training steps to try on each stage.")] = 100,
    timeout: Annotated[
        float, typer.Option(min=1, max=86400, help="Seconds for a stage, after which it is ended.")
    ] = 60,
    memory: Annotated[float, typer.Option(min=0.1, help="Gigabytes that the code may take (Linux).")] = 4,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Of the training steps; another one each time.")
    ] = None,
    forbid: Annotated[
        list[str] | None, typer.Option(help="A module or function that the code may not use; may be repeated.")
    ] = None,
    allow: Annotated[list[str] | None, typer.Option(help="One that it may: sbnref, which is forbidden.")] = None,
    template: Annotated[
        bool,
        typer.Option("--template", help="Print a file to start from; --template cuda and cuda-stages: of kernels."),
    ] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Time a file's forward(p) on a CUDA GPU, where nothing confines it.")
    ] = False,
    at_least: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 0 from this score on, whatever has not passed.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, with a score from 0 to 1.")] = False,
) -> None:
    """Grade your own four functions: which stages are right, and the smallest training step on which one is wrong.

    Or your own CUDA kernels, in a file that ends in .cu, in the simulation: whether those of its forward(p) are legal,
    right and frugal; or, where it has none, its four stages.

    The code runs in a process of its own, without network or files to write to (Linux), and sees nothing of what is
    expected.

    Exit code 0: all passed; of kernels, they are legal and right. 1: not all. 2: there was nothing to grade.
    """
    from .grading.check import check as grade
    from .grading.check import template as template_text
    from .grading.kernels.check import check_kernels
    from .grading.kernels.check import template as template_of_kernels
    from .grading.kernels.tell import PARTS
    from .impls import STAGES
    from .laboratory.implementation import only_stages

    if template:
        texts = {
            "": template_text,
            "cuda": template_of_kernels,
            "cuda-stages": lambda: template_of_kernels(stages=True),
        }
        if target not in texts:
            raise typer.BadParameter(
                f"expected --template, --template cuda or --template cuda-stages, got --template {target}"
            )
        typer.echo(texts[target](), nl=False)
        return
    if not target:
        raise typer.BadParameter("name the file or module to grade, or ask for --template")
    kernels = target.endswith(".cu")
    if kernels and (suite or forbid or allow):
        raise typer.BadParameter("--suite, --forbid and --allow are for functions in Python, not for kernels")
    asked = stage or (PARTS if kernels and not only_stages(Path(target)) else STAGES)
    of_forward = kernels and not set(asked) <= set(STAGES)
    if gpu and not of_forward:
        raise typer.BadParameter("--gpu is for kernels of a forward(p), not for the four stages")
    limits: dict[str, Any] = {"examples": examples, "timeout": timeout, "memory": memory, "seed": seed}
    report = _or_exit(
        lambda: (
            check_kernels(target, asked, gpu=gpu, **limits)
            if of_forward
            else grade(target, asked, suite=suite, forbid=forbid or (), allow=allow or (), **limits)
        )
    )
    _show(report, json)
    raise typer.Exit(not report.passed if at_least is None else report.score < at_least)


@app.command(epilog="Example: sbnref build cpu")
def build(
    library: Annotated[
        list[str] | None, typer.Argument(help="cpu, cuda, simulation; cpu and, where there is a GPU, cuda if left out.")
    ] = None,
) -> None:
    """Build the libraries of the implementations now, rather than when they are first asked for.

    Exit code 0: they are there. 2: one cannot be built; what is missing is said.
    """
    from .impls.progress import build_all

    _or_exit(lambda: build_all(library or ()))


@app.command(epilog="Example: sbnref build simulation, then SBNREF_CUDASIM=1 sbnref info --shape 512,256,7,7")
def info(
    shape: Annotated[
        str, typer.Option(help="Of an input, (N, C, *), to show the kernels' launch plan for.")
    ] = "32,64,56,56",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, devices, which implementations can run here and if not why, and where built libraries are kept."""
    from .debugging.info import Info

    _show(_or_exit(lambda: Info(_sizes(shape))), json)


@app.command(epilog="Example: sbnref traffic 32,64,56,56 --dtype float16 --channels-last")
def traffic(
    shape: Annotated[str, typer.Argument(help="Of the input, (N, C, *).")] = "32,64,56,56",
    dtype: Annotated[str, typer.Option(help="Of the input: float16, bfloat16, float32 or float64.")] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels side by side in memory.")] = False,
    multiprocessors: Annotated[int, typer.Option(min=1, help="Of the GPU to plan for.")] = 132,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count in the simulation what the CUDA kernels read and write for a shape, and say how they share out the work."""
    import os

    os.environ["SBNREF_CUDASIM"] = "1"  # before the kernels are loaded
    import torch

    from .debugging.traffic import Traffic

    def count() -> Traffic:
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"expected a dtype such as float16, got {dtype!r}")
        return Traffic(_sizes(shape), kind, channels_last=channels_last, multiprocessors=multiprocessors)

    _show(_or_exit(count), json)


@app.command(epilog="Example: sbnref trace mine.cu --shape 2,4,6,6 --output trace.html")
def trace(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_STAGE",
            help="A file of kernels that includes laboratory.cuh and defines void forward(const Problem&); or one of "
            "the package's own stages, such as forward_stats.",
        ),
    ],
    shape: Annotated[str, typer.Option(help="Of the input, (N, C, *).")] = "2,4,6,6",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels side by side in memory.")] = False,
    function: Annotated[
        list[str] | None, typer.Option(help="Of the file, to run instead of forward; may be repeated.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of a block, kThreads in the file: 32, 64, ... 1024.")] = 64,
    splits: Annotated[int, typer.Option(min=1, help="Blocks that may share a channel, splits in the file.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for the kernels, after which they are ended.")] = 20,
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("trace.html"),
) -> None:
    """Record in the simulation what every warp of a small launch does, and write a page that plays it.

    Exit code 0: the page is written. 1: it is, and ends where the simulation refused to go on. 2: there is none.
    """
    from .laboratory.lines import finder
    from .laboratory.trace import trace as record

    def run() -> str | None:
        _make_folder(output.parent)
        return record(
            what,
            _sizes(shape),
            output,
            channels_last=channels_last,
            functions=function or (),
            threads=threads,
            splits=splits,
            timeout=timeout,
        )

    error = _or_exit(run)
    typer.echo(f"Saved {output}")
    if finder() is None:
        hint = "line numbers are missing because addr2line is not on the PATH; install binutils"
        typer.echo(f"sbnref: {hint}", err=True)
    if error is not None:
        typer.echo(f"sbnref: {error}", err=True)
        raise typer.Exit(1)


course = typer.Typer(help="Hand out what a course takes, and have graded what is handed in.", no_args_is_help=True)
app.add_typer(course, name="course")


@course.callback()
def course_main() -> None:
    """Keeps `sbnref course COMMAND` a group while it has a single command."""


@course.command("make", epilog="Example: sbnref course make lab3")
def course_make(
    folder: Annotated[Path, typer.Argument(help="A new or an empty one.")],
    settings: Annotated[
        Path | None, typer.Option(help="The settings.json of an earlier course, changed: points, seeds, limits.")
    ] = None,
) -> None:
    """Write a folder to hand out, exercises and templates without solutions, and beside it what graders take.

    These are an autograder for Gradescope and a workflow for GitHub. The folder's README.md says which part goes where.

    Exit code 0: it is written. 2: it is not; why is said.
    """
    from .grading.course.make import make
    from .grading.course.settings import Settings

    chosen = _or_exit(lambda: Settings() if settings is None else Settings.load(settings))
    _or_exit(lambda: make(folder, chosen))
    typer.echo(f"Saved {folder / 'README.md'}, which says what goes where")


bench = typer.Typer(help="Measure how fast the layer is, and read results.", invoke_without_command=True)
app.add_typer(bench, name="bench")


@bench.callback(epilog="Example: sbnref bench --quick")
def bench_run(
    context: typer.Context,
    suite: Annotated[
        list[str] | None, typer.Option(help="one_process, processes, scaling, padding, overhead; all if left out.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes and repetitions: about a minute.")] = False,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the results.")] = None,
) -> None:
    """Measure the layer against its peers on this machine's CPU, and print the tables."""
    if context.invoked_subcommand is not None:
        return
    from .bench import SUITES, run
    from .bench.show import show

    if unknown := set(suite or []) - set(SUITES):
        raise typer.BadParameter(f"expected suites of {tuple(SUITES)}, got {sorted(unknown)}")
    if output is not None:
        _or_exit(lambda: _make_folder(output.parent))
    results = _or_exit(lambda: run(suite or list(SUITES), quick))
    show(results)
    if output is not None:
        results.save(output)


@bench.command("show", epilog="Example: sbnref bench show benchmarks/results/*.json --figures figures")
def bench_show(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Files that sbnref bench wrote.")],
    figures: Annotated[Path | None, typer.Option(help="A folder to draw figures in.")] = None,
) -> None:
    """Print the tables of result files, and draw their figures."""
    from .bench import load
    from .bench.figures import draw
    from .bench.show import show

    for file in files:
        results = _or_exit(partial(load, file))
        show(results)
        if figures is not None:
            for path in draw(results, figures, file.stem):
                typer.echo(f"Saved {path}")


@bench.command("compare", epilog="Example: sbnref bench compare before.json after.json")
def bench_compare(
    before: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The results to measure against.")],
    after: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The results to judge.")],
) -> None:
    """Compare two result files of one machine. Exit code 1: something is slower by more than noise."""
    from .bench import compare as compare_results
    from .bench import load
    from .bench.show import show_comparison

    rows = _or_exit(lambda: compare_results(load(before), load(after)))
    show_comparison(rows)
    raise typer.Exit(any(row["verdict"] == "slower" for row in rows))


def _sizes(shape: str) -> tuple[int, ...]:
    """The numbers in ``'N,C,*'``."""
    if not re.fullmatch(r"[0-9]+(,[1-9][0-9]*)+", shape):
        raise ValueError(
            "expected a shape of at least 2 dimensions N,C,*, of which only N may be 0, such as 4,8,16,16, "
            f"got {shape!r}"
        )
    return tuple(map(int, shape.split(",")))


def _make_folder(folder: Path) -> None:
    """A folder that can be written to; asked for before the minutes of work whose results go there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"expected a folder to write the results to, got {folder}: {error.strerror}") from error


def _show(report: Any, as_json: bool) -> None:
    """A report on the terminal, or its data for a program."""
    if as_json:
        import json

        typer.echo(json.dumps(report.to_dict()))
    else:
        from rich.console import Console

        Console().print(report)


def _or_exit(work: Callable[[], T]) -> T:
    """What ``work`` returns; what it refuses is told in a sentence, not in a traceback."""
    try:
        return work()
    except (ValueError, TypeError, RuntimeError) as error:
        typer.echo(f"sbnref: {error}", err=True)
        raise typer.Exit(2) from None
