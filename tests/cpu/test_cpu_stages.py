"""The native kernels compared with the plain PyTorch stages."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import stage_checks as checks
import torch
from torch import Tensor

from sbnref import SyncBatchNorm
from sbnref.impls import cpu, reference

DTYPES, LAYOUTS = checks.DTYPES, checks.LAYOUTS


@pytest.mark.parametrize(("check", "arguments"), checks.checks_of(cpu, "cpu"))
def test_stages(check, arguments):
    check(*arguments)


def test_an_input_that_is_not_dense_is_copied_once():
    """The backward pass uses the forward pass's copy."""
    x = torch.randn(4, 6, 8, 8)[..., ::2].requires_grad_()
    y = SyncBatchNorm(6, impl="cpu")(x)
    kept = y.grad_fn.saved_tensors[0]
    assert kept.is_contiguous()
    assert torch.equal(kept, x)
    dense = torch.randn(4, 6, 8, 8).to(memory_format=torch.channels_last)
    y = SyncBatchNorm(6, impl="cpu")(dense.requires_grad_())
    assert y.grad_fn.saved_tensors[0].data_ptr() == dense.data_ptr()


def compare(shape: tuple[int, ...], layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x, dy = layout(checks.tensor(shape, dtype)), layout(checks.tensor(shape, dtype, 1))
    got, want = (checks.run(impl, x, dy, torch.float32) for impl in (cpu, reference))
    checks.assert_close(got, want, x, f"{shape}, {layout.__name__}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_length_of_a_row_and_every_number_of_channels(dtype):
    """Test every remainder after the last full vector, at every offset from a vector boundary."""
    for length, layout in itertools.product(range(1, 41), LAYOUTS[:3]):
        for shape in ((3, 5, length), (4, length, 3), (7, length)):
            compare(shape, layout, dtype)


LARGE = [(2, 3, 9001), (70, 130, 49), (3, 1030, 5), (900, 700), (1500, 513), (5000, 3), (1, 1, 70000), (6, 40, 33, 31)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_blocks(dtype):
    for shape, layout in itertools.product(LARGE, LAYOUTS[:3]):
        compare(shape, layout, dtype)


def step(x: Tensor, dy: Tensor) -> list[Tensor]:
    """Return the results of the four stages, each run on the results of the stage before."""
    total = cpu.forward_stats(x, 1)
    y, saved = cpu.forward_apply(x, total, 1, None, None, 1e-5, None, None)
    sums = cpu.backward_stats(dy, x, saved)
    return [total, y, saved, sums, cpu.backward_apply(dy, x, sums, saved, None, 1e-3)]


def test_the_same_bits_for_any_number_of_threads(request):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    for shape, layout, dtype in itertools.product(LARGE, LAYOUTS[:3], (torch.bfloat16, torch.float32)):
        x, dy = layout(checks.tensor(shape, dtype)), layout(checks.tensor(shape, dtype, 1))
        results = []
        for count in (1, 2, 3, 7, 1):
            torch.set_num_threads(count)
            results.append(step(x, dy))
        for result in results[1:]:
            assert all(map(torch.equal, results[0], result)), f"{shape}, {layout.__name__}, {dtype}"


def test_a_block_looks_again_where_its_first_elements_mislead():
    """The variance is right even if the first elements are far from the others."""
    for shape, layout in itertools.product([(2, 3, 9000), (40, 3, 64), (9000, 3), (2000, 600)], LAYOUTS[:2]):
        x = checks.tensor(shape, torch.float32)
        place = (slice(None), slice(None), slice(0, 64)) if len(shape) == 3 else slice(0, 16)
        x[place] += 3e4
        x = layout(x)
        got, want = (impl.forward_stats(data, 1) for impl, data in ((cpu, x), (reference, x.double())))
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_streamed_outputs():
    """An output larger than the last-level cache, with rows of partial cache lines, equals its quarters' outputs.

    A quarter's input and output fill half the cache, so the quarters are not streamed.
    """
    size = torch.ops.sbnref_cpu.build_info()[2]
    for inner, layout in ((293, torch.Tensor.contiguous), (37, checks.channels_last)):
        channels = 41
        x = layout(torch.randn(4 * (size // 16 // inner // channels) + 4, channels, inner))
        gamma, beta = torch.rand(2, channels)
        total = reference.forward_stats(x[:10], 1)
        whole, saved = cpu.forward_apply(x, total, 1, gamma, beta, 1e-5, None, None)
        quarters = [cpu.forward_apply(part, total, 1, gamma, beta, 1e-5, None, None)[0] for part in x.chunk(4)]
        assert torch.equal(whole, torch.cat(quarters))
        sums = torch.rand(2 * channels, dtype=torch.float64)
        whole = cpu.backward_apply(whole, x, sums, saved, gamma, 1e-3)
        parts = zip(quarters, x.chunk(4), strict=True)
        quarters = [cpu.backward_apply(*both, sums, saved, gamma, 1e-3) for both in parts]
        assert torch.equal(whole, torch.cat(quarters))


def test_non_finite_parameters_stay_so():
    """Rounding a NaN whose bits are all ones to bfloat16 must not overflow into a number."""
    x = checks.tensor((4, 3, 40), torch.bfloat16)
    gamma = torch.tensor([-1, 0, 0], dtype=torch.int32).view(torch.float32)
    y, _ = cpu.forward_apply(x, reference.forward_stats(x, 1), 1, gamma, None, 1e-5, None, None)
    assert y[:, 0].isnan().all()
    assert y[:, 1:].isfinite().all()


def test_rounding_to_halves_is_pytorchs():
    """Every value below 100 in magnitude is kept, and values in between are rounded as PyTorch rounds them."""
    for dtype in (torch.float16, torch.bfloat16):
        bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
        x = bits.view(dtype).view(1, 1, -1).expand(1, 2, -1).contiguous()
        x = torch.where(x.abs() < 100, x, 0)  # (1, 2, 65536)
        saved = torch.tensor([[0, 0], [1, 1], [0, 0], [1, 1]], dtype=torch.float64)
        zeros = torch.zeros(4, dtype=torch.float64)
        gamma = torch.tensor([1, 1 + 2.0**-11])
        dx = cpu.backward_apply(x, x, zeros, saved, gamma, 0.0)
        assert torch.equal(dx, (x.float() * gamma[:, None]).to(dtype))
