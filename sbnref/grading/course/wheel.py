"""The package as it is here, packed into a wheel again, so that a course is graded by the version that it was made by.

A wheel is a zip file of the package, its metadata and a list of both:
https://packaging.python.org/en/latest/specifications/binary-distribution-format/. Nothing is built and nothing is
downloaded, and it works from a checkout and from an installation.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib import metadata
from pathlib import Path

from ...impls.build import CSRC
from ...impls.target import OURS

_BESIDE = OURS / "tutorials"
TUTORIALS = _BESIDE if _BESIDE.is_dir() else OURS.parent / "tutorials"  # in a wheel, in a checkout
NOT_HANDED_OUT = ("solutions", "own", "__pycache__")  # answers: `own` has whole files of kernels
_BUILT = (".so", ".pyd", ".pyc")


def pack(folder: Path) -> Path:
    """Write the wheel.

    Args:
        folder: to write it to.

    Returns:
        The file.

    Raises:
        RuntimeError: the package is not installed, so that nothing says what it needs.
    """
    try:
        installed = metadata.distribution("sbnref")
    except metadata.PackageNotFoundError:
        raise RuntimeError("expected sbnref to be installed, as by `pip install .`; it is only importable") from None
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
    wheel = folder / f"sbnref-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            add(archive, name, content)
    return wheel


def add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Put a file into an archive, with no date, so that the same content makes the same archive."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def files_below(folder: Path) -> list[Path]:
    """The files in a folder that may be handed out, by their paths in it."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not {*NOT_HANDED_OUT} & {*path.parts} and path.suffix not in _BUILT]


def _files() -> dict[str, Path]:
    """The package's files, by their names in a wheel; in a checkout not all lie in its folder."""
    roots = {"sbnref": OURS, "sbnref/csrc": CSRC, "sbnref/tutorials": TUTORIALS}
    return {f"{name}/{path.as_posix()}": root / path for name, root in roots.items() for path in files_below(root)}


def _license(installed: metadata.Distribution) -> bytes:
    text = installed.read_text("licenses/LICENSE")
    return (OURS.parent / "LICENSE").read_bytes() if text is None else text.encode()


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
