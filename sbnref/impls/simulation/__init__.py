"""Compile ordinary CUDA for the simulation: a program, or a library whose functions Python calls."""

from __future__ import annotations

import functools
import platform
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..build import CSRC
from .compiling import DoesNotCompile, cached, call_compiler
from .rewrite import included, rewrite

SIMULATION = CSRC / "simulation"
PARTS = ("launch", "arrays", "watch", "counting", "recording", "report", "hooks", "host")

# The compiler reports every access. Aggregates are not taken apart, so that a float4 is read as one; each operation is
# rounded by itself, as the kernels ask of the GPU where it matters. binutils up to 2.40 mistake the
# first file of DWARF 5.
FLAGS = ("-O1", "-fno-tree-sra", "-gdwarf-4", "-w", "-ffp-contract=off", "-fsanitize=thread", "-Wfatal-errors")


def compile_program(file: Path, search: Iterable[Path] = (), flags: Iterable[str] = ()) -> Path:
    """Compile a CUDA program.

    Args:
        file: with ``main()``.
        search: folders in which the headers that it includes may lie besides.
        flags: more of the compiler's.

    Returns:
        The program, compiled unless it was before.

    Raises:
        DoesNotCompile: the compiler refuses it.
        NotSupported: it uses something that the simulation does not have.
        RuntimeError: there is no compiler.
    """
    return _compile(file, ("-fPIE",), ("-pie",), search, flags, "")


def compile_kernels(sources: Iterable[Path], folder: Path, flags: Iterable[str] = ()) -> list[Path]:
    """Compile files of kernels that use PyTorch's headers.

    Args:
        sources: CUDA files.
        folder: where the objects go.
        flags: more of the compiler's.

    Returns:
        The objects, and those of the simulation.

    Raises:
        DoesNotCompile: the compiler refuses a file.
        RuntimeError: there is no compiler.
    """
    from torch.utils.cpp_extension import include_paths

    system = [word for path in include_paths() for word in ("-isystem", path)]
    arguments = [*FLAGS, *flags, "-fPIC", f"-I{SIMULATION / 'include'}", f"-I{CSRC}", *system]

    def compile(source: Path) -> Path:
        built = folder / f"{source.stem}.simulated.o"
        call_compiler(built, *arguments, "-c", str(rewrite(source, folder / "rewritten")))
        return built

    (folder / "rewritten").mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return [*pool.map(compile, sources), *runtime()]


def compile_library(file: Path, search: Iterable[Path] = (), flags: Iterable[str] = ()) -> Path:
    """Compile a CUDA file into a library, see :func:`compile_program`."""
    return _compile(file, ("-fPIC",), ("-shared",), search, flags, ".so")


def _compile(
    file: Path, code: tuple[str, ...], link: tuple[str, ...], search: Iterable[Path], flags: Iterable[str], suffix: str
) -> Path:
    search, more = list(search), list(flags)
    sources = [*included(file, search), *SIMULATION.rglob("*.h"), *Path(__file__).parent.glob("*.py")]
    objects = runtime()

    def compile(built: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = rewrite(file, Path(folder), search)
            includes = [f"-I{SIMULATION / 'include'}", *(f"-I{path}" for path in search)]
            built_object = Path(folder) / "program.o"
            call_compiler(built_object, *FLAGS, *code, *includes, *more, "-c", str(source))
            libraries = () if platform.system() == "Darwin" else ("-ldl", "-lpthread")
            call_compiler(built, *link, str(built_object), *map(str, objects), *libraries)

    return cached(file.stem, sources, [*FLAGS, *link, *more, *map(str, search), *map(str, objects)], compile, suffix)


@functools.cache
def runtime() -> tuple[Path, ...]:
    """Return the simulation's objects, compiled once for all programs.

    Raises:
        RuntimeError: they do not compile, or there is no compiler.
    """
    headers = list(SIMULATION.rglob("*.h"))
    flags = ("-O2", "-fPIC")

    def compile(part: str) -> Path:
        source = SIMULATION / f"{part}.cpp"
        make = functools.partial(_compile_part, source, flags)
        return cached(f"simulation-{part}", [*headers, source], flags, make, ".o")

    try:
        with ThreadPoolExecutor(2) as pool:
            return tuple(pool.map(compile, PARTS))
    except DoesNotCompile as error:
        raise RuntimeError(f"the simulation does not compile: {error}") from None


def _compile_part(source: Path, flags: tuple[str, ...], built: Path) -> None:
    call_compiler(built, *flags, "-c", str(source))
