"""Find an implementation's library of operators: installed with the package, or built on first use and cached.

- :data:`KERNELS`: the CUDA kernels for CUDA tensors, compiled by nvcc.
- :data:`SIMULATION` (``SBNREF_CUDASIM=1``): the same sources for CPU tensors, compiled by the host's compiler against
  a simulation of the CUDA execution model.
- :data:`CPU`: separate kernels for CPU tensors, compiled for the machine's instructions.

The operators use PyTorch's stable ABI: a library works with every version of PyTorch from 2.11 on.

Environment variables:

- ``SBNREF_CUDASIM=1``: simulate.
- ``SBNREF_CPU_FLAGS``: more flags for compiling and linking :data:`CPU`.
- ``TORCH_EXTENSIONS_DIR``: the folder for built libraries (see :mod:`torch.utils.cpp_extension`).
- ``TORCH_CUDA_ARCH_LIST``: the GPUs to compile for instead of those at hand, such as ``8.0;9.0``; needs no GPU.
- ``CUDA_HOME``: the folder of the CUDA toolkit to build with (see :mod:`sbnref.impls.toolkit`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from .compiling import CSRC, TORCH_HEADERS, DoesNotCompile, cache, call_compiler, compiler, not_writable
from .environment import flag
from .toolkit import NoToolkit, Toolkit, find_toolkit

INSTALLED = Path(__file__).resolve().parents[1] / "libraries"  # the libraries in a wheel
INSTALLED_CUDA = 13  # the release that a wheel's CUDA kernels need
INSTALLED_CAPABILITY = (8, 0)  # the oldest GPUs that they run on
COMPILED_CUDA = "cuda.so"  # CUDA kernels that `pip install` compiled for this machine

HOST_SOURCES = ("operators.cpp", "plan.cpp")
CUDA_SOURCES = ("forward_stats.cu", "forward_apply.cu", "backward_stats.cu", "backward_apply.cu")

STABLE = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the stable ABI of PyTorch 2.11
NVCC_FLAGS = ("-O3", "-std=c++17", "--expt-relaxed-constexpr")
SIMULATION_FLAGS = ("-O2", "-DSBNREF_CUDASIM")


@dataclass(frozen=True, eq=False)  # hashed at every call of a layer: compare by identity
class Library:
    """The sources of a library, and its file names.

    Attributes:
        name: the name of the file built on first use.
        what: a description for messages.
        sources: files below :data:`CSRC`.
        flags: compiler flags.
        cuda: whether nvcc compiles it, for the GPUs at hand.
        installed: the file's name in a wheel; None if no wheel contains it.
        more_flags: the environment variable with more flags for compiling and linking, or None.
        simulated: kernel files to compile for the simulation and link with it. A library with such files is also a
            Python module.
    """

    name: str
    what: str
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    cuda: bool = False
    installed: str | None = None
    more_flags: str | None = None
    simulated: tuple[str, ...] = ()


KERNELS = Library(
    "sbnref_kernels",
    "the CUDA kernels",
    HOST_SOURCES + CUDA_SOURCES,
    NVCC_FLAGS,
    cuda=True,
    installed=f"cuda{INSTALLED_CUDA}.so",
)
SIMULATION = Library(
    "sbnref_simulation",
    "the simulation of the CUDA kernels",
    (*HOST_SOURCES, "simulation/bindings.cpp"),
    SIMULATION_FLAGS,
    simulated=CUDA_SOURCES,
)
#: The compiler flags by instruction set.
INSTRUCTIONS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "default": (),
}
_MACHINE = torch.backends.cpu.get_cpu_capability().lower()
if _MACHINE not in INSTRUCTIONS:
    _MACHINE = "default"
# Never fuse multiplications with additions, so that results do not depend on the instruction set.
CPU_FLAGS = ("-O3", "-ffp-contract=off", "-fvisibility=hidden")
CPU = Library(
    "sbnref_cpu",
    "the kernels for CPU tensors",
    tuple(f"cpu/{name}.cpp" for name in ("operators", *(Path(source).stem for source in CUDA_SOURCES))),
    (*CPU_FLAGS, *INSTRUCTIONS[_MACHINE]),
    installed=f"cpu_{_MACHINE}.so",
    more_flags="SBNREF_CPU_FLAGS",
)
LIBRARIES = {"cpu": CPU, "cuda": KERNELS, "simulation": SIMULATION}  # by their names on the command line


NOT_YET = "it is not built yet"


class BuildError(RuntimeError):
    """The library can be neither found nor built; the message gives the reason and the remedy."""


def simulated() -> bool:
    """Return whether ``SBNREF_CUDASIM`` selects the simulation."""
    return flag("SBNREF_CUDASIM")


@functools.cache
def load(library: Library) -> ModuleType | None:
    """Load the library, so that its operators are in :data:`torch.ops`. Builds it if needed.

    Returns:
        The Python module, or None for a library without one.

    Raises:
        BuildError: it can be neither found nor built.
    """
    return _open(library, built(library) or build(library))


@functools.cache
def why_not(library: Library) -> str | None:
    """Return why the library cannot be loaded, in words, or None. Builds it if needed."""
    try:
        load(library)
    except BuildError as error:
        return str(error)
    return None


def why_not_yet(library: Library) -> str | None:
    """Like ``why_not``, but never builds: a library that is not built yet counts as unavailable."""
    if built(library) is not None:
        return why_not(library)
    try:
        _check_tools(library)
    except BuildError as error:
        return str(error)
    (name,) = (name for name, other in LIBRARIES.items() if other is library)
    return f"{NOT_YET}; run `sbnref build {name}`, or select it with `impl` to build it on first use"


def built(library: Library) -> Path | None:
    """Return the library's file, installed or built before with the current flags; None if it is not built."""
    if library.installed is not None and not _more_flags(library):
        names = [library.installed] if not library.cuda or _wheel_needs() is None else []
        for name in ([COMPILED_CUDA] if library.cuda else []) + names:
            if (INSTALLED / name).exists():
                return INSTALLED / name
    folder = _cache_folder(library)
    there = os.path.exists(folder / "finished")  # pathlib raises if the folder is not readable
    return folder / f"{library.name}.so" if there else None


