"""The command line: the options of each command. The work is done in the module that the command imports."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
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

    or_exit(lambda: make_folder(output))
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

    report = or_exit(run)
    _show(report, json)
    raise typer.Exit(2 if report.agrees and report.empty else not report.agrees)


@app.command(epilog="Example: sbnref build cpu")
def build(
    library: Annotated[
        list[str] | None, typer.Argument(help="cpu, cuda, simulation; cpu and, where there is a GPU, cuda if left out.")
    ] = None,
) -> None:
    """Build the libraries of the implementations now, rather than when they are first asked for.

    Exits with 0 on success, or with 2 and the reason on stderr.
    """
    from .impls.build import build_all

    or_exit(lambda: build_all(library or ()))


@app.command(epilog="Example: sbnref build simulation, then SBNREF_CUDASIM=1 sbnref info --shape 512,256,7,7")
def info(
    shape: Annotated[
        str, typer.Option(help="Of an input, (N, C, *), to show the kernels' launch plan for.")
    ] = "32,64,56,56",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, devices, which implementations can run here and if not why, and where built libraries are kept."""
    from .debugging.info import Info

    _show(or_exit(lambda: Info(_sizes(shape))), json)


lab = typer.Typer(help="Run, watch, play and grade kernels and stages, without a GPU.", no_args_is_help=True)
app.add_typer(lab, name="lab")

