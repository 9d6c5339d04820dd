"""What tests share: ranks, a world of each size started once, on first use; and lines for the summary at the end."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch

import sbnref

_summary: list[str] = []


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


@pytest.fixture(scope="session")
def simulated() -> Iterator[sbnref.Ranks]:
    """Two ranks whose layers run the simulated kernels. A process that has loaded the simulation keeps it."""
    with pytest.MonkeyPatch.context() as environment, sbnref.Ranks(2, timeout=120) as ranks:
        environment.setenv("SBNREF_CUDASIM", "1")
        environment.setenv("SBNREF_IMPL", "cuda")
        load = "from sbnref.impls import cuda; cuda.library()"  # before the ranks' time runs
        subprocess.run((sys.executable, "-c", load), check=True)
        chosen = ranks.run(sbnref.impls.choose_impl, None, torch.device("cpu"))
        assert [impl.__name__ for impl in chosen] == ["sbnref.impls.cuda"] * 2
        environment.undo()
        yield ranks


@pytest.fixture
def summary() -> list[str]:
    """Lines appended here are printed after the tests."""
    return _summary


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _summary:
        terminalreporter.section("relative errors against float64")
        terminalreporter.write_line("\n".join(_summary))
