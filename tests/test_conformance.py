"""The conformance suite over the reference."""

import pytest

from sbnref.conformance import cases


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_reference(world, case):
    world(case.world_size).run(case.check, "reference", "cpu")
