"""Builds the kernels ahead of time where SBNREF_BUILD_CUDA asks for it; all else is in pyproject.toml."""

import os
import sys

from setuptools import setup

options = {}
if os.environ.get("SBNREF_BUILD_CUDA", "").lower() not in ("", "0", "false", "no", "off"):
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from torch.utils.cpp_extension import BuildExtension

    from sbnref.impls.build import KERNELS, extension

    options = {"ext_modules": [extension(KERNELS)], "cmdclass": {"build_ext": BuildExtension}}
setup(**options)
