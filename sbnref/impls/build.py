"""Finding an implementation's library of operators: built ahead of time, built on first use and cached, or why not.

:data:`KERNELS` are the kernels compiled by nvcc for CUDA tensors; :data:`SIMULATION`, which ``SBNREF_CUDASIM=1`` asks
for, is the same sources compiled by the host's compiler against a simulation of the CUDA execution model, for CPU
tensors. :data:`CPU` are kernels of their own for CPU tensors, compiled for the instructions that the machine has.

Environment variables:

- ``SBNREF_CUDASIM=1``: simulate.
- ``SBNREF_CPU_FLAGS``: more flags for compiling and linking :data:`CPU`.
- ``TORCH_EXTENSIONS_DIR``: where built libraries are kept (see :mod:`torch.utils.cpp_extension`).
- ``TORCH_CUDA_ARCH_LIST``: what to compile for instead of the GPUs at hand, such as ``8.0;9.0``; needs no GPU.
- ``CUDA_HOME``: the folder of the CUDA toolkit to build with (see :mod:`sbnref.impls.toolkit`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .compiling import CSRC, cache, compiler
from .environment import flag
from .toolkit import NoToolkit, Toolkit, find_toolkit

_PACKAGE = Path(__file__).resolve().parents[1]

HOST_SOURCES = ("operators.cpp", "bindings.cpp", "plan.cpp")
CUDA_SOURCES = ("forward_stats.cu", "forward_apply.cu", "backward_stats.cu", "backward_apply.cu")

NVCC_FLAGS = ("-O3", "--expt-relaxed-constexpr")
SIMULATION_FLAGS = ("-O2", "-DSBNREF_CUDASIM")


@dataclass(frozen=True, eq=False)  # one object each: compared, and hashed at every call of a layer, by identity
class Library:
    """What a library is made of, and where it is found.

    Attributes:
        name: the file's, where it is built on first use.
        what: it is, in words.
        sources: below :data:`CSRC`.
        flags: of the host's compiler.
        cuda: whether nvcc compiles it too, for the GPUs at hand.
        installed: the module that it is in an installation which built it ahead of time; None if none builds it.
        ahead: the environment variable that has an installation do so.
        module: whether it is a Python module besides registering operators.
        more_flags: the environment variable with more flags for compiling and linking; None if there is none.
        simulated: files of kernels that are compiled for the simulation, and linked with it.
    """

    name: str
    what: str
    sources: tuple[str, ...]
    flags: tuple[str, ...] = ("-O2",)
    cuda: bool = False
    installed: str | None = None
    ahead: str | None = None
    module: bool = True
    more_flags: str | None = None
    simulated: tuple[str, ...] = ()


KERNELS = Library(
    "sbnref_kernels",
    "its CUDA kernels",
    HOST_SOURCES + CUDA_SOURCES,
    cuda=True,
    installed="sbnref._kernels",
    ahead="SBNREF_BUILD_CUDA",
)
SIMULATION = Library(
    "sbnref_simulation",
    "the simulation of its kernels",
    HOST_SOURCES,
    SIMULATION_FLAGS,
    simulated=CUDA_SOURCES,
)
_CAPABILITY = torch.backends.cpu.get_cpu_capability()  # what this machine has, by PyTorch's name
_INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
}.get(_CAPABILITY, ())
# Where multiplications are never fused with additions, the results do not depend on the instructions.
CPU_FLAGS = ("-O3", "-ffp-contract=off", "-fvisibility=hidden", *_INSTRUCTIONS)
CPU = Library(
    "sbnref_cpu",
    "its kernels for CPU tensors",
    (
        "cpu/operators.cpp",
        "cpu/forward_stats.cpp",
        "cpu/forward_apply.cpp",
        "cpu/backward_stats.cpp",
        "cpu/backward_apply.cpp",
    ),
    CPU_FLAGS,
    # The instructions are in the name: a machine that has others does not find it, and builds its own.
    installed="sbnref._cpu_" + _CAPABILITY.lower().replace(" ", "_"),
    ahead="SBNREF_BUILD_CPU",
    module=False,
    more_flags="SBNREF_CPU_FLAGS",
)
LIBRARIES = {"cpu": CPU, "cuda": KERNELS, "simulation": SIMULATION}  # as the command line names them


NOT_YET = "it is not built yet"


class BuildError(RuntimeError):
    """The library cannot be had; the message says why and what to do about it."""


def simulated() -> bool:
    """Whether ``SBNREF_CUDASIM`` asks for the simulation."""
    return flag("SBNREF_CUDASIM")


@functools.cache
def load(library: Library) -> ModuleType | None:
    """The library, loaded: its operators are then in :data:`torch.ops`. Builds it where it has to be built.

    Returns:
        The module that it is, None for one of operators alone.

    Raises:
        BuildError: it can be neither found nor built.
    """
    return _open(library, built(library) or build(library))


@functools.cache
def why_not(library: Library) -> str | None:
    """Why there is no such library, in words; None where there is one. Builds it where it has to be built."""
    try:
        load(library)
    except BuildError as error:
        return str(error)
    return None


def why_not_yet(library: Library) -> str | None:
    """The same, and nothing is built: that it has to be built is a reason."""
    if built(library) is not None:
        return why_not(library)
    try:
        _check_tools(library)
    except BuildError as error:
        return str(error)
    (name,) = (name for name, other in LIBRARIES.items() if other is library)
    return f"{NOT_YET}; asking for it builds it, or: sbnref build {name}"


def built(library: Library) -> Path | None:
    """The library's file, built ahead of time or before, with the flags asked for; None where it has to be built."""
    if library.installed is not None and not _more_flags(library):
        spec = importlib.util.find_spec(library.installed)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin)
    folder = _cache_folder(library)
    there = os.path.exists(folder / "finished")  # pathlib raises where the folder may not be looked into
    return folder / f"{library.name}.so" if there else None


