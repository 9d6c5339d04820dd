"""A library or an object that one call of the host's compiler makes, once, and that is kept where sbnref's own are."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

# How templates came to be, which is long and of the simulation's own headers.
_NOISE = re.compile(
    r"required (?:from|by)|[Ii]n (?:substitution|instantiation) of|^compilation terminated"
    r"|note: (?:while|during|\(skipping)|^\d+ errors? generated"
)

_PACKAGE = Path(__file__).resolve().parents[1]
CSRC = _PACKAGE / "csrc" if (_PACKAGE / "csrc").is_dir() else _PACKAGE.parent / "csrc"  # in a wheel, in a checkout
TORCH_HEADERS = ("-isystem", str(Path(torch.__file__).parent / "include"))
MOST_SECONDS = 120  # that compiling may take


class DoesNotCompile(RuntimeError):
    """The source is not what the compiler takes, or it takes too long; the message is the compiler's."""


def compiler() -> str:
    """The command of the C++ compiler: ``CXX``, or the first that is on the PATH of c++, g++ and clang++."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")


@functools.cache
def is_clang(command: str) -> bool:
    """Whether a compiler is clang, by whatever name."""
    try:
        return "clang" in subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return False  # compiling says why


def cache() -> Path:
    """Where the folders of the libraries lie that are built on first use: where PyTorch keeps what it builds."""
    caches = os.environ.get("XDG_CACHE_HOME") or ("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(caches).expanduser() / "torch_extensions")


def cached(
    name: str, sources: Iterable[Path], about: Iterable[str], compile: Callable[[Path], None], suffix: str = ".so"
) -> Path:
    """The file of that name, compiled unless an earlier process has done so.

    Args:
        name: the file's.
        sources: everything that it is made of. Where one of them changes or lies elsewhere it is compiled again: the
            lines that the compiler keeps are lines of these files.
        about: what it depends on besides.
        compile: makes the file whose path it is given.
        suffix: of the file's name.
    """
    depends = [torch.__version__, os.environ.get("CXX", ""), *about]
    digest = hashlib.sha256("\n".join(depends).encode())
    for source in sorted(sources):
        digest.update(os.fsencode(source.resolve()) + source.read_bytes())
    built = cache() / f"{name}-{digest.hexdigest()[:16]}" / f"{name}{suffix}"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        compile(built)
    return built


def call_compiler(built: Path, *arguments: str, command: Sequence[str] = ()) -> None:
    """Make a file with one call of a compiler.

    Args:
        built: the file.
        arguments: of the compiler, without its output.
        command: of the compiler, with its first arguments; the host's for C++17 if empty. That one is ended after
            :data:`MOST_SECONDS`.

    Raises:
        DoesNotCompile: the compiler refuses it, or was not done in time.
        RuntimeError: there is no compiler.
    """
    seconds = None if command else MOST_SECONDS
    command = command or (compiler(), "-std=c++17")
    unfinished = built.with_suffix(f".{os.getpid()}")  # another process may be building it too
    try:
        done = subprocess.run(
            [*command, *arguments, "-o", str(unfinished)], capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise DoesNotCompile(f"compiling was not done after {MOST_SECONDS} s and was ended") from None
    except OSError as error:
        raise RuntimeError(
            f"compiling takes a C++ compiler, and {command[0]!r} cannot be run: {error.strerror}; "
            "install g++ or name one in CXX"
        ) from None
    if done.returncode != 0:
        lines = (line for line in done.stderr.splitlines() if not _NOISE.search(line))
        raise DoesNotCompile("\n".join(["compiling failed. The compiler said:", *lines]))
    unfinished.replace(built)