def build(library: Library) -> Path:
    """Build the library unless another process does so meanwhile, and return its file.

    Raises:
        BuildError: it cannot be built; the message gives the reason and the remedy.
    """
    from filelock import FileLock  # PyTorch depends on it

    _check_tools(library)
    folder = _cache_folder(library)
    finished = folder / "finished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # several ranks may build at once; freed if its holder dies
            if not finished.exists():
                _compile(library, folder)
                finished.touch()
    except OSError as error:
        raise BuildError(not_writable(folder, error)) from error
    return folder / f"{library.name}.so"


def build_all(names: Sequence[str] = ()) -> None:
    """Build libraries if they are missing, and print their paths.

    Args:
        names: keys of :data:`LIBRARIES`. If empty: ``cpu`` and, on a machine with a GPU, ``cuda``.

    Raises:
        ValueError: a name is unknown, or two libraries cannot be loaded in one process.
        BuildError: a library cannot be built or loaded; the message gives the reason and the remedy.
    """
    names = names or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    if unknown := [name for name in names if name not in LIBRARIES]:
        raise ValueError(f"expected libraries among {tuple(LIBRARIES)}, got {unknown}")
    if {"cuda", "simulation"} <= set(names):
        raise ValueError("expected cuda or simulation, got both; build them one at a time: their operators share names")
    for name in names:
        load(LIBRARIES[name])
        print(f"{name}: {built(LIBRARIES[name])}", file=sys.stderr)


def compile_sources(
    sources: Sequence[str], folder: Path, command: tuple[str, ...], flags: Sequence[str] = ()
) -> list[Path]:
    """Compile sources that use PyTorch's stable interface.

    Args:
        sources: files below :data:`CSRC`.
        folder: the folder for the object files.
        command: the compiler's command.
        flags: more flags for it.

    Returns:
        The object files.

    Raises:
        DoesNotCompile: a file does not compile.
        RuntimeError: there is no compiler.
    """
    headers = (f"-I{CSRC}", *TORCH_HEADERS, STABLE)

    def compile(source: str) -> Path:
        made = folder / f"{Path(source).stem}.o"
        call_compiler(made, *flags, *headers, "-c", str(CSRC / source), command=command)
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile, sources))


def nvcc_command() -> tuple[str, ...]:
    """Return the command of nvcc that compiles and links for the GPUs in ``TORCH_CUDA_ARCH_LIST`` or at hand."""
    home = find_cuda().home
    host = (f"-ccbin={compiler()}", "-Xcompiler=-fPIC", *(f"-L{home / folder}" for folder in ("lib64", "lib")))
    return (str(home / "bin" / "nvcc"), *host, *gpu_flags(_architectures()))


def gpu_flags(architectures: list[str]) -> list[str]:
    """Return nvcc's flags for architectures such as ``9.0``, ``9.0a`` or ``9.0+PTX``."""
    flags = []
    for architecture in architectures:
        code = architecture.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{code},code=sm_{code}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{code},code=compute_{code}")
    return flags


