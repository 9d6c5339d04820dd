"""The address of :mod:`sbnref.interop.mm` in configuration files: ``custom_imports = dict(imports=["sbnref.mm"])``."""

from .interop import mm  # noqa: F401
