"""Find the packages, and build libraries ahead of time where SBNREF_BUILD_CPU or _CUDA asks for it."""

import os
import sys
from pathlib import Path

import setuptools
from setuptools import find_packages, setup

# Older ones refuse pyproject.toml with a page of errors, none of which says this.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"expected setuptools 77 or newer, got {setuptools.__version__}; run: pip install 'setuptools>=77'")

NO = ("", "0", "false", "no", "off")
wanted = [name for name in ("SBNREF_BUILD_CPU", "SBNREF_BUILD_CUDA") if os.environ.get(name, "").lower() not in NO]
# The kernels' sources and the tutorials travel with the package. Answers to what a course grades do not.
ANSWERS = ("solutions", "own")
packages = find_packages(include=["sbnref", "sbnref.*"])
for beside in ("csrc", "tutorials"):
    for folder, below, _ in os.walk(beside):
        below[:] = [name for name in below if name not in ANSWERS and name[0] not in "._"]
        packages.append(".".join(["sbnref", *Path(folder).parts]))
options = {"packages": packages, "package_dir": {"sbnref.csrc": "csrc", "sbnref.tutorials": "tutorials"}}
if wanted:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from torch.utils.cpp_extension import BuildExtension

    from sbnref.impls.build import LIBRARIES, extension

    modules = [extension(library) for library in LIBRARIES.values() if library.ahead in wanted]
    options |= {"ext_modules": modules, "cmdclass": {"build_ext": BuildExtension}}
setup(**options)
