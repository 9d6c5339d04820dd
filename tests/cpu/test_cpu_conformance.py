"""The conformance suite over the native kernels."""

import pytest

import sbnref
from sbnref.conformance import Case, cases
from sbnref.impls import cpu, impl_names


def check(case: Case) -> None:
    if "cpu" not in impl_names():
        sbnref.register_impl("cpu", cpu)
    case.check("cpu", "cpu")


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_native_kernels(world, case):
    world(case.world_size).run(check, case)
