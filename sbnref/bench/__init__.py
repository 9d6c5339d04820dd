"""How fast, against whom, and how the cost grows. ``sbnref bench`` runs it; results say where they are from."""

from .results import Results, compare, load
from .suites import SUITES, run

__all__ = ["SUITES", "Results", "compare", "load", "run"]
