"""Synchronized batch normalization that you can read, switch on, and debug with."""

import importlib
from typing import TYPE_CHECKING, Any

from . import functional
from .collectives import groups_of
from .impls import register_impl, use_impl
from .launch import RankError, Ranks, launch
from .module import SyncBatchNorm

if TYPE_CHECKING:
    from . import conformance as conformance
    from . import debugging as debugging
    from . import interop as interop
    from . import lab as lab
    from .debugging.compare import compare
    from .debugging.diagnose import diagnose
    from .debugging.monitor import monitor
    from .interop.convert import convert_sync_batchnorm, revert_sync_batchnorm

__version__ = "0.1.0"
__all__ = [
    "RankError",
    "Ranks",
    "SyncBatchNorm",
    "compare",
    "convert_sync_batchnorm",
    "diagnose",
    "functional",
    "groups_of",
    "launch",
    "monitor",
    "register_impl",
    "revert_sync_batchnorm",
    "use_impl",
]

_TOOLS = {  # loaded on first use
    "compare": "debugging.compare",
    "diagnose": "debugging.diagnose",
    "monitor": "debugging.monitor",
    "convert_sync_batchnorm": "interop.convert",
    "revert_sync_batchnorm": "interop.convert",
}


def __getattr__(name: str) -> Any:
    if name in _TOOLS:
        return getattr(importlib.import_module(f".{_TOOLS[name]}", __name__), name)
    if name in ("conformance", "debugging", "interop", "lab"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_TOOLS]
