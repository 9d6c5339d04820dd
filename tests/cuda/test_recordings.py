"""Recordings of the package's own kernels count what the simulation counts that is compiled for speed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from simulation import simulation  # noqa: F401

import sbnref
from sbnref.impls import STAGES, cuda
from sbnref.lab.kernels import RECORDING_FLAGS
from sbnref.lab.own_stages import calls, record_stages
from sbnref.lab.recording import Act, example

pytestmark = pytest.mark.slow

SHAPES = [((6, 2, 10, 10), False), ((2, 40, 4, 4), True), ((3, 5, 7, 7), False)]


@pytest.fixture(scope="module")
def recording() -> Iterator[Callable]:
    """``recording(function, *args)`` runs a function where the kernels can be recorded."""
    script = "from sbnref.lab.own_stages import ask_for_recordings, cuda; ask_for_recordings(); cuda.library()"
    subprocess.run((sys.executable, "-c", script), check=True)
    with pytest.MonkeyPatch.context() as environment, sbnref.Ranks(1, timeout=300) as ranks:
        environment.setenv("SBNREF_CUDASIM", "1")
        environment.setenv("SBNREF_CUDASIM_FLAGS", " ".join(RECORDING_FLAGS))
        ranks.run(os.getpid)
        environment.undo()
        yield lambda function, *args: ranks.run(function, *args)[0]


def counted(shape: tuple[int, ...], channels_last: bool) -> dict[str, list[dict[str, object]]]:
    """What each stage does to memory, by the counter of traffic."""
    library, found = cuda.library(), {}
    for stage, call in calls(example(shape, channels_last=channels_last)).items():
        library.start_counting()
        try:
            call()
        finally:
            found[stage] = library.stop_counting()
    return found


def recorded(shape: tuple[int, ...], channels_last: bool) -> dict[str, tuple]:
    recordings = record_stages(example(shape, channels_last=channels_last))
    return {
        stage: (r.counts(), r.launches, {r.sites[s.site][-1][0].rpartition("/")[2] for s in r.steps})
        for stage, r in recordings.items()
    }


@pytest.mark.parametrize(("shape", "channels_last"), SHAPES)
def test_a_stage_does_in_a_recording_what_it_does_elsewhere(simulation, recording, shape, channels_last):  # noqa: F811
    traffic, stages = simulation(counted, shape, channels_last), recording(recorded, shape, channels_last)
    assert list(stages) == list(traffic) == list(STAGES)
    for stage, (counts, launches, files) in stages.items():
        (launch,) = traffic[stage]
        assert (counts["read"], counts["written"]) == (launch["bytes_read"], launch["bytes_written"]), stage
        assert counts["sectors"] == launch["sectors"], stage
        assert [launched.kernel for launched in launches] == [launch["kernel"]] == [stage]
        assert files == {f"{stage}.cu"}


def tickets() -> list[tuple[int, int]]:
    (recording,) = record_stages(example((6, 2, 10, 10)), ["backward_stats"]).values()
    return [(step.block, len(step.lanes)) for step in recording.steps if step.act is Act.TICKET]


def test_each_block_takes_a_ticket(recording):
    assert recording(tickets) == [(block, 1) for block in range(4)]


def refused() -> str:
    with pytest.raises(RuntimeError, match="was not compiled for recordings") as error:
        record_stages(example((2, 3)))
    return str(error.value)


def test_a_simulation_that_records_nothing_says_so(simulation):  # noqa: F811
    assert simulation(refused)
