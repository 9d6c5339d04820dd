"""The laboratory: recordings hold the kernels' steps with their lines, and errors are clear."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from kernels import ladder
from shared import ROOT, cli

from sbnref.lab import Call, Kernels, Recording, count, record
from sbnref.lab.recording import MOST_ELEMENTS, Act, Event, bank_conflicts, example

STUDENT = r"""
#include "laboratory.cuh"

__global__ void mean(Problem p) {
    const int64_t c = blockIdx.x;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads)
        sum += p.x[p.at(c, i)];  // the elements
    sum = sum_over_block(sum);   // the sum
    if (threadIdx.x == 0) p.mean[c] = static_cast<float>(sum / p.count());  // the mean
}

__device__ void see(const float* p) { *(volatile const float*)p; }

// Even lanes read another array than odd ones, some of them twice; then all of them read the same.
__global__ void lanes_part(Problem p) {
    const int lane = threadIdx.x % 32;
    if (lane % 2 == 0)
        for (int i = 0; i <= lane % 4; ++i) see(p.y + lane);  // even
    else
        see(p.x + lane);  // odd
    see(p.var);           // all
}

__global__ void arrays_part(Problem p) {
    see((threadIdx.x % 2 ? p.x : p.y) + threadIdx.x);
}

__global__ void columns(Problem p) {
    __shared__ float table[32 * 32];
    if (threadIdx.x >= 32) return;
    table[threadIdx.x] = 1;       // a row
    table[32 * threadIdx.x] = 2;  // a column
}

__global__ void too_far(Problem p) {
    for (int64_t i = threadIdx.x; i <= p.N * p.C * p.S; i += kThreads) see(p.x + i);  // one too many
}

__global__ void for_ever(Problem p) {
    for (;;) see(p.x);
}

void forward(const Problem& p) { mean<<<p.C, kThreads, 0, p.stream>>>(p); }
void part(const Problem& p) { lanes_part<<<1, kThreads, 0, p.stream>>>(p); }
void either(const Problem& p) { arrays_part<<<1, kThreads, 0, p.stream>>>(p); }
void banks(const Problem& p) { columns<<<1, kThreads, 0, p.stream>>>(p); }
void far(const Problem& p) { too_far<<<2, kThreads, 0, p.stream>>>(p); }
void ever(const Problem& p) { for_ever<<<1, kThreads, 0, p.stream>>>(p); }
"""

FUNCTIONS = ("forward", "part", "either", "banks", "far", "ever")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("a student") / "mine.cu"
    file.write_text(STUDENT)
    return file


def recorded(file: Path, function: str, shape: tuple[int, ...] = (2, 4, 6, 6)) -> Recording:
    return record(Call(Kernels(file, FUNCTIONS, 64), example(shape)), functions=[function])


def line(comment: str) -> int:
    """Return the number of the line with a comment in the student's file."""
    (number,) = (n for n, text in enumerate(STUDENT.splitlines(), 1) if text.endswith(f"// {comment}"))
    return number


def place(recording: Recording, step) -> int:
    return recording.sites[step.site][-1][1]


def lines(recording: Recording, act: Act) -> set[int]:
    return {place(recording, step) for step in recording.steps if step.act is act}


# ---- compared with the traffic counter, which is compiled separately and does not see calls ----


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_a_recording_counts_what_the_counter_of_traffic_counts(rung, channels_last):
    if rung.startswith("7"):
        channels_last = True
    x = example((2, 40, 3, 3) if channels_last else (6, 2, 10, 10), channels_last=channels_last)
    x = x.to(ladder.RUNGS[rung].dtype)
    call, other = (ladder.Call(rung, x, blocks=8, threads=64) for _ in range(2))
    recording, counted = record(call, rung, call.rung.functions), count(other)
    assert torch.equal(call.y, other.y)
    counts = recording.counts()
    assert recording.error is None
    assert (counts["read"], counts["written"]) == (counted.read, counted.written)
    assert counts["accesses"] == counted.requests
    assert counts["sectors"] == len(counted.trace)
    assert counts["sectors"] - counts["again"] == len(counted.trace[:, 4].unique())
    assert len(recording.launches) == counted.launches
    assert recording.launches[0].blocks == counted.blocks
    assert {array.name for array in recording.arrays} >= {"x", "y"}


