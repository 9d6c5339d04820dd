"""Builds libraries ahead of time where SBNREF_BUILD_CPU or _CUDA asks for it; all else is in pyproject.toml."""

import os
import sys

import setuptools
from setuptools import setup

# Older ones refuse pyproject.toml with a page of errors, none of which says this.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"expected setuptools 77 or newer, got {setuptools.__version__}; run: pip install 'setuptools>=77'")

NO = ("", "0", "false", "no", "off")
wanted = [name for name in ("SBNREF_BUILD_CPU", "SBNREF_BUILD_CUDA") if os.environ.get(name, "").lower() not in NO]
options = {}
if wanted:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from torch.utils.cpp_extension import BuildExtension

    from sbnref.impls.build import LIBRARIES, extension

    modules = [extension(library) for library in LIBRARIES.values() if library.ahead in wanted]
    options = {"ext_modules": modules, "cmdclass": {"build_ext": BuildExtension}}
setup(**options)
