"""Compile ordinary CUDA for the simulation: a program, or a library whose functions Python calls."""

from __future__ import annotations

import functools
import os
import platform
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..compiling import CSRC, TORCH_HEADERS, DoesNotCompile, cached, call_compiler, compiler, is_clang
from .rewrite import included, rewrite

SIMULATION = CSRC / "simulation"
PARTS = ("launch", "arrays", "watch", "counting", "recording", "report", "hooks", "host")

# Each operation is rounded by itself, as the kernels require on the GPU where it matters. addr2line 2.40 reads wrong
# file names from DWARF 5.
_FLAGS = (
    "-O1",
    "-gdwarf-4",
    "-w",
    "-ffp-contract=off",
    "-fsanitize=thread,alignment",
    "-fstack-clash-protection",  # no frame reaches beyond the page below its stack
    "-Wfatal-errors",
    "-fno-show-column",  # columns of the rewritten text
)
_GCC = (
    "--param=tsan-distinguish-volatile=1",
    "-fno-tree-sra",  # a float4 is read as one
    "-fno-diagnostics-show-caret",
)
_CLANG = (
    *("-mllvm", "-tsan-distinguish-volatile"),
    *("-mllvm", "-tsan-instrument-read-before-write"),  # of x += 1 too
    *("-mllvm", "-disable-loop-idiom-all"),  # a loop is not a memset
    "-fno-delete-null-pointer-checks",  # keep a kernel's read at a null pointer, to report it
    "-fno-caret-diagnostics",
)


# The compiler's messages on unknown names and headers that may be CUDA's.
_UNKNOWN = re.compile(
    r"[‘'](?:struct )?((?:cuda|cu|CU|nv|__)\w+)[’'] (?:was not declared|does not name a type|has no member)"
    r"|(?:undeclared identifier|unknown type name) '((?:cuda|cu|CU|nv|__)\w+)'"
    r"|fatal error: '?((?:cu|nv)[\w/]*\.h)'?(?:: No such file| file not found)"
)


def instrument() -> tuple[str, ...]:
    """Return the compiler flags that instrument every memory access."""
    return _FLAGS + (_CLANG if is_clang(compiler()) else _GCC)


def compile_program(file: Path, search: Iterable[Path] = (), flags: Iterable[str] = ()) -> Path:
    """Compile a CUDA program.

    Args:
        file: a file with ``main()``.
        search: more folders with headers.
        flags: more compiler flags.

    Returns:
        The program, compiled unless it was before.

    Raises:
        DoesNotCompile: it does not compile.
        NotSupported: it uses a feature that the simulation does not have.
        RuntimeError: there is no compiler.
    """
    return _compile(file, ("-fPIE",), ("-pie",), search, flags, "")


def compile_kernels(sources: Iterable[Path], folder: Path, flags: Iterable[str] = ()) -> list[Path]:
    """Compile files of kernels that use PyTorch's headers.

    Args:
        sources: CUDA files.
        folder: the folder for the object files.
        flags: more compiler flags.

    Returns:
        The objects of the simulation, which have to be linked first, then those of the files.

    Raises:
        DoesNotCompile: a file does not compile.
        RuntimeError: there is no compiler.
    """
    arguments = [*instrument(), *flags, "-fPIC", f"-I{SIMULATION / 'include'}", f"-I{CSRC}", *TORCH_HEADERS]

    def compile(source: Path) -> Path:
        built = folder / f"{source.stem}.simulated.o"
        call_compiler(built, *arguments, "-c", str(rewrite(source, folder / "rewritten")))
        return built

    (folder / "rewritten").mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return [*runtime(), *pool.map(compile, sources)]


def compile_library(
    file: Path, search: Iterable[Path] = (), flags: Iterable[str] = (), unit: str | None = None
) -> Path:
    """Compile a CUDA file, or a ``unit`` that includes it, into a library; see :func:`compile_program`."""
    return _compile(file, ("-fPIC",), ("-shared",), search, flags, ".so", unit)


def _compile(
    file: Path,
    code: tuple[str, ...],
    link: tuple[str, ...],
    search: Iterable[Path],
    flags: Iterable[str],
    suffix: str,
    unit: str | None = None,
) -> Path:
    search, more, objects = list(search), list(flags), runtime()
    sources = [*included(file, search), *SIMULATION.rglob("*.h"), *Path(__file__).parent.glob("*.py")]

    def compile(built: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = file
            if unit is not None:
                source = Path(folder) / "unit.cu"
                source.write_text(unit)
            includes = [f"-I{SIMULATION / 'include'}", *(f"-I{path}" for path in search)]
            made = Path(folder) / "program.o"
            rewritten = rewrite(source, Path(folder), search)
            try:
                call_compiler(made, *instrument(), *code, *includes, *more, "-c", str(rewritten))
            except DoesNotCompile as error:
                if (unknown := _UNKNOWN.search(str(error))) is None:
                    raise
                name = next(filter(None, unknown.groups()))
                note = f"If CUDA has {name}, the simulation does not support it."
                raise DoesNotCompile(f"{error}\n{note}") from None
            libraries = () if platform.system() == "Darwin" else ("-ldl", "-lpthread")
            # The linker keeps the first of equal templates: the simulation's come first, because it must not run the
            # instrumented ones.
            call_compiler(built, *link, *map(str, objects), str(made), *libraries)

    about = [*instrument(), *link, *more, *map(str, search), *map(str, objects), unit or ""]
    return cached(file.stem, sources, about, compile, suffix)


@functools.cache
def runtime() -> tuple[Path, ...]:
    """Return the simulation's objects, compiled once for all programs.

    Raises:
        RuntimeError: they do not compile, there is no compiler, or this is Windows.
    """
    if os.name == "nt":
        raise RuntimeError("the simulation does not run on Windows; use WSL, the Windows Subsystem for Linux")
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