Examples = Annotated[int, typer.Option(min=1, help="Training steps to try on each stage or part.")]
Timeout = Annotated[float, typer.Option(min=1, max=86400, help="Seconds for a stage or part, after which it is ended.")]
Memory = Annotated[float, typer.Option(min=0.1, help="Gigabytes that the code may take (Linux).")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Of the training steps; drawn anew if left out.")]
AtLeast = Annotated[float | None, typer.Option(min=0, max=1, help="Exit with 0 from this score on.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, with a score from 0 to 1.")]


@lab.command(
    "run", epilog="Example: sbnref lab run reduce.cu -- 1024", context_settings={"allow_interspersed_args": False}
)
def run_program(
    file: Annotated[Path, typer.Argument(metavar="PROGRAM.cu", help="CUDA source with main().")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Of the program.")] = None,
    include: Annotated[list[str] | None, typer.Option("-I", help="A folder with headers; may be repeated.")] = None,
    define: Annotated[list[str] | None, typer.Option("-D", help="A macro, such as N=64; may be repeated.")] = None,
    launches: Annotated[int | None, typer.Option(min=1, help="End the program after so many launches.")] = None,
    order: Annotated[
        str | None, typer.Option(help="In which threads take turns: ascending, descending or random:SEED.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds after which the program is ended.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Run a CUDA program without a GPU, and watch every access to memory.

    An access out of bounds, a race, a missing barrier or memory that was never written ends the program. The report
    names kernel, block, thread and line. Otherwise it shows what each launch read and wrote. Exits with 0 if all is
    well, with 1 if not, or with 2 and the reason on stderr if the program does not compile.
    """
    from .lab.lines import finder
    from .lab.run import run

    flags = [f"-D{macro}" for macro in define or ()]
    given = arguments or []
    if given[:1] == ["--"]:  # kept, because options may follow the program's name that are its own
        given = given[1:]
    report = or_exit(
        lambda: run(file, given, search=include or (), flags=flags, launches=launches, order=order, timeout=timeout)
    )
    _show(report, json)
    if finder() is None:
        typer.echo("sbnref: lines are missing because addr2line is not on the PATH; install binutils or llvm", err=True)
    raise typer.Exit(not report.passed)


@lab.command(epilog="Example: sbnref lab template functions > mine.py, then sbnref lab check mine.py")
def template(
    what: Annotated[
        str, typer.Argument(help="functions, in Python; or a task in CUDA, such as softmax.")
    ] = "functions",
) -> None:
    """Print a file to start from: the stage functions in Python, or the function of a task in CUDA."""
    from .lab.grading.check import template as functions
    from .lab.tasks import find_task

    typer.echo(functions() if what == "functions" else or_exit(lambda: find_task(what)).template(), nl=False)


@lab.command(epilog="Example: sbnref lab check mine.py --stage forward_stats; sbnref lab check mine.cu --task softmax")
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_MODULE", help="Defines the four stage functions in Python, or, FILE.cu, a task's function."
        ),
    ],
    task: Annotated[
        str | None, typer.Option(help="Of FILE.cu: sum, transpose, softmax, ..., or a Python file that defines it.")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="Of FILE.cu, grade only legal, right or efficient; may be repeated.")
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
    """Grade your own four stages in Python, or a function in CUDA: is it right, and if not, on which smallest input?

    The code runs in a process of its own, without network or files to write to (Linux), and cannot see the expected
    results. Exits with 0 if all stages or parts passed, with 1 if not, or with 2 and the reason on stderr.
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
            raise typer.BadParameter(f"expected --task for a CUDA file: one of {', '.join(TASKS)}, or a Python file")
        name, repro = task, Path("repro.cu")
        kernels = or_exit(lambda: check_kernels(target, find_task(name), part or PARTS, repro=repro, **limits))
        _show(kernels, json)
        if not kernels.passed and repro.exists():
            typer.echo(f"Saved {repro}, a program that fails likewise; its first line is how to run it", err=True)
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
            help="A CUDA file that defines a task's function, or void forward(const Problem&) as the tutorials do; or "
            "one of the package's own stages, such as forward_stats.",
        ),
    ],
    task: Annotated[str | None, typer.Option(help="Of FILE.cu: sum, transpose, ..., or a Python file.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Of the input, (N, C, *), 2,4,6,6 if left out; or the sizes of the task.")
    ] = None,
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
        hint = "line numbers are missing because addr2line is not on the PATH; install binutils or llvm"
        typer.echo(f"sbnref: {hint}", err=True)
    if error is not None:
        typer.echo(f"sbnref: {error}", err=True)
        raise typer.Exit(1)


course = typer.Typer(help="Make a course: the handout for students, and the autograder.", no_args_is_help=True)
lab.add_typer(course, name="course")


@course.callback()
def course_main() -> None:
    """Keeps `sbnref lab course COMMAND` a group while it has a single command."""


@course.command("make", epilog="Example: sbnref lab course make lab3")
def course_make(
    folder: Annotated[Path, typer.Argument(help="A new or an empty one.")],
    settings: Annotated[
        Path | None, typer.Option(help="The settings.json of an earlier course, changed: points, seeds, limits.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="The built documentation, docs/_build/html after `make docs`, to hand out too.")
    ] = None,
) -> None:
    """Write a folder to hand out, exercises and templates without solutions, and an autograder for Gradescope.

    The folder's README.md says which part goes where. Exits with 0 on success, or with 2 and the reason on stderr.
    """
    from .lab.course.make import make
    from .lab.course.settings import Settings

    chosen = or_exit(lambda: Settings() if settings is None else Settings.load(settings))
    or_exit(lambda: make(folder, chosen, site))
    typer.echo(f"Saved {folder / 'README.md'}, which says what goes where")


def _sizes(shape: str, least: int = 2) -> tuple[int, ...]:
    """The numbers in ``'N,C,*'``, so many at least."""
    if not re.fullmatch(rf"[0-9]+(,[1-9][0-9]*){{{least - 1},}}", shape):
        raise ValueError(
            "expected a shape of at least 2 dimensions N,C,*, of which only N may be 0, such as 4,8,16,16, "
            f"got {shape!r}"
            if least == 2
            else f"expected sizes such as 8,40, got {shape!r}"
        )
    return tuple(map(int, shape.split(",")))


def make_folder(folder: Path) -> None:
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


def or_exit(work: Callable[[], T]) -> T:
    """Return what ``work`` returns; print an error as a sentence instead of a traceback."""
    try:
        return work()
    except (ValueError, TypeError, RuntimeError) as error:
        typer.echo(f"sbnref: {error}", err=True)
        raise typer.Exit(2) from None
