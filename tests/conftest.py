"""Ranks that all tests share: a world of each size is started once, on first use."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import sbnref


@pytest.fixture(scope="session")
def world() -> Iterator[Callable[[int], sbnref.Ranks]]:
    """``world(4)`` is a pool of four ranks."""
    pools: dict[int, sbnref.Ranks] = {}
    with ExitStack() as stack:

        def of_size(world_size: int) -> sbnref.Ranks:
            if world_size not in pools:
                pools[world_size] = stack.enter_context(sbnref.Ranks(world_size, timeout=120))
            return pools[world_size]

        yield of_size
