"""The conformance suite over the kernels, simulated."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from simulation import simulation  # noqa: F401

import sbnref
from sbnref.conformance import cases
from sbnref.impls import build


@pytest.fixture(scope="module")
def simulated_world(simulation) -> Iterator[Callable[[int], sbnref.Ranks]]:  # noqa: F811
    """``simulated_world(4)`` is a pool of four ranks that run the kernels on CPU tensors."""
    pools: dict[int, sbnref.Ranks] = {}
    with ExitStack() as stack:

        def of_size(world_size: int) -> sbnref.Ranks:
            if world_size not in pools:
                pools[world_size] = stack.enter_context(sbnref.Ranks(world_size, timeout=120))
                with pytest.MonkeyPatch.context() as environment:
                    environment.setenv("SBNREF_CUDASIM", "1")
                    assert all(pools[world_size].run(build.simulated))  # the ranks have started, with this set
            return pools[world_size]

        yield of_size


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_kernels(simulated_world, case):
    simulated_world(case.world_size).run(case.check, "cuda", "cpu")