def build(library: Library) -> Path:
    """The library's file, built now unless another process does so meanwhile.

    Raises:
        BuildError: it cannot be built; the message says why and what to do about it.
    """
    from filelock import FileLock  # PyTorch depends on it

    _check_tools(library)
    folder = _cache_folder(library)
    finished = folder / "finished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # several ranks may start at once; it is freed when its holder dies
            if not finished.exists():
                _compile(library, folder)
                finished.touch()
    except OSError as error:
        raise BuildError(
            f"{folder} cannot be written to: {error.strerror}; name another folder in TORCH_EXTENSIONS_DIR"
        ) from error
    return folder / f"{library.name}.so"


def compiled(library: Library) -> int:
    """How many of its files a build has compiled so far."""
    return len(list(_cache_folder(library).glob("*.o")))


def extension(library: Library) -> Any:
    """The library as setuptools builds it ahead of time.

    Raises:
        BuildError: it needs CUDA, and PyTorch has none, nvcc is missing, the two do not fit, or no GPU is named.
    """
    from torch.utils import cpp_extension

    link_folder = None
    if library.cuda:
        link_folder = use_toolkit(Path("build") / "cudart")  # in setuptools' folder
        _check_gpus()
    assert library.installed is not None
    kind = cpp_extension.CUDAExtension if library.cuda else cpp_extension.CppExtension
    return kind(
        library.installed,
        [os.path.relpath(CSRC / source) for source in library.sources],
        include_dirs=[str(CSRC)],
        library_dirs=[] if link_folder is None else [str(link_folder)],
        extra_compile_args={"cxx": list(library.flags), "nvcc": list(NVCC_FLAGS)},
    )


