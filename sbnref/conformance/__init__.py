"""One suite for every implementation: the layer's guarantees, as functions that run on each rank of a world.

from sbnref.conformance import cases
for case in cases():
    with sbnref.Ranks(case.world_size) as ranks:
        ranks.run(case.check, "reference", "cpu")   # raises if the guarantee is violated
"""

from .accuracy import measure_accuracy
from .cases import Case, cases

__all__ = ["Case", "cases", "measure_accuracy"]
