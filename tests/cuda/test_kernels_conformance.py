"""The conformance suite over the kernels, simulated."""

import pytest

from sbnref.conformance import cases

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_kernels(simulated, case):
    simulated(case.world_size).run(case.check, "cuda", "cpu")