# ---- contents ----


@pytest.mark.slow
def test_the_steps_of_a_students_kernel_stand_at_its_lines(student):
    recording = recorded(student, "forward")
    assert lines(recording, Act.READ) == {line("the elements")}
    assert lines(recording, Act.WRITE) == {line("the mean")}
    for act in (Act.SHUFFLE, Act.BARRIER, Act.READ_SHARED, Act.WRITE_SHARED):
        assert lines(recording, act) == {line("the sum")}
    (helper,) = {recording.sites[step.site][0] for step in recording.steps if step.act is Act.SHUFFLE}
    text = Path(helper[0]).read_text().splitlines()[helper[1] - 1]
    assert "__shfl_down_sync" in text


def test_what_the_lanes_of_a_warp_do(student):
    recording = recorded(student, "forward")
    of_first = [step for step in recording.steps if (step.block, step.warp) == (0, 0)]
    acts = [Act.READ] * 2 + [Act.SHUFFLE] * 5 + [Act.WRITE_SHARED, Act.BARRIER] + [Act.READ_SHARED] * 2 + [Act.WRITE]
    assert [step.act for step in of_first] == acts
    reads = [step.lanes for step in of_first[:2]]
    assert reads[0] == {lane: 4 * lane for lane in range(32)}
    assert list(reads[1]) == list(range(8)), "the tail: 72 elements of a channel, 64 threads"
    tree = [step.lanes[0] for step in of_first if step.act is Act.SHUFFLE]
    assert tree == [16, 8, 4, 2, 1]
    assert list(of_first[-1].lanes) == [0]


def test_warps_take_turns_and_wait_for_each_other(student):
    recording = recorded(student, "forward")
    of_block = [step for step in recording.steps if step.block == 0]
    turns = [(0, Act.READ), (1, Act.READ), (0, Act.READ), (1, Act.SHUFFLE)]  # warp 1's loop has one iteration
    assert [(step.warp, step.act) for step in of_block[:4]] == turns
    barriers = [i for i, step in enumerate(of_block) if step.act is Act.BARRIER]
    assert sorted(of_block[i].warp for i in barriers) == [0, 1]
    assert min(i for i, step in enumerate(of_block) if step.act is Act.READ_SHARED) > max(barriers)
    assert [step.block for step in recording.steps] == sorted(step.block for step in recording.steps)


@pytest.mark.slow
def test_a_lane_does_things_in_its_own_order_where_lanes_part(student):
    recording = recorded(student, "part")
    of_line = defaultdict(list)
    for step in recording.steps:
        if step.warp == 0:
            of_line[place(recording, step)].append(list(step.lanes))
    evens, twos = list(range(0, 32, 2)), list(range(2, 32, 4))
    assert of_line[line("even")] == [evens, twos, twos]
    assert of_line[line("odd")] == [list(range(1, 32, 2))]
    assert of_line[line("all")] == [list(range(32))]


def test_a_step_accesses_one_array(student):
    recording = recorded(student, "either")
    found = {recording.arrays[step.array].name: list(step.lanes) for step in recording.steps if step.warp == 0}
    assert found == {"y": list(range(0, 32, 2)), "x": list(range(1, 32, 2))}
    assert len(recording.steps) == 4
    assert recording.counts()["read"] == 4 * 64


@pytest.mark.parametrize(
    ("size", "offsets", "conflicts"),
    [
        (4, [4 * i for i in range(32)], 0),
        (4, [0] * 32, 0),  # one word for all
        (4, [8 * i for i in range(32)], 1),
        (4, [128 * i for i in range(32)], 31),
        (4, [132 * i for i in range(32)], 0),  # padded by a word
        (8, [8 * i for i in range(32)], 0),  # in two halves
        (8, [128 * i for i in range(32)], 30),
        (8, [128 * i for i in range(16)], 15),
        (24, [24 * i for i in range(32)], 0),
        (16, [16 * i for i in range(32)], 4),  # two pieces of 8 bytes, every other bank
        (2, [2 * i for i in range(32)], 0),
        (1, [0], 0),
    ],
)
def test_bank_conflicts(size, offsets, conflicts):
    assert bank_conflicts(Event(0, 0, 0, Act.READ_SHARED, 0, 0, size, dict(enumerate(offsets)))) == conflicts


