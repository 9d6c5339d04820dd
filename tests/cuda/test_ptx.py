"""nvcc's output for the kernels agrees with the simulation bit for bit, and with plain PyTorch.

The simulation compiles other branches of the source, for unpacking halves, storing 16 bytes and inline assembly. These
tests interpret nvcc's output on a CPU.
"""

import re

import pytest
import stage_checks as checks
import torch
from interpreted import gpu
from nvcc import needs_nvcc

from sbnref.impls import STAGES, cuda, reference

pytestmark = [needs_nvcc, pytest.mark.slow]

SHAPES = [
    (2, 3, 16, 16),  # long runs
    (3, 3, 7, 7),  # with edges
    (1, 2, 1500),  # over several blocks
    (9, 8, 7, 7),  # short runs
    (40, 16),  # channels last: accesses of 16 bytes and of all smaller sizes
    (40, 12),
    (40, 6),
    (40, 33),
    (0, 3, 4),
]


def results(dtype: torch.dtype, impl=cuda) -> list[dict[str, torch.Tensor]]:
    assert impl is reference or impl.why_not(torch.device("cpu")) is None
    return [
        checks.run(impl, checks.tensor(shape, dtype), checks.tensor(shape, dtype, 1), torch.float32, momentum)
        for shape in SHAPES
        for momentum in ((0.1, None) if shape == SHAPES[0] else (None,))
    ]


def run_interpreted(dtype: torch.dtype, fused: bool) -> tuple[list[dict[str, torch.Tensor]], set[str], set[str]]:
    """Return the results, the names of the kernels for this dtype, and the names of those that ran."""
    gpu().fused, gpu().launches = fused, []
    mangled = {torch.float16: "N3c104HalfE", torch.bfloat16: "N3c108BFloat16E", torch.float32: "f", torch.float64: "d"}
    there = {name for name in gpu().kernels if re.search(rf"kernelI{mangled[dtype]}LN", name)}
    found = results(dtype)
    return found, there, {name for name, _, _ in gpu().launches}


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_every_instance_gives_the_bits_of_the_simulation(interpreted, simulation, dtype):
    """Round each fused multiply-add twice, like the simulation's host: it is the only difference."""
    got, there, ran = interpreted(run_interpreted, dtype, False)
    assert there
    assert ran == there, "instances that no shape reaches"
    for shape, one, other in zip(SHAPES, got, simulation(results, dtype), strict=False):
        for name, value in one.items():
            assert torch.equal(value, other[name]), f"{name} of {shape}"


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_every_instance_is_right(interpreted, dtype):
    got, _, _ = interpreted(run_interpreted, dtype, True)
    for one, want in zip(got, results(dtype, reference), strict=True):
        checks.assert_close(one, want, want["y"], f"shape {tuple(want['y'].shape)}")


def fences() -> dict[str, tuple[int, int]]:
    """Return each kernel's executed fences and its blocks, on a tensor with split tiles."""
    gpu().launches, shape = [], (1, 2, 1500)
    before = {name: kernel.fences for name, kernel in gpu().kernels.items()}
    checks.run(cuda, checks.tensor(shape, torch.float32), checks.tensor(shape, torch.float32, 1), torch.float32, None)
    return {name: (gpu().kernels[name].fences - before[name], blocks) for name, blocks, _ in gpu().launches}


def test_one_thread_fences_for_its_block(interpreted):
    for name, (executed, blocks) in interpreted(fences).items():
        stage = next(stage for stage in STAGES if f"{stage}_kernel" in name)
        # For momentum=None, each of two tiles fences before its ticket, and one tile fences after it.
        assert executed == {"forward_apply": 3, "backward_apply": 0}.get(stage, 2 * blocks), name
        assert blocks > 2, name


def run_changed(pattern: str, by: str) -> str:
    """Edit the code and run a float16 step; return "same", "other" or the error."""
    x, dy = checks.tensor((9, 8, 7, 7), torch.float16), checks.tensor((9, 8, 7, 7), torch.float16, 1)
    before = checks.run(cuda, x, dy, torch.float32, None)
    changed = []

    def edit(text: str) -> str:
        text, times = re.subn(pattern, by, text)
        changed.append(times)
        return text

    gpu().read(edit)
    try:
        assert sum(changed) > 0, "nothing was changed"
        after = checks.run(cuda, x, dy, torch.float32, None)
    except RuntimeError as error:
        return str(error)
    finally:
        gpu().read()
    return "same" if all(torch.equal(after[name], value) for name, value in before.items()) else "other"


@pytest.mark.parametrize(
    ("pattern", "by", "becomes"),
    [
        (r"(shfl\.sync\.down\.b32\s+\S+, \S+, )(%r\d+|\d+)", r"\g<1>1", "other"),
        (r"st\.global\.v4\.b32 \[(%\w+)\], \{(%\w+), (%\w+),", r"st.global.v4.b32 [\1], {\3, \2,", "other"),
        (r"(st\.global\S*\s+\[%\w+)(?:\+\d+)?\]", r"\1+1073741824]", "outside of every buffer"),
        (r"\bprefetch\.global\.L2", "frobnicate.b32", "frobnicate.b32"),
    ],
    ids=["a shuffle from elsewhere", "words in another order", "a store out of bounds", "an unknown instruction"],
)
def test_a_change_of_the_code_shows(interpreted, pattern, by, becomes):
    assert becomes in interpreted(run_changed, pattern, by)


def test_all_stages_were_compiled(interpreted):
    names = interpreted(lambda: list(gpu().kernels))
    assert {stage for stage in STAGES if any(f"{stage}_kernel" in name for name in names)} == set(STAGES)
