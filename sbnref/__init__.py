"""Synchronized batch normalization, to read and to debug with."""

from . import functional
from .compare import compare
from .convert import convert_sync_batchnorm, revert_sync_batchnorm
from .impls import register_impl, use_impl
from .launch import RankError, Ranks, launch
from .module import SyncBatchNorm
from .monitor import monitor

__version__ = "0.1.0"
__all__ = [
    "RankError",
    "Ranks",
    "SyncBatchNorm",
    "compare",
    "convert_sync_batchnorm",
    "functional",
    "launch",
    "monitor",
    "register_impl",
    "revert_sync_batchnorm",
    "use_impl",
]
