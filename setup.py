"""Find the packages, put kernel libraries into a wheel, and make the README's links work on a package index.

A wheel contains the libraries in the folder SBNREF_LIBRARIES, for the platform SBNREF_PLATFORM. Without that folder, an
installation compiles the kernels for CPU tensors if it finds PyTorch and a compiler. Pass --no-build-isolation to pip,
which otherwise hides PyTorch. SBNREF_BUILD_CPU=0 leaves these kernels out; SBNREF_BUILD_CUDA=1 adds the CUDA kernels.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import setuptools
from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# Older versions reject pyproject.toml with a page of errors that do not name the cause.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"expected setuptools 77 or newer, got {setuptools.__version__}; run: pip install 'setuptools>=77'")

# The package includes the kernels' sources and the tutorials, but not the answers to graded tasks.
ANSWERS = ("solutions", "own")
packages = find_packages(include=["sbnref", "sbnref.*"])
for beside in ("csrc", "tutorials"):
    for folder, below, _ in os.walk(beside):
        below[:] = [name for name in below if name not in ANSWERS and name[0] not in "._"]
        packages.append(".".join(["sbnref", *Path(folder).parts]))

ready = os.environ.get("SBNREF_LIBRARIES")
cpu, cuda = os.environ.get("SBNREF_BUILD_CPU") != "0", os.environ.get("SBNREF_BUILD_CUDA", "") not in ("", "0")
compiling = not ready and (cpu or cuda)
if compiling:
    try:
        import torch  # noqa: F401
    except ImportError:
        if cuda:
            sys.exit("SBNREF_BUILD_CUDA=1 needs PyTorch: install it, then run pip with --no-build-isolation")
        compiling = False


def compiled() -> dict[str, Path]:
    """Return the libraries by their names in the package."""
    if ready:
        return {file.name: file for file in Path(ready).glob("*.so")}
    sys.path.insert(0, str(Path(__file__).parent))
    from sbnref.impls import build

    files = {}
    for library in [build.CPU] * cpu + [build.KERNELS] * cuda:
        try:
            name = build.COMPILED_CUDA if library.cuda else library.installed
            files[name] = build.built(library) or build.build(library)
        except build.BuildError as error:
            if library.cuda:
                raise
            print(f"sbnref: installed without the kernels for CPU tensors: {error}", file=sys.stderr)
    return files


class WithLibraries(build_py):
    """Copy the libraries beside the modules."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "sbnref" / "libraries"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        if ready or compiling:
            folder.mkdir()
            for name, file in compiled().items():
                shutil.copyfile(file, folder / name)


class ForAnyPython(bdist_wheel):
    """Tag the wheel for every version of Python: its libraries do not depend on the version."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", os.environ.get("SBNREF_PLATFORM") or platform


class ForOnePlatform(Distribution):
    """Mark a distribution with libraries as specific to a platform."""

    def has_ext_modules(self) -> bool:
        return bool(ready or compiling)


# Make relative links, which work in a clone, point to the repository.
readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"\]\((?!https?:)", "](https://github.com/sbnref/sbnref/blob/main/", readme)
readme = re.sub(r"(\.png)\)", r"\1?raw=true)", readme)

setup(
    long_description=readme,
    long_description_content_type="text/markdown",
    packages=packages,
    package_dir={"sbnref.csrc": "csrc", "sbnref.tutorials": "tutorials"},
    cmdclass={"build_py": WithLibraries, "bdist_wheel": ForAnyPython},
    distclass=ForOnePlatform,
)
