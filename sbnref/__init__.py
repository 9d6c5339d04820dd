"""Synchronized batch normalization, to read and to debug with."""

import sys

from . import debugging, functional
from .collectives import groups_of
from .debugging.compare import compare
from .debugging.monitor import monitor
from .grading import check
from .impls import register_impl, use_impl
from .interop.convert import convert_sync_batchnorm, register_conversion, revert_sync_batchnorm
from .interop.uneven import until_all_done
from .launch import RankError, Ranks, launch
from .module import SyncBatchNorm

debug = debugging.agreement
# These are addresses too, as in `from sbnref.check import check`; the modules themselves stand in their rooms.
sys.modules.update(
    {
        "sbnref.check": check,
        "sbnref.compare": debugging.compare,
        "sbnref.debug": debug,
        "sbnref.monitor": debugging.monitor,
    }
)

__version__ = "0.1.0"
__all__ = [
    "RankError",
    "Ranks",
    "SyncBatchNorm",
    "compare",
    "convert_sync_batchnorm",
    "functional",
    "groups_of",
    "launch",
    "monitor",
    "register_conversion",
    "register_impl",
    "revert_sync_batchnorm",
    "until_all_done",
    "use_impl",
]
