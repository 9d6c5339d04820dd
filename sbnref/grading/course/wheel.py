"""The package as it is here, packed into a wheel again, so that a course is graded by the version that it was made by.

A wheel is a zip file of the package, its metadata and a list of both:
https://packaging.python.org/en/latest/specifications/binary-distribution-format/. Nothing is built and nothing is
downloaded, and it works from a checkout and from an installation.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from ...impls.build import CSRC
from ...impls.target import OURS

_BESIDE = OURS / "tutorials"
TUTORIALS = _BESIDE if _BESIDE.is_dir() else OURS.parent / "tutorials"  # in a wheel, in a checkout
_KINDS = (".py", ".cu", ".cuh", ".cpp", ".h", ".json", ".js", ".css", ".md", ".sh")
_OTHERS = ("py.typed", "run_autograder")
# What pyproject.toml packs: what else lies in a checkout, answers among it, stays there.
_PACKAGE = ("**/*.py", "py.typed", "laboratory/player/*", "grading/kernels/*", "grading/course/files/*")
_CSRC = ("*", "cpu/*", "laboratory/*", "sim/*")
_TUTORIALS = ("[0-9]*.py", "train.py", "kernels/*", "kernels/broken/*", "kernels/cpu/*")
EXTRAS = ("check", "cuda", "demo")  # that a course installs


def pack() -> tuple[str, bytes]:
    """The wheel: what its file is called, and what is in it.

    Raises:
        RuntimeError: the package is not installed, so that nothing says what it needs; or it needs something else now.
    """
    try:
        installed = metadata.distribution("sbnref")
    except metadata.PackageNotFoundError:
        raise RuntimeError("expected sbnref to be installed, as by `pip install .`; it is only importable") from None
    if _has_changed(installed):
        raise RuntimeError(
            "expected sbnref to need what it did when it was installed, but pyproject.toml has changed since: "
            "install it again, as by `pip install --editable .`"
        )
    about = f"sbnref-{installed.version}.dist-info"
    written = {
        f"{about}/METADATA": (installed.read_text("METADATA") or installed.read_text("PKG-INFO") or "").encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: sbnref\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": (installed.read_text("entry_points.txt") or "").encode(),
        f"{about}/licenses/LICENSE": _license(installed),
    }
    files = {name: path.read_bytes() for name, path in _files().items()} | written
    record = f"{about}/RECORD"
    rows = [f"{name},sha256={_hash(content)},{len(content)}" for name, content in files.items()]
    files[record] = "\n".join([*rows, f"{record},,\n"]).encode()
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            add(archive, name, content)
    return f"sbnref-{installed.version}-py3-none-any.whl", wheel.getvalue()


def add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Put a file into an archive, with no date, so that the same content makes the same archive."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def tutorials() -> dict[str, Path]:
    """The files of the tutorials that are handed out, by their paths there."""
    return _below(TUTORIALS, _TUTORIALS)


def _files() -> dict[str, Path]:
    """The package's files, by their names in a wheel; in a checkout not all lie in its folder."""
    modules = {name: path for name, path in _below(OURS, _PACKAGE).items() if _is_packed(path)}
    parts = {"sbnref": modules, "sbnref/csrc": _below(CSRC, _CSRC), "sbnref/tutorials": tutorials()}
    return {f"{part}/{name}": path for part, files in parts.items() for name, path in files.items()}


def _is_packed(path: Path) -> bool:
    """Whether a file of Python lies in a package, and not in a folder that was made in one."""
    return path.suffix != ".py" or (path.parent / "__init__.py").is_file()


def _below(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """The files in a folder that are meant by patterns and of a kind that we write."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(found)
        if path.name in _OTHERS or (path.suffix in _KINDS and not path.name.startswith("."))
    }


def _has_changed(installed: metadata.Distribution) -> bool:
    """Whether a checkout's pyproject.toml says something else than when it was installed, of what a course needs."""
    file = OURS.parent / "pyproject.toml"
    if sys.version_info < (3, 11) or not file.is_file():  # nothing here to read it with; an installation
        return False
    import tomllib

    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    needs = [*project["dependencies"]]
    needs += [f"{need}; extra == '{extra}'" for extra in EXTRAS for need in project["optional-dependencies"][extra]]
    needed = [need for need in installed.requires or () if _extra(need) in (None, *EXTRAS)]
    scripts = {script.name: script.value for script in installed.entry_points if script.group == "console_scripts"}
    return (project["version"], project["scripts"], {*map(_words, needs)}) != (
        installed.version, scripts, {*map(_words, needed)},
    )  # fmt: skip


def _extra(need: str) -> str | None:
    found = re.search(r"extra == .([\w-]+)", need)
    return found and found[1]


def _words(need: str) -> frozenset[str]:
    """A requirement, however its parts are ordered, spaced and quoted."""
    return frozenset(re.findall(r"[\w.*+-]+|[<>=~!]+", need)) - {"and"}


def _license(installed: metadata.Distribution) -> bytes:
    text = installed.read_text("licenses/LICENSE")
    return (OURS.parent / "LICENSE").read_bytes() if text is None else text.encode()


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