@pytest.mark.slow
def test_a_column_conflicts_and_a_row_does_not(student):
    recording = recorded(student, "banks")
    found = {place(recording, step): step.conflicts for step in recording.steps}
    assert found == {line("a row"): 0, line("a column"): 31}
    assert recording.counts()["conflicts"] == 31


# ---- errors ----


@pytest.mark.slow
def test_a_recording_ends_where_the_simulation_refuses_to_go_on(student):
    recording = recorded(student, "far")
    assert "reads p.x[288], just past the end of p.x (288 elements)" in recording.error
    last = recording.steps[-1]
    assert (last.block, last.warp) == (0, 1)
    assert place(recording, last) == line("one too many")
    assert 4 * 288 in last.lanes.values()


def test_a_kernel_that_goes_on_for_ever_is_stopped(student):
    with pytest.raises(ValueError, match=r"at most \d+ instructions of warps"):
        recorded(student, "ever")


# ---- the command ----


TRACE = ("lab", "trace")


def test_the_command_writes_one_file_that_needs_nothing_else(student, tmp_path):
    output = tmp_path / "new" / "trace.html"
    done = cli(*TRACE, student, "--shape", "2,4,6,6", "--output", output)
    assert f"Saved {output}" in done.output
    page = output.read_text()
    assert len(page) < 300_000
    assert "<title>mine.cu</title>" in page
    assert not re.findall(r"""(?:src|href)=(?!"data:)|\bimport\s*[({"']|https?://""", page)


def test_the_command_plays_a_task(tmp_path):
    output = tmp_path / "trace.html"
    command = (*TRACE, ROOT / "tests" / "cuda" / "tasks.cu", "--task", "transpose", "--output", output)
    for sizes in ([], ["--shape", "8,5"]):
        cli(*command, *sizes)
    assert '"shape":[8,5]' in output.read_text()
    assert "expected one size for each" in cli(*command, "--shape", "8", code=2).output


def test_the_command_says_where_the_simulation_stopped(student, tmp_path):
    output = tmp_path / "far.html"
    done = cli(*TRACE, student, "--function", "far", "--output", output, code=1)
    assert "kernel too_far, block 0, thread 32: reads p.x[288], just past the end of p.x (288" in done.output
    assert "past the end of p.x" in output.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nowhere.cu", "got nowhere.cu, which does not exist"),
        ("MINE --shape 8,8,64,64", f"at most {MOST_ELEMENTS} elements for a recording, got shape"),
        ("MINE --shape 8", "expected a shape N,C,*"),
        ("MINE --threads 48", "expected blocks of 32, 64, 128, 256, 512 or 1024 threads, got 48"),
        ("MINE --function backward", "to define void backward(const Problem&)"),
    ],
)
def test_the_command_refuses_in_a_sentence(student, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    done = cli(*TRACE, *(student if a == "MINE" else a for a in arguments.split()), code=2)
    assert said in done.output
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("volatile char big[1 << 22]; big[lane] = 1", "signal 11"),
        ("for (volatile int i = 0;;) i = 1", "the kernels took longer than 3 s"),
    ],
)
def test_what_ends_the_process_or_never_ends_is_said(tmp_path, body, said):
    file = tmp_path / "mine.cu"
    file.write_text(STUDENT.replace("const int lane = threadIdx.x % 32;", f"const int lane = 0; {body};"))
    done = cli(*TRACE, file, "--function", "part", "--timeout", 3, "--output", tmp_path / "trace.html", code=2)
    assert said in done.output
    assert not (tmp_path / "trace.html").exists()


def test_the_compilers_errors_point_at_the_students_lines(tmp_path):
    broken = tmp_path / "broken.cu"
    broken.write_text(STUDENT.replace("double sum = 0;", "double som = 0;"))
    done = cli(*TRACE, broken, code=2)
    assert f"{broken}:{line('the elements')}:" in done.output
    assert "‘sum’" in done.output or "'sum'" in done.output
    assert done.output.count("error:") == 1
