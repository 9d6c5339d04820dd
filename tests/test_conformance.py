"""The conformance suite over the reference and the native kernels."""

import pytest

from sbnref.conformance import cases


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_an_implementation(world, case, impl):
    world(case.world_size).run(case.check, impl, "cpu")
