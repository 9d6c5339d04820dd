"""The conformance suite over the native kernels."""

import pytest

from sbnref.conformance import cases


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_native_kernels(world, case):
    world(case.world_size).run(case.check, "cpu", "cpu")
