"""The command line: the options of each command. The module that a command imports does the work."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")

app = typer.Typer(
    help="Synchronized batch normalization that you can read, switch on, and debug with.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


@app.callback()
def main() -> None:
    """Prepare every command."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal has every character


@app.command(epilog="Example: sbnref demo --ranks 4 --steps 100 --output demo-output")
def demo(
    ranks: Annotated[int, typer.Option(min=2, help="Number of processes that train together.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Training steps in each mode.")] = 120,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches, the same in every mode.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")] = Path("demo-output"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Train on handwritten digits with ranks that are often empty, in every statistics mode, and compare."""
    from .demo import run

    or_exit(lambda: make_folder(output))
    run(ranks=ranks, steps=steps, seed=seed, output=output, as_json=json)


@app.command(epilog="Example: sbnref compare --impl reference --impl cpu --ranks 2 --shape 4,8,16,16 --empty-rank 1")
def compare(
    target: Annotated[
        str,
        typer.Argument(
            help="FILE.py:FUNCTION or MODULE:FUNCTION: each rank calls it to get (model, inputs). "
            "Default: one layer on random numbers."
        ),
    ] = "",
    impl: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of an implementation, or file with the four stage functions. Pass the option twice. Default: "
            "the reference and the device's kernels."
        ),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 2,
    shape: Annotated[str, typer.Option(help="Without a target: shape of each rank's input.")] = "4,8,16,16",
    empty_rank: Annotated[int | None, typer.Option(help="Without a target: a rank with an empty input.")] = None,
    dtype: Annotated[str, typer.Option(help="Without a target: dtype of the input.")] = "float32",
    stats_mode: Annotated[str, typer.Option(help="Without a target: default, N or exact.")] = "default",
    device: Annotated[str, typer.Option(help="Without a target: device of the layer and its input.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Run two implementations on the same input and the same gradient, and find the first stage that diverges.

    Exits with 0 if they agree, with 1 if they diverge, or with 2 on an error or if every input was empty.
    """
    from .debugging.compare.ranks import Comparison, RandomLayer, compare_on_ranks

    def run() -> Comparison:
        what = target or RandomLayer(_sizes(shape), empty_rank, dtype, stats_mode, device)
        return compare_on_ranks(what, impl, ranks)

    report = or_exit(run)
    _show(report, json)
    raise typer.Exit(2 if report.agrees and report.empty else not report.agrees)


@app.command(epilog="Example: sbnref build cpu")
def build(
    library: Annotated[
        list[str] | None,
        typer.Argument(help="cpu, cuda or simulation. Default: cpu and, on a machine with a GPU, cuda."),
    ] = None,
) -> None:
    """Build the libraries of the implementations now, rather than on first use.

    Exits with 0 on success, or with 2 and the reason on stderr.
    """
    from .impls.build import build_all

    or_exit(lambda: build_all(library or ()))


@app.command(epilog="Example: sbnref build simulation, then SBNREF_CUDASIM=1 sbnref info --shape 512,256,7,7")
def info(
    shape: Annotated[
        str, typer.Option(help="Shape of an input, (N, C, *): shows the kernels' launch plan for it.")
    ] = "32,64,56,56",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, devices, the implementations that can run here, and the paths of built libraries."""
    from .debugging.info import Info

    _show(or_exit(lambda: Info(_sizes(shape))), json)


lab = typer.Typer(help="Run, watch, play and grade kernels and stages, without a GPU.", no_args_is_help=True)
app.add_typer(lab, name="lab")

Examples = Annotated[int, typer.Option(min=1, help="Training steps to try on each stage or part.")]
Timeout = Annotated[float, typer.Option(min=1, max=86400, help="Time limit for a stage or part, in seconds.")]
Memory = Annotated[float, typer.Option(min=0.1, help="Memory limit for the code, in gigabytes (Linux).")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Seed of the training steps. Default: random.")]
AtLeast = Annotated[float | None, typer.Option(min=0, max=1, help="Exit with 0 if the score is at least this.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, with a score from 0 to 1.")]


@lab.command(
    "run", epilog="Example: sbnref lab run reduce.cu -- 1024", context_settings={"allow_interspersed_args": False}
)
def run_program(
    file: Annotated[Path, typer.Argument(metavar="PROGRAM.cu", help="CUDA source with main().")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments of the program.")] = None,
    include: Annotated[list[str] | None, typer.Option("-I", help="A folder with headers; may be repeated.")] = None,
    define: Annotated[list[str] | None, typer.Option("-D", help="A macro, such as N=64; may be repeated.")] = None,
    launches: Annotated[int | None, typer.Option(min=1, help="End the program after this many launches.")] = None,
    order: Annotated[
        str | None, typer.Option(help="Order in which threads run: ascending, descending or random:SEED.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=1, help="Time limit in seconds.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Run a CUDA program without a GPU, and watch every access to memory.

    An access out of bounds, a race, a missing barrier or a read of uninitialized memory ends the program.
    The report then names kernel, block, thread and line. Without a fault, it shows the traffic of each launch.

    Exits with 0 if the program succeeded without a fault, with 1 if not, or with 2 if it does not compile.
    """
    from .lab.lines import finder
    from .lab.run import run

    flags = [f"-D{macro}" for macro in define or ()]
    given = arguments or []
    if given[:1] == ["--"]:  # typer keeps it, because the program may have options of its own
        given = given[1:]
    report = or_exit(
        lambda: run(file, given, search=include or (), flags=flags, launches=launches, order=order, timeout=timeout)
    )
    _show(report, json)
    if finder() is None:
        typer.echo("sbnref: line numbers need addr2line, which is not on the PATH; install binutils or llvm", err=True)
    raise typer.Exit(not report.passed)


@lab.command(epilog="Example: sbnref lab template functions > mine.py, then sbnref lab check mine.py")
def template(
    what: Annotated[
        str, typer.Argument(help="functions (stage functions in Python), or the name of a CUDA task, such as softmax.")
    ] = "functions",
) -> None:
    """Print a file to start from: the stage functions in Python, or the function of a CUDA task."""
    from .lab.grading.check import template as functions
    from .lab.tasks import find_task

    typer.echo(functions() if what == "functions" else or_exit(lambda: find_task(what)).template(), nl=False)


@lab.command(epilog="Example: sbnref lab check mine.py --stage forward_stats; sbnref lab check mine.cu --task softmax")
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_MODULE",
            help="Python file or module with the four stage functions, or CUDA file for a task.",
        ),
    ],
    task: Annotated[
        str | None, typer.Option(help="For CUDA: sum, transpose, softmax, ..., or a Python file that defines the task.")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="For CUDA: grade only legal, right or efficient; may be repeated.")
    ] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Grade only this stage; may be repeated.")] = None,
    suite: Annotated[
        bool, typer.Option("--suite", help="Run the whole conformance suite too, on 1 to 4 ranks.")
    ] = False,
    examples: Examples = 100,
    timeout: Timeout = 60,
    memory: Memory = 4,
    seed: Seed = None,
    forbid: Annotated[
        list[str] | None, typer.Option(help="A module or function that the code may not use; may be repeated.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Lift a ban. Importing sbnref is forbidden by default.")
    ] = None,
    at_least: AtLeast = None,
    json: Json = False,
) -> None:
    """Grade your own four stages in Python, or a CUDA function, and find the smallest input on which it fails.

    The code runs in a separate process, without network or write access (Linux), and cannot see the expected results.

    Exits with 0 if all stages or parts passed, with 1 if not, or with 2 and the reason on stderr.
    """
    from .impls import STAGES
    from .lab.grading.check import check as grade
    from .lab.grading.kernels.check import check_kernels
    from .lab.grading.kernels.report import PARTS
    from .lab.tasks import TASKS, find_task

    limits: dict[str, Any] = {"examples": examples, "timeout": timeout, "memory": memory, "seed": seed}
    if target.endswith(".cu"):
        if suite or forbid or allow or stage:
            raise typer.BadParameter("--stage, --suite, --forbid and --allow are for functions in Python, not for CUDA")
        if task is None:
            raise typer.BadParameter(f"expected --task for a CUDA file: {', '.join(TASKS)}, or a Python file")
        name, repro = task, Path("repro.cu")
        repro.unlink(missing_ok=True)  # of an earlier call
        kernels = or_exit(lambda: check_kernels(target, find_task(name), part or PARTS, repro=repro, **limits))
        _show(kernels, json)
        if not kernels.passed and repro.exists():
            typer.echo(f"Saved {repro}, a program with the same failure; its first line shows how to run it", err=True)
        raise typer.Exit(not kernels.passed if at_least is None else kernels.score < at_least)
    if task is not None or part:
        raise typer.BadParameter(f"--task and --part are for CUDA files, got {target}")
    report = or_exit(
        lambda: grade(target, stage or STAGES, suite=suite, forbid=forbid or (), allow=allow or (), **limits)
    )
    _show(report, json)
    raise typer.Exit(not report.passed if at_least is None else report.score < at_least)


@lab.command(epilog="Example: sbnref lab traffic 32,64,56,56 --dtype float16 --channels-last")
def traffic(
    shape: Annotated[str, typer.Argument(help="Shape of the input, (N, C, *).")] = "32,64,56,56",
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32 or float64.")] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels side by side in memory.")] = False,
    multiprocessors: Annotated[int, typer.Option(min=1, help="Multiprocessors of the GPU to plan for.")] = 132,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count the bytes that the CUDA kernels move for a shape, in the simulation, and show their launch plan."""
    import os

    os.environ["SBNREF_CUDASIM"] = "1"  # before the kernels are loaded
    import torch

    from .lab.own_stages import Traffic

    def count() -> Traffic:
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"expected a dtype such as float16, got {dtype!r}")
        return Traffic(_sizes(shape), kind, channels_last=channels_last, multiprocessors=multiprocessors)

    _show(or_exit(count), json)


@lab.command(epilog="Example: sbnref lab trace mine.cu --task softmax --output trace.html")
def trace(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_STAGE",
            help="A CUDA file with a task's function, or with void forward(const Problem&) as in the tutorials; or a "
            "stage of this package, such as forward_stats.",
        ),
    ],
    task: Annotated[
        str | None, typer.Option(help="Task of a CUDA file: sum, transpose, ..., or a Python file that defines it.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of the input, (N, C, *), or sizes of the task. Default: 2,4,6,6.")
    ] = None,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels side by side in memory.")] = False,
    function: Annotated[
        list[str] | None, typer.Option(help="Function of the file to run instead of forward; may be repeated.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of a block (kThreads in the file): 32, 64, ... 1024.")] = 64,
    splits: Annotated[int, typer.Option(min=1, help="Blocks that may share a channel (splits in the file).")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Time limit for the kernels, in seconds.")] = 20,
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("trace.html"),
) -> None:
    """Record every warp of a small launch in the simulation, and write a page that plays the recording.

    Exits with 0 on success, with 1 and a page that ends at the kernels' error, or with 2 and no page on other errors.
    """
    from .lab.lines import finder
    from .lab.trace import trace as record

    def run() -> str | None:
        make_folder(output.parent)
        return record(
            what,
            _sizes(shape or "2,4,6,6") if task is None else _sizes(shape, 1) if shape else (),
            output,
            task=task,
            channels_last=channels_last,
            functions=function or (),
            threads=threads,
            splits=splits,
            timeout=timeout,
        )

    error = or_exit(run)
    typer.echo(f"Saved {output}")
    if finder() is None:
        hint = "line numbers need addr2line, which is not on the PATH; install binutils or llvm"
        typer.echo(f"sbnref: {hint}", err=True)
    if error is not None:
        typer.echo(f"sbnref: {error}", err=True)
        raise typer.Exit(1)


course = typer.Typer(help="Make a course: a handout for students, and an autograder.", no_args_is_help=True)
lab.add_typer(course, name="course")


@course.callback()
def course_main() -> None:
    """Keep `sbnref lab course COMMAND` a group even if it has a single command."""


@course.command("make", epilog="Example: sbnref lab course make lab3")
def course_make(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    settings: Annotated[
        Path | None, typer.Option(help="An edited settings.json of an earlier course: points, seeds, limits.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="The built site to hand out too: docs/_build/html after `make docs`.")
    ] = None,
) -> None:
    """Write a folder with a handout (exercises and templates, no solutions) and an autograder for Gradescope.

    The folder's README.md explains its parts. Exits with 0 on success, or with 2 and the reason on stderr.
    """
    from .lab.course.make import make
    from .lab.course.settings import Settings

    chosen = or_exit(lambda: Settings() if settings is None else Settings.load(settings))
    or_exit(lambda: make(folder, chosen, site))
    typer.echo(f"Saved {folder}; its README.md explains the parts")


def _sizes(shape: str, least: int = 2) -> tuple[int, ...]:
    """Return the numbers in ``'N,C,*'``, ``least`` of them or more."""
    if not re.fullmatch(rf"[0-9]+(,[1-9][0-9]*){{{least - 1},}}", shape):
        raise ValueError(
            f"expected a shape N,C,* such as 4,8,16,16, where only N may be 0, got {shape!r}"
            if least == 2
            else f"expected sizes such as 8,40, got {shape!r}"
        )
    return tuple(map(int, shape.split(",")))


def make_folder(folder: Path) -> None:
    """Create a folder, and check that it is writable, before minutes of work whose results go there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"expected a writable folder for the results, got {folder}: {error.strerror}") from error


def _show(report: Any, as_json: bool) -> None:
    """Print a report, or its data as JSON."""
    if as_json:
        import json

        typer.echo(json.dumps(report.to_dict()))
    else:
        from rich.console import Console

        Console().print(report)


def or_exit(work: Callable[[], T]) -> T:
    """Return the result of ``work``; print an error as a sentence instead of a traceback."""
    try:
        return work()
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        typer.echo(f"sbnref: {error}", err=True)
        raise typer.Exit(2) from None
