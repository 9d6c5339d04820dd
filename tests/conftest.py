"""Shared fixtures: pools of ranks, each started on first use, and rows to record."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

import sbnref
from benchmarks.results import Results
from sbnref import impls
from sbnref.interop import convert

sys.path.append(str(Path(__file__).parents[1] / "tutorials"))  # for the tutorials' kernels
TIMEOUT = 300  # seconds for one call on ranks, compiling included

_recorded: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", help="a JSON file for the rows that tests record, and for the machine")
    parser.addoption("--random-minutes", type=float, default=0, help="how long test_random_training.py draws programs")
    parser.addoption("--ways", type=int, default=2, help="how many choices at a time are combined in every way")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip wholly slow files in the quick run, which lacks packages that they import."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return bool(re.search(r"^pytestmark = .*pytest\.mark\.slow", collection_path.read_text(), re.MULTILINE)) or None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    mark = pyfuncitem.get_closest_marker("ranks")
    if mark is None:
        return None
    world_size, pool = (*mark.args, "world")[:2]
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    pyfuncitem._request.getfixturevalue(pool)(world_size).run(pyfuncitem.obj, **arguments)
    return True


@pytest.fixture(autouse=True)
def _forget_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (impls, convert):
        monkeypatch.setattr(module, "_registry", dict(module._registry))


def pools(start: Callable[[sbnref.Ranks], None]) -> Iterator[Callable[[int], sbnref.Ranks]]:
    """Yield a function from a number of ranks to their pool; ``start`` runs once on each pool."""
    started: dict[int, sbnref.Ranks] = {}
    with ExitStack() as stack:

        def of_size(world_size: int) -> sbnref.Ranks:
            if world_size not in started:
                started[world_size] = stack.enter_context(sbnref.Ranks(world_size, timeout=TIMEOUT))
                start(started[world_size])
            return started[world_size]

        yield of_size


@pytest.fixture(scope="session")
def world() -> Iterator[Callable[[int], sbnref.Ranks]]:
    """Return pools of ranks: ``world(4)`` has four."""
    yield from pools(lambda ranks: None)


def start_simulation(ranks: sbnref.Ranks) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SBNREF_CUDASIM", "1")
        environment.setenv("SBNREF_IMPL", "cuda")
        load = "from sbnref.impls import cuda; cuda.simulation()"  # before the ranks' timeout starts
        subprocess.run((sys.executable, "-c", load), check=True)
        chosen = ranks.run(sbnref.impls.choose_impl, None, torch.device("cpu"))
    assert {impl.__name__ for impl in chosen} == {"sbnref.impls.cuda"}


@pytest.fixture(scope="session")
def simulated() -> Iterator[Callable[[int], sbnref.Ranks]]:
    """Return pools of ranks, such as ``simulated(2)``, whose default kernels are the simulated ones."""
    yield from pools(start_simulation)


@pytest.fixture
def record() -> Callable[..., None]:
    """Return a function that keeps a row for ``--record``: ``record(fault="a rank hangs", seconds=8.1)``."""
    return lambda **row: _recorded.append(row)


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("record")
    if file and not session.testsfailed:
        Results(rows=_recorded).save(Path(file))
