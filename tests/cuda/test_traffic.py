"""The kernels' memory traffic meets its lower bound, and recordings agree with the counters."""

import itertools
from math import prod
from pathlib import Path

import pytest
import torch

from sbnref.debugging.launch_plan import launch_plan, plan_in_words
from sbnref.impls import STAGES, cuda
from sbnref.lab.own_stages import StageTraffic, Traffic, calls, record_stages
from sbnref.lab.recording import example

pytestmark = pytest.mark.slow

# Bytes per channel and block: statistics, coefficients and partial results are at most twelve float64 numbers.
PER_CHANNEL = 12 * 8
SHAPES = [(2, 64, 56, 56), (4, 256, 28, 28), (1, 32, 24, 24, 24), (2, 8, 100, 152), (512, 1024), (16, 512, 8, 8)]


def assert_at_the_floor(s: StageTraffic) -> None:
    """Check that each element is read once and written once, besides the blocks' numbers per channel."""
    small = PER_CHANNEL * s.plan["tiles"] * s.plan["tile_channels"] * s.plan["splits"]
    assert s.launches == 1, s.stage
    assert s.floor_read <= s.bytes_read <= s.floor_read + small, s.stage
    assert s.floor_written <= s.bytes_written <= s.floor_written + small, s.stage


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.ranks(1, "simulated")
def test_everything_is_read_once_and_written_once(shape, dtype, channels_last):
    traffic = Traffic(shape, dtype, channels_last=channels_last)
    assert [s.stage for s in traffic.stages] == list(STAGES)
    for s in traffic.stages:
        assert_at_the_floor(s)
        assert s.sector_efficiency >= 0.9, s.stage


@pytest.mark.ranks(1, "simulated")
def test_short_runs():
    """In runs of 49 and 196 elements, neighbouring channels are read together, in wide accesses and once each."""
    for shape, dtype in itertools.product(((16, 256, 7, 7), (8, 64, 14, 14)), (torch.float16, torch.float32)):
        traffic = Traffic(shape, dtype)
        aligned = prod(shape[2:]) * dtype.itemsize % 16 == 0
        for s in traffic.stages:
            assert s.plan["layout"] == ("channels-first" if aligned else "short runs")
            assert s.plan["vector"] * dtype.itemsize == 16
            assert_at_the_floor(s)
            assert s.sector_efficiency > 0.9, s.stage


@pytest.mark.ranks(1, "simulated")
def test_edges():
    """Long odd runs, and channels that cannot be grouped: accesses are wide except at the ends."""
    for shape in ((2, 3, 45, 45), (16, 3, 7, 7), (2, 16, 33, 65)):
        for s in Traffic(shape, torch.float16).stages:
            assert s.plan["layout"] == "channels-first"
            assert 0 < s.plan["edges"] < 16, s.plan
            assert s.plan["tile_channels"] == 1, s.plan
            assert_at_the_floor(s)


def plan_of(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, *, backward: bool = False) -> dict:
    x = torch.empty(shape, dtype=dtype, device="meta")
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return launch_plan(x, backward=backward, multiprocessors=132)


# On these shapes a thread has three accesses in flight; a plan for four would take two rounds.
ONE_ROUND = [
    ((32, 128, 28, 28), True),
    ((32, 256, 14, 14), True),
    ((32, 256, 14, 14), False),
    ((32, 512, 7, 7), True),
    ((32, 512, 7, 7), False),
    ((512, 1024), True),
]


@pytest.mark.ranks(1, "simulated")
def test_half_precision_takes_one_round():
    for shape, channels_last in ONE_ROUND:
        plan = plan_of(shape, torch.float16, channels_last)
        outer = prod(shape) // shape[1] if channels_last else shape[0]
        assert -(-outer // plan["splits"]) <= 3 * plan["rows"], (shape, plan)


@pytest.mark.ranks(1, "simulated")
def test_many_channels_run_in_one_wave():
    """With many channels the blocks are smaller: a multiprocessor holds 1024 threads of any block size."""
    for shape in ((32, 1024, 14, 14), (32, 512, 28, 28)):
        for backward in (False, True):
            plan = plan_of(shape, torch.float32, False, backward=backward)
            assert plan["grid"] == shape[1], (shape, plan)
            assert plan["grid"] * plan["block"] <= 132 * 1024, (shape, plan)
    few = plan_of((32, 256, 56, 56), torch.float32, False)
    assert (few["grid"], few["block"]) == (256, 512)


@pytest.mark.parametrize("channels", [24, 40, 72, 144])
@pytest.mark.ranks(1, "simulated")
def test_most_lanes_have_channels(channels):
    """Test numbers of channels that do not fill cache lines."""
    for dtype in (torch.float16, torch.float32):
        plan = plan_of((32, channels, 28, 28), dtype, True)
        assert channels / (plan["tiles"] * plan["tile_channels"]) > 0.8, plan


@pytest.mark.ranks(1, "simulated")
def test_the_report_says_it_in_words():
    first, last = Traffic((2, 6, 9, 9)), Traffic((2, 64, 9, 9), torch.bfloat16, channels_last=True)
    assert first.to_dict()["stages"][0]["stage"] == "forward_stats"
    split, edges, small = (
        plan_in_words(launch_plan(torch.empty(shape, device="meta"), **options))
        for shape, options in (((4, 32, 192, 192), {"multiprocessors": 132}), ((2, 3, 45, 45), {}), ((0, 3), {}))
    )
    for words, text in (
        ("input (2, 6, 9, 9), float32, channels-first", str(first)),
        ("each works on", str(first)),
        ("except 5 of the 2025 contiguous ones, at the ends, one by one", edges),
        ("neighbouring channels", str(last)),
        ("8 blocks share a channel, and the last to finish adds up their partial sums.", split),
    ):
        assert words in text, text
    assert small.startswith("1 block of 32 threads")


def test_counting_takes_the_simulation():
    with pytest.raises(RuntimeError, match="SBNREF_CUDASIM=1"):
        Traffic((2, 3))


RECORDED = [((6, 2, 10, 10), False), ((2, 40, 4, 4), True), ((3, 5, 7, 7), False)]


@pytest.mark.parametrize(("shape", "channels_last"), RECORDED)
@pytest.mark.ranks(1, "simulated")
def test_a_stage_does_in_a_recording_what_it_does_elsewhere(shape, channels_last):
    library, x = cuda.simulation(), example(shape, channels_last=channels_last)
    works, recordings = calls(x), record_stages(x)
    assert list(recordings) == list(STAGES)
    for stage, recording in recordings.items():
        library.start_counting()
        works[stage]()
        (launch,) = library.stop_counting()
        counts = recording.counts()
        assert (counts["read"], counts["written"]) == (launch["bytes_read"], launch["bytes_written"]), stage
        assert counts["sectors"] == launch["sectors"], stage
        assert [launched.kernel for launched in recording.launches] == [launch["kernel"]]
        assert {Path(recording.sites[step.site][-1][0]).name for step in recording.steps} == {f"{stage}.cu"}