def _open(library: Library, file: Path) -> ModuleType | None:
    try:
        if not library.simulated:
            torch.ops.load_library(file)
            return None
        spec = importlib.util.spec_from_file_location(library.name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        if file.parent == INSTALLED:
            raise BuildError(
                f"{file}, installed with sbnref, does not load with PyTorch {torch.__version__}: {error}; install "
                "sbnref again"
            ) from error
        raise BuildError(f"{file} does not load: {error}; delete {file.parent} to build it again") from error
    return module


def _compile(library: Library, folder: Path) -> None:
    what = f"{library.what} for {', '.join(_architectures())}" if library.cuda else library.what
    print(f"sbnref: building {what} in {folder}, once; this takes a minute or less", file=sys.stderr, flush=True)
    more = tuple(shlex.split(_more_flags(library)))
    start = time.monotonic()
    try:
        objects, flags = [], [*library.flags, *more]
        if library.simulated:
            import pybind11

            from .simulation import compile_kernels

            sources = [CSRC / source for source in library.simulated]
            objects = compile_kernels(sources, folder, [*flags, STABLE])
            includes = (pybind11.get_include(), sysconfig.get_paths()["include"])
            flags += [f"-DTORCH_EXTENSION_NAME={library.name}", *(f"-I{include}" for include in includes)]
        command = nvcc_command() if library.cuda else (compiler(), "-std=c++20", "-fPIC")
        objects += compile_sources(library.sources, folder, command, flags)
        file = folder / f"{library.name}.so"
        call_compiler(file, "-shared", *map(str, objects), *link_flags(), *more, command=command)
    except (DoesNotCompile, RuntimeError, OSError) as error:
        raise BuildError(f"cannot build {what}: {error}") from error
    print(f"sbnref: built in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def link_flags() -> tuple[str, ...]:
    """Return the flags that link a library of operators with PyTorch."""
    if platform.system() == "Darwin":
        return ("-undefined", "dynamic_lookup")
    return (f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu")


def _more_flags(library: Library) -> str:
    return os.environ.get(library.more_flags, "") if library.more_flags else ""


def _cache_folder(library: Library) -> Path:
    """Return the library's folder: one for each combination of sources, flags and versions."""
    parts = [torch.__version__, platform.python_version(), platform.machine(), os.environ.get("CXX", "")]
    parts += [*library.flags, _more_flags(library)]
    if library.simulated or _more_flags(library):  # debug information holds the paths of the sources
        parts.append(str(CSRC))
    if library.cuda:
        parts += [str(torch.version.cuda), *_architectures()]
    digest = hashlib.sha256("\n".join(parts).encode())
    folders = {(CSRC / source).parent for source in library.sources} | {CSRC}  # CSRC for the shared headers
    files = {file for folder in folders for file in folder.glob("*")}
    if library.simulated:
        files.update((CSRC / "simulation").rglob("*"))
    for file in sorted(filter(Path.is_file, files)):
        digest.update(file.relative_to(CSRC).as_posix().encode() + file.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return cache() / f"{library.name}-{digest.hexdigest()[:16]}"


def _architectures() -> list[str]:
    """Return the architectures to compile for: 8.0, 9.0, ..."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if listed and listed != "native":
        return listed.replace(";", " ").split()
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return sorted(f"{major}.{minor}" for major, minor in capabilities)


def _check_tools(library: Library) -> None:
    """Raise :class:`BuildError` if a tool for building is missing."""
    if os.name == "nt":
        raise BuildError("the kernels cannot be built on Windows; use WSL")
    if not CSRC.is_dir():
        raise BuildError(f"expected the kernels' sources in {CSRC}, found nothing; install sbnref again")
    if shutil.which(compiler()) is None:
        raise BuildError(
            f"building needs a C++ compiler, but {compiler()!r} is not on the PATH; "
            "install g++ (Debian, Ubuntu: apt install g++) or set CXX to another compiler"
        )
    if library.simulated and importlib.util.find_spec("pybind11") is None:
        raise BuildError("building the simulation needs pybind11; install it with: pip install pybind11")
    if library.cuda:
        find_cuda()
        _check_gpus()


def find_cuda() -> Toolkit:
    """Return the CUDA toolkit to build the kernels with.

    Raises:
        BuildError: PyTorch was built without CUDA, or no toolkit fits it.
    """
    if torch.version.cuda is None:
        raise BuildError(
            f"PyTorch {torch.__version__} was built without CUDA; install one built with it (https://pytorch.org), "
            "or set SBNREF_CUDASIM=1 to simulate the kernels on CPU tensors"
        )
    try:
        return find_toolkit(torch.version.cuda)
    except NoToolkit as error:
        ours = f" (the kernels in wheels need {needs})" if (needs := _wheel_needs()) else ""
        version, cuda = torch.__version__, torch.version.cuda
        raise BuildError(f"PyTorch {version} was built with CUDA {cuda}{ours}, and {error}") from None


def _wheel_needs() -> str | None:
    """Return what a wheel's CUDA kernels need and PyTorch or a GPU at hand lacks, in words, or None."""
    older = torch.version.cuda is not None and int(torch.version.cuda.split(".")[0]) < INSTALLED_CUDA
    if older or torch.version.hip is not None:
        return f"CUDA {INSTALLED_CUDA}"
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if min(capabilities, default=INSTALLED_CAPABILITY) < INSTALLED_CAPABILITY:
        return "GPUs of compute capability {}.{} or higher".format(*INSTALLED_CAPABILITY)
    return None


def _check_gpus() -> None:
    architectures = _architectures()
    if unknown := [name for name in architectures if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name)]:
        raise BuildError(f"expected numbers such as 9.0 or 9.0+PTX in TORCH_CUDA_ARCH_LIST, got {', '.join(unknown)}")
    if not architectures:
        raise BuildError(
            "PyTorch sees no CUDA GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or set TORCH_CUDA_ARCH_LIST, for "
            "example to 9.0, to build for another machine"
        )
