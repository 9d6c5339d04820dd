"""Benchmarks of the layer and its peers: ``python -m benchmarks``. Each result names its machine."""

from .results import Results, compare, load
from .suites import SUITES, run

__all__ = ["SUITES", "Results", "compare", "load", "run"]