def _open(library: Library, file: Path) -> ModuleType | None:
    try:
        if not library.module:
            torch.ops.load_library(file)
            return None
        if _installed(file):
            assert library.installed is not None
            return importlib.import_module(library.installed)
        spec = importlib.util.spec_from_file_location(library.name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        if _installed(file):
            raise BuildError(
                f"the library that was installed with sbnref does not load with PyTorch {torch.__version__}: {error}. "
                f"Install sbnref again: {library.ahead}=1 pip install --no-build-isolation --force-reinstall ."
            ) from error
        raise BuildError(f"{file} does not load: {error}. Delete {file.parent} to build it again") from error
    return module


def _installed(file: Path) -> bool:
    return file.parent.resolve() == _PACKAGE


def _compile(library: Library, folder: Path) -> None:
    from torch.utils import cpp_extension

    what = f"{library.what} for {', '.join(_architectures())}" if library.cuda else library.what
    print(f"sbnref: building {what} in {folder}, once; this takes a minute or less", file=sys.stderr, flush=True)
    (folder / "lock").unlink(missing_ok=True)  # of a build that was interrupted: we hold the lock that counts
    more = shlex.split(_more_flags(library))
    link_folder = use_toolkit(folder) if library.cuda else None
    start = time.monotonic()
    try:
        objects: list[Path] = []
        if library.simulated:
            from .simulation import compile_kernels

            sources = [CSRC / source for source in library.simulated]
            objects = compile_kernels(sources, folder, [*library.flags, *more])
        with _tools_of_the_builder():
            cpp_extension.load(
                library.name,
                [str(CSRC / source) for source in library.sources],
                extra_include_paths=[str(CSRC)],
                extra_cflags=[*library.flags, *more],
                extra_cuda_cflags=list(NVCC_FLAGS),
                extra_ldflags=[*([f"-L{link_folder}"] if link_folder else []), *more, *map(str, objects)],
                build_directory=str(folder),
                with_cuda=library.cuda,
                is_python_module=False,
            )
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"compiling {what} failed. The compiler said:\n{error}") from error
    print(f"sbnref: built in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def _tools_of_the_builder() -> Iterator[None]:
    """Set the environment variables by which PyTorch's builder finds ninja and the compiler.

    It runs the command ``ninja``. pip installs that beside this Python, in a folder that need not be on the PATH.
    """
    before = dict(os.environ)
    os.environ["CXX"] = compiler()
    if shutil.which("ninja") is None:
        import ninja

        os.environ["PATH"] = os.pathsep.join([before.get("PATH", os.defpath), ninja.BIN_DIR])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _more_flags(library: Library) -> str:
    return os.environ.get(library.more_flags, "") if library.more_flags else ""


def _cache_folder(library: Library) -> Path:
    """One folder for each combination of what a library depends on."""
    parts = [torch.__version__, platform.python_version(), platform.machine(), os.environ.get("CXX", "")]
    parts += [*library.flags, _more_flags(library)]
    if _more_flags(library):  # which may keep the lines of the sources: those of this place
        parts.append(str(CSRC))
    if library.cuda:
        parts += [str(torch.version.cuda), *_architectures()]
    digest = hashlib.sha256("\n".join(parts).encode())
    folders = {(CSRC / source).parent for source in library.sources} | {CSRC}  # all share the headers at the top
    files = {file for folder in folders for file in folder.glob("*")}
    if library.simulated:
        files.update((CSRC / "simulation").rglob("*"))
    for file in sorted(filter(Path.is_file, files)):
        digest.update(file.relative_to(CSRC).as_posix().encode() + file.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return cache() / f"{library.name}-{digest.hexdigest()[:16]}"


def _architectures() -> list[str]:
    """What to compile for: 8.0, 9.0, ..."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if listed and listed != "native":
        return listed.replace(";", " ").split()
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return sorted(f"{major}.{minor}" for major, minor in capabilities)


def _check_tools(library: Library) -> None:
    """Raise :class:`BuildError` for what building would fail on, in words that help."""
    if not CSRC.is_dir():
        raise BuildError(f"the kernels' sources are missing, expected them in {CSRC}; install sbnref again")
    if shutil.which(compiler()) is None:
        raise BuildError(
            f"building needs a C++ compiler, and there is no {compiler()!r} on the PATH; "
            "install g++ (Debian, Ubuntu: apt install g++) or name one in CXX"
        )
    if shutil.which("ninja") is None and importlib.util.find_spec("ninja") is None:
        raise BuildError("building needs ninja; install it with: pip install ninja")
    if library.cuda:
        find_cuda()
        _check_gpus()


def find_cuda() -> Toolkit:
    """The CUDA toolkit that the kernels are built with.

    Raises:
        BuildError: PyTorch is without CUDA, or no toolkit fits it.
    """
    if torch.version.cuda is None:
        raise BuildError(
            f"PyTorch {torch.__version__} was built without CUDA; install one built with it (https://pytorch.org), "
            "or set SBNREF_CUDASIM=1 to simulate the kernels on CPU tensors"
        )
    try:
        return find_toolkit(torch.version.cuda)
    except NoToolkit as error:
        raise BuildError(f"PyTorch {torch.__version__} was built with CUDA {torch.version.cuda}, and {error}") from None


def _check_gpus() -> None:
    if not _architectures():
        raise BuildError(
            "no CUDA GPU is visible to PyTorch; see nvidia-smi and CUDA_VISIBLE_DEVICES, or to build for another "
            "machine name its GPUs in TORCH_CUDA_ARCH_LIST, such as 9.0"
        )


def toolkit_in_words() -> str:
    """What :func:`find_cuda` finds, or why it finds nothing."""
    try:
        return str(find_cuda())
    except BuildError as error:
        return f"none: {error}"


def use_toolkit(own: Path) -> Path | None:
    """Have PyTorch's builder take the toolkit; returns a folder that the linker has to search besides."""
    from torch.utils import cpp_extension

    toolkit = find_cuda()
    cpp_extension.CUDA_HOME = str(toolkit.home)  # found when it was imported, by other rules; read at each use
    return toolkit.link_folder(own)
