"""How fast the layer is, and against which peers: ``python -m benchmarks``. Each result names its machine."""

from .results import Results, compare, load
from .suites import SUITES, run

__all__ = ["SUITES", "Results", "compare", "load", "run"]
