"""The guarantees of the layer, case by case, with a file for each family of cases.

A check runs on every rank of its world and raises if a guarantee is violated. Every rank makes the inputs of all ranks
from one seed, so that it can compute the results of the whole group by itself.
"""

from . import derivatives, extremes, groups, inputs, padding, running, training, validation
from .parts import Case

__all__ = ["Case", "cases"]


def cases() -> list[Case]:
    """Return all cases."""
    families = (inputs, extremes, derivatives, running, padding, groups, training, validation)
    return [case for family in families for case in family.cases()]
