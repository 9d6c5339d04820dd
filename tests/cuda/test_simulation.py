"""The simulation catches what goes wrong on a GPU, and says where."""

import ctypes
import os
import shlex
import subprocess

import pytest
import torch
from torch.utils.cpp_extension import include_paths

from sbnref.impls.build import CSRC, SIMULATION_FLAGS

pytestmark = pytest.mark.slow

MISTAKES = {
    "none": "",
    "missing barrier": "thread 0: reads shared partial[1] before it is written",
    "off-by-one tail": "reads elements [400, 401) of a global array of 400",
    "early return": "waits at __syncthreads, thread 48 has returned",
    "partial shuffle": "waits at a warp shuffle, thread 16 waits at __syncthreads",
    "uninitialized": "thread 0: reads shared partial[1] before it is written",
    "misaligned": "reads 16 bytes at an address that is no multiple of it",
    "shared out of bounds": "accesses shared partial[64], which has 64 elements",
    "order of blocks": "",  # no rule is broken, but the results differ
}


@pytest.fixture(scope="module")
def row_sums(tmp_path_factory):
    """``row_sums(mistake, order)`` gives the sums of four rows and what the simulation said."""
    library = tmp_path_factory.mktemp("broken") / "broken.so"
    sources = [CSRC / "sim" / "cudasim.cpp", "-x", "c++", "tests/cuda/broken/kernels.cu"]
    includes = [f"-I{folder}" for folder in [CSRC, *include_paths()]]
    flags = ["-std=c++17", "-shared", "-fPIC", *SIMULATION_FLAGS]
    flags += shlex.split(os.environ.get("SBNREF_CUDASIM_FLAGS", ""))  # the sanitizers
    subprocess.run(["c++", *flags, *includes, *map(str, sources), "-o", str(library)], check=True)
    run = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_char_p

    def call(mistake: str, order: str = "ascending") -> tuple[torch.Tensor, str]:
        x, sums = torch.arange(400.0), torch.zeros(4)
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (x, sums))
        said = run(list(MISTAKES).index(mistake), order.encode(), 4, 100, *pointers)
        return sums, said.decode()

    return call


@pytest.mark.parametrize("order", ["ascending", "descending", "random:3"])
def test_what_is_right_passes_in_every_order(row_sums, order):
    sums, said = row_sums("none", order)
    assert said == ""
    assert torch.equal(sums, torch.arange(400.0).view(4, 100).sum(1))


@pytest.mark.parametrize("mistake", [name for name, report in MISTAKES.items() if report])
def test_a_mistake_is_reported_with_its_place(row_sums, mistake):
    _, said = row_sums(mistake)
    assert said.startswith("simulated kernel row_sums, block ")
    assert MISTAKES[mistake] in said


@pytest.mark.parametrize("order", ["ascending", "descending", "random:3"])
def test_a_missing_barrier_is_caught_whichever_thread_comes_first(row_sums, order):
    _, said = row_sums("missing barrier", order)
    assert "before it is written" in said or "without a barrier in between" in said


def test_dependence_on_the_order_of_blocks_shows_in_the_results(row_sums):
    ascending, descending = (row_sums("order of blocks", order)[0] for order in ("ascending", "descending"))
    assert not torch.equal(ascending, descending)


def test_a_failed_launch_does_not_spoil_the_next(row_sums):
    row_sums("early return")
    assert row_sums("none")[1] == ""


def test_an_order_that_does_not_exist_is_refused(row_sums):
    assert (
        "expected an order 'ascending', 'descending' or 'random:SEED', got 'sideways'"
        in row_sums("none", "sideways")[1]
    )
