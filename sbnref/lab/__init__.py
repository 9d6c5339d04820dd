"""The laboratory: kernels of one's own, run and watched on a CPU in the simulation of CUDA."""

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
