"""Recordings of the package's own kernels agree with the counters."""

import pytest

from sbnref.impls import STAGES, cuda
from sbnref.lab.own_stages import calls, record_stages
from sbnref.lab.recording import Act, example

pytestmark = pytest.mark.slow

SHAPES = [((6, 2, 10, 10), False), ((2, 40, 4, 4), True), ((3, 5, 7, 7), False)]


def counted(shape: tuple[int, ...], channels_last: bool) -> dict[str, list[dict[str, object]]]:
    library, found = cuda.simulation(), {}
    for stage, call in calls(example(shape, channels_last=channels_last)).items():
        library.start_counting()
        try:
            call()
        finally:
            found[stage] = library.stop_counting()
    return found


def recorded(shape: tuple[int, ...], channels_last: bool) -> dict[str, tuple]:
    recordings = record_stages(example(shape, channels_last=channels_last)).items()
    files = {stage: {r.sites[s.site][-1][0].rpartition("/")[2] for s in r.steps} for stage, r in recordings}
    return {stage: (r.counts(), r.launches, files[stage]) for stage, r in recordings}


@pytest.mark.parametrize(("shape", "channels_last"), SHAPES)
def test_a_stage_does_in_a_recording_what_it_does_elsewhere(simulation, shape, channels_last):
    traffic, stages = simulation(counted, shape, channels_last), simulation(recorded, shape, channels_last)
    assert list(stages) == list(traffic) == list(STAGES)
    for stage, (counts, launches, files) in stages.items():
        (launch,) = traffic[stage]
        assert (counts["read"], counts["written"]) == (launch["bytes_read"], launch["bytes_written"]), stage
        assert counts["sectors"] == launch["sectors"], stage
        assert [launched.kernel for launched in launches] == [launch["kernel"]]
        assert files == {f"{stage}.cu"}


@pytest.mark.ranks(1, "simulated")
def test_each_block_takes_a_ticket():
    (recording,) = record_stages(example((6, 2, 10, 10)), ["backward_stats"]).values()
    tickets = [(step.block, len(step.lanes)) for step in recording.steps if step.act is Act.ATOMIC]
    assert tickets == [(block, 1) for block in range(4)]
