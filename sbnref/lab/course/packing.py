"""Pack the contents of a course: the tutorials, and the package as a wheel that pip builds from this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ...impls.user_module import OURS

ROOT = OURS.parent
_BESIDE = OURS / "tutorials"
TUTORIALS = _BESIDE if _BESIDE.is_dir() else ROOT / "tutorials"  # in an installation, in a checkout
_HANDED_OUT = ("[0-9]*.py", "train.py", "kernels/*.*", "kernels/broken/*.*", "kernels/cpu/*.*")


def pack() -> tuple[str, bytes]:
    """Build the wheel of this checkout, and return its file name and its content.

    Raises:
        RuntimeError: this is an installation, not a checkout; pip cannot build the wheel; or the tutorials' folder has
            other files, perhaps solutions.
    """
    if not (ROOT / "pyproject.toml").is_file():
        raise RuntimeError(f"expected a checkout of sbnref, to build the course's wheel from, got {OURS}")
    with tempfile.TemporaryDirectory(prefix="sbnref-") as folder:
        config = Path(folder, "setup.cfg")  # build outside the checkout: leave no files there, and pack no old ones
        config.write_text(f"[build]\nbuild_base={folder}/build\n[egg_info]\negg_base={folder}\n")
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        environment = {**os.environ, "DIST_EXTRA_CONFIG": str(config), "SOURCE_DATE_EPOCH": "315532800"}
        environment["SBNREF_BUILD_CPU"] = "0"  # the wheel is for other machines
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip cannot build a wheel of {ROOT}:\n{done.stderr.strip()}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = {name for name in archive.namelist() if name.startswith("sbnref/tutorials/")}
        if unknown := sorted(packed - {f"sbnref/tutorials/{name}" for name in tutorials()}):
            raise RuntimeError(f"expected only the tutorials in {TUTORIALS}, got {unknown} too; move them away")
        return wheel.name, wheel.read_bytes()


def tutorials() -> dict[str, Path]:
    """Return the files of the tutorials that are handed out, by their paths in the handout."""
    found = {path for pattern in _HANDED_OUT for path in TUTORIALS.glob(pattern) if path.is_file()}
    return {path.relative_to(TUTORIALS).as_posix(): path for path in sorted(found)}


def add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Put a file into an archive, without a date, so that equal contents make equal archives."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)
