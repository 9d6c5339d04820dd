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
    gpu().fused, gpu().launched = fused, {}
    mangled = {torch.float16: "N3c104HalfE", torch.bfloat16: "N3c108BFloat16E", torch.float32: "f", torch.float64: "d"}
    there = {name for name in gpu().kernels if re.search(rf"kernelI{mangled[dtype]}LN", name)}
    return results(dtype), there, {*gpu().launched}


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_every_instance_gives_the_bits_of_the_simulation(interpreted, simulation, dtype):
    """Round each fused multiply-add twice, like the simulation's host: it is the only difference."""
    got, there, ran = interpreted(run_interpreted, dtype, False)
    assert there
    assert ran == there, "instances that no shape reaches"
    for one, other in zip(got, simulation(results, dtype), strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name]), f"{name} of {tuple(one['y'].shape)}"


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_every_instance_is_right(interpreted, dtype):
    got, _, _ = interpreted(run_interpreted, dtype, True)
    for one, want in zip(got, results(dtype, reference), strict=True):
        checks.assert_close(one, want, want["y"], f"shape {tuple(want['y'].shape)}")


def fences() -> dict[str, tuple[int, int]]:
    """Return each kernel's executed fences and its blocks, on a tensor with split tiles."""
    x, dy = (checks.tensor((1, 2, 1500), torch.float32, seed) for seed in (0, 1))
    gpu().launched, before = {}, {name: kernel.fences for name, kernel in gpu().kernels.items()}
    checks.run(cuda, x, dy, torch.float32, None)
    return {name: (gpu().kernels[name].fences - before[name], blocks) for name, blocks in gpu().launched.items()}


def test_one_thread_fences_for_its_block(interpreted):
    for name, (executed, blocks) in interpreted(fences).items():
        stage = next(stage for stage in STAGES if f"{stage}_kernel" in name)
        # For momentum=None, each of two tiles fences before its ticket, and one tile fences after it.
        assert executed == {"forward_apply": 3, "backward_apply": 0}.get(stage, 2 * blocks), name
        assert blocks > 2, name
