"""The kernels in a process of their own: a process has either the simulation or the real ones."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import sbnref
from sbnref.impls import build


@pytest.fixture(scope="session")
def simulation() -> Iterator[Callable]:
    """``simulation(function, *args)`` runs a function where ``impl='cuda'`` takes CPU tensors."""
    with pytest.MonkeyPatch.context() as environment, sbnref.Ranks(1, timeout=300) as ranks:
        environment.setenv("SBNREF_CUDASIM", "1")
        subprocess.run((sys.executable, "-c", "from sbnref.impls import cuda; cuda.simulation()"), check=True)
        assert ranks.run(build.simulated) == [True]
        environment.undo()
        yield lambda function, *args: ranks.run(function, *args)[0]
