"""The ladder compiled by nvcc: its loops make the simulated accesses, with enough bytes in flight."""

import re

import pytest
import sass
import torch
from kernels import ladder
from nvcc import FLAGS, compiled, needs_nvcc

from sbnref.lab import LABORATORY, SECTOR
from sbnref.lab.kernels import translation_unit

pytestmark = [needs_nvcc, pytest.mark.slow]

ARCHITECTURE = "90"
MEMORY = 3.35e12 * 600e-9 / 132  # bytes that an H100 has in flight: bandwidth by its data sheet, latency assumed
STREAMING = {  # the kernels that stream x, by the numbers of their launches
    "1 naive": {0: "naive_mean", 1: "naive_variance", 2: "naive_normalize"},
    "2 Welford": {0: "welford_statistics", 1: "naive_normalize"},
    "3 split": {0: "split_statistics", 2: "split_normalize"},
    "4 wide": {0: "wide_statistics<4>", 2: "wide_normalize<4>"},
    "5 payload": {0: "payload_statistics<4>", 1: "payload_normalize<4>"},
    "6 backwards": {0: "payload_statistics<4>", 1: "backwards_normalize<4>"},
    "7 channels-last": {0: "channels_last_statistics", 1: "channels_last_normalize"},
    "8 in flight": {0: "in_flight_statistics<4>", 1: "in_flight_normalize<4>"},
    "9 half": {0: "half_statistics<8>", 1: "half_normalize<8>"},
}


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory):
    """Compile the ladder without a warning; return every kernel's instructions and register count by name."""
    folder = tmp_path_factory.mktemp("ladder")
    unit, made = folder / "ladder.cu", folder / "ladder.o"
    unit.write_text(translation_unit(ladder.all_rungs()))
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("80", ARCHITECTURE)]
    flags = [*FLAGS, "-Werror=all-warnings", "-Xptxas=-v", *targets, f"-I{LABORATORY}"]
    report = compiled(["nvcc", *flags, "-c", str(unit), "-o", str(made)])
    entry = rf"Compiling entry function '(\S+)' for 'sm_{ARCHITECTURE}'.*?Used (\d+) registers"
    registers = dict(re.findall(entry, report, re.DOTALL))

    def name(mangled: str) -> str:
        length, rest = re.match(r"_Z(\d+)(.*)", mangled).groups()
        width = re.match(r"ILi(\d+)E", rest[int(length) :])
        return rest[: int(length)] + (f"<{width[1]}>" if width else "")

    codes = sass.kernels(made, f"sm_{ARCHITECTURE}")
    return {name(mangled): (code, int(registers[mangled])) for mangled, code in codes.items()}


@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_loops_make_the_accesses_that_the_simulation_counts(rung, machine_code):
    x = torch.randn(32, 32, 16, 16).to(ladder.RUNGS[rung].dtype)
    if ladder.RUNGS[rung].tile > 1:
        x = x.contiguous(memory_format=torch.channels_last)
    call = ladder.Call(rung, x)
    launch, _, _, access, sector = ladder.count(call).trace.T

    def counted(array: str, number: int) -> int:
        first = call.addresses[array] // SECTOR
        here = (launch == number) & (sector >= first) & (sector < first + x.nbytes // SECTOR)
        return len(access[here].unique())

    for number, kernel in STREAMING[rung].items():
        loop = sass.streaming_loop(machine_code[kernel][0], narrowest=2)
        rounds = x.nbytes / (sass.WARP * loop.loaded)
        assert rounds * loop.loads == pytest.approx(counted("x", number), rel=0.02), f"{kernel}: {loop}"
        assert rounds * loop.stores == pytest.approx(counted("y", number), rel=0.02), f"{kernel}: {loop}"


@pytest.mark.parametrize("rung", ["3 split", "7 channels-last", "8 in flight", "9 half"])
def test_enough_loads_are_in_flight_from_the_seventh_rung_on(rung, machine_code):
    for kernel in STREAMING[rung].values():
        code, registers = machine_code[kernel]
        loop = sass.streaming_loop(code, narrowest=2)
        waiting = sass.in_flight(code, loop) * sass.resident_threads(registers, ladder.THREADS)
        assert (waiting >= MEMORY) == (rung != "3 split"), f"{kernel}: {waiting} bytes, {loop}"
