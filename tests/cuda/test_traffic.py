"""What the kernels do to memory is held to the floor."""

import itertools
from functools import partial
from math import prod

import pytest
import torch

from sbnref.debugging.launch_plan import launch_plan, plan_in_words
from sbnref.impls import STAGES
from sbnref.lab.own_stages import StageTraffic, Traffic

pytestmark = pytest.mark.slow

# Per channel and block: statistics, coefficients and partial results are at most twelve float64 numbers.
PER_CHANNEL = 12 * 8
SHAPES = [(8, 64, 56, 56), (4, 256, 28, 28), (1, 32, 24, 24, 24), (2, 8, 100, 152), (512, 1024), (64, 512, 8, 8)]


def assert_at_the_floor(s: StageTraffic) -> None:
    """All elements are read once and written once, and besides them what blocks leave for each channel."""
    small = PER_CHANNEL * s.plan["tiles"] * s.plan["tile_channels"] * s.plan["splits"]
    assert s.launches == 1, s.stage
    assert s.floor_read <= s.bytes_read <= s.floor_read + small, s.stage
    assert s.floor_written <= s.bytes_written <= s.floor_written + small, s.stage


def check_floor(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
    traffic = Traffic(shape, dtype, channels_last=channels_last)
    assert [s.stage for s in traffic.stages] == list(STAGES)
    for s in traffic.stages:
        assert_at_the_floor(s)
        assert s.sector_efficiency >= 0.9, s.stage


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_everything_is_read_once_and_written_once(simulation, shape, dtype, channels_last):
    simulation(check_floor, shape, dtype, channels_last)


def check_short_runs() -> None:
    """Runs of 49 and 196 elements: neighbouring channels are read together, in whole accesses and nothing twice."""
    for shape, dtype in itertools.product(((16, 256, 7, 7), (8, 64, 14, 14)), (torch.float16, torch.float32)):
        traffic = Traffic(shape, dtype)
        aligned = prod(shape[2:]) * dtype.itemsize % 16 == 0
        for s in traffic.stages:
            assert s.plan["layout"] == ("channels-first" if aligned else "short runs")
            assert s.plan["vector"] * dtype.itemsize == 16
            assert_at_the_floor(s)
            assert s.sector_efficiency > 0.9, s.stage


def test_short_runs(simulation):
    simulation(check_short_runs)


def check_edges() -> None:
    """Long runs of an odd length, and channels that do not go together: whole accesses to all but their ends."""
    for shape in ((2, 3, 45, 45), (16, 3, 7, 7), (2, 16, 33, 65)):
        for s in Traffic(shape, torch.float16).stages:
            assert s.plan["layout"] == "channels-first"
            assert 0 < s.plan["edges"] < 16, s.plan
            assert s.plan["tile_channels"] == 1, s.plan
            assert_at_the_floor(s)


def test_edges(simulation):
    simulation(check_edges)


def plan_of(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, *, backward: bool = False) -> dict:
    x = torch.empty(shape, dtype=dtype, device="meta")
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return launch_plan(x, backward=backward, multiprocessors=132)


# Of which a thread has three accesses in flight: a plan that counted on four would take two rounds.
ONE_ROUND = [
    ((32, 128, 28, 28), True),
    ((32, 256, 14, 14), True),
    ((32, 256, 14, 14), False),
    ((32, 512, 7, 7), True),
    ((32, 512, 7, 7), False),
    ((512, 1024), True),
]


def test_half_precision_takes_one_round(simulation):
    for shape, channels_last in ONE_ROUND:
        plan = simulation(plan_of, shape, torch.float16, channels_last)
        outer = prod(shape) // shape[1] if channels_last else shape[0]
        assert -(-outer // plan["splits"]) <= 3 * plan["rows"], (shape, plan)


def test_many_channels_run_in_one_wave(simulation):
    """Of blocks that are smaller: a multiprocessor holds 1024 threads in any."""
    for shape in ((32, 1024, 14, 14), (32, 512, 28, 28)):
        for backward in (False, True):
            plan = simulation(partial(plan_of, backward=backward), shape, torch.float32, False)
            assert plan["grid"] == shape[1], (shape, plan)
            assert plan["grid"] * plan["block"] <= 132 * 1024, (shape, plan)
    few = simulation(plan_of, (32, 256, 56, 56), torch.float32, False)
    assert (few["grid"], few["block"]) == (256, 512)


@pytest.mark.parametrize("channels", [24, 40, 72, 144])
def test_most_lanes_have_channels(simulation, channels):
    """Where the channels do not fill lines of the cache."""
    for dtype in (torch.float16, torch.float32):
        plan = simulation(plan_of, (32, channels, 28, 28), dtype, True)
        assert channels / (plan["tiles"] * plan["tile_channels"]) > 0.8, plan


def check_report() -> dict[str, str]:
    first, last = Traffic((2, 6, 9, 9)), Traffic((2, 64, 9, 9), torch.bfloat16, channels_last=True)
    assert first.to_dict()["stages"][0]["stage"] == "forward_stats"
    x = torch.empty(4, 32, 192, 192, device="meta")
    plans = {
        "split": plan_in_words(launch_plan(x, multiprocessors=132)),
        "edges": plan_in_words(launch_plan(torch.empty(2, 3, 45, 45, device="meta"))),
        "small": plan_in_words(launch_plan(torch.empty(0, 3, device="meta"))),
    }
    return {"first": str(first), "last": str(last), **plans}


def test_the_report_says_it_in_words(simulation):
    said = simulation(check_report)
    assert "input (2, 6, 9, 9), float32, channels-first" in said["first"]
    assert "each works on" in said["first"]
    assert "but for 5 of the 2025 side by side, which lie at the ends" in said["edges"]
    assert "neighbouring channels" in said["last"]
    assert "8 blocks share a channel, and the last to finish adds up what they found." in said["split"]
    assert said["small"].startswith("1 block of 32 threads")


def test_counting_takes_the_simulation():
    with pytest.raises(RuntimeError, match="SBNREF_CUDASIM=1"):
        Traffic((2, 3))
