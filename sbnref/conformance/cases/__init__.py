"""What the layer promises, case by case, a file for each family of cases.

A check runs on every rank of its world and raises where a promise is broken. Every rank makes the inputs of all ranks
from the same seed, so each knows by itself what the whole group should get.
"""

from . import derivatives, extremes, groups, inputs, padding, running, training, validation
from .parts import Case

__all__ = ["Case", "cases"]


def cases() -> list[Case]:
    """All of them."""
    families = (inputs, extremes, derivatives, running, padding, groups, training, validation)
    return [case for family in families for case in family.cases()]
