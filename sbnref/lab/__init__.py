"""CUDA kernels without a GPU: run them in a simulation, watch every access, replay and grade them."""

from .kernels import LABORATORY, SECTOR, THREADS, Call, Counts, Kernels, channels_last, count, set_order
from .recording import Recording, record

__all__ = [
    "LABORATORY",
    "SECTOR",
    "THREADS",
    "Call",
    "Counts",
    "Kernels",
    "Recording",
    "channels_last",
    "count",
    "record",
    "set_order",
]
