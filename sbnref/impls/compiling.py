"""Call the host's compiler, and cache the libraries and objects that it makes."""

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

# Notes on template instantiation: long, and about the simulation's own headers.
_NOISE = re.compile(
    r"required (?:from|by)|[Ii]n (?:substitution|instantiation) of|^compilation terminated"
    r"|note: (?:while|during|\(skipping)|^\d+ errors? generated"
)

_PACKAGE = Path(__file__).resolve().parents[1]
CSRC = _PACKAGE / "csrc" if (_PACKAGE / "csrc").is_dir() else _PACKAGE.parent / "csrc"  # in a wheel, in a checkout
TORCH_HEADERS = ("-isystem", str(Path(torch.__file__).parent / "include"))
MOST_SECONDS = 120  # for one call of the compiler


class DoesNotCompile(RuntimeError):
    """The compiler reported an error, or took too long; the message is the compiler's."""


def compiler() -> str:
    """Return the command of the C++ compiler: ``CXX``, or the first of c++, g++ and clang++ on the PATH."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")


@functools.cache
def is_clang(command: str) -> bool:
    """Return whether a compiler is clang, whatever its name."""
    try:
        return "clang" in subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return False  # compiling reports the reason


def cache() -> Path:
    """Return the folder for libraries that are built on first use, shared with PyTorch's own extensions."""
    caches = os.environ.get("XDG_CACHE_HOME") or ("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    # pathlib's expanduser raises if the user has no home
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.expanduser(f"{caches}/torch_extensions"))


def not_writable(folder: Path, error: OSError) -> str:
    """Return a message for an error in the cache."""
    return f"cannot write to {folder}: {error.strerror}; set TORCH_EXTENSIONS_DIR to another folder"


def cached(
    name: str, sources: Iterable[Path], about: Iterable[str], compile: Callable[[Path], None], suffix: str = ".so"
) -> Path:
    """Return a cached file, compiled unless an earlier process has done so.

    Args:
        name: the name of the file.
        sources: all its sources. It is compiled again if a source changes or moves, because its debug information
            holds their paths and lines.
        about: other things that it depends on.
        compile: makes the file at the path that it gets.
        suffix: the suffix of the file's name.

    Raises:
        RuntimeError: the cache is not writable.
    """
    depends = [torch.__version__, os.environ.get("CXX", ""), *about]
    digest = hashlib.sha256("\n".join(depends).encode())
    for source in sorted(sources):
        digest.update(os.fsencode(source.resolve()) + source.read_bytes())
    built = cache() / f"{name}-{digest.hexdigest()[:16]}" / f"{name}{suffix}"
    if not os.path.exists(built):  # pathlib raises if the folder is not readable
        try:
            built.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RuntimeError(not_writable(built.parent, error)) from error
        compile(built)
    return built


def call_compiler(built: Path, *arguments: str, command: Sequence[str] = ()) -> None:
    """Make a file with one call of a compiler.

    Args:
        built: the file.
        arguments: the compiler's arguments, without its output.
        command: the compiler's command with its first arguments. If empty: the host's compiler for C++17, ended after
            :data:`MOST_SECONDS`.

    Raises:
        DoesNotCompile: the compiler reported an error, or took too long.
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
        raise DoesNotCompile(f"compiling took longer than {MOST_SECONDS} s and was ended") from None
    except OSError as error:
        raise RuntimeError(
            f"compiling needs a C++ compiler, but {command[0]!r} cannot be run: {error.strerror}; "
            "install g++ or set CXX to another compiler"
        ) from None
    if done.returncode != 0:
        lines = (line for line in done.stderr.splitlines() if not _NOISE.search(line))
        raise DoesNotCompile("\n".join(["compiling failed:", *lines]))
    unfinished.replace(built)
