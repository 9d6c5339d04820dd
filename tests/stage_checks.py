"""Compare an implementation's stages with plain PyTorch, in every layout and on the default device."""

import itertools
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from sbnref import functional
from sbnref.autograd import parameter_gradients
from sbnref.differentiable import composed_sync_batch_norm
from sbnref.impls import reference
from sbnref.running import RunningStats

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return x.mul(2).add(3).to(torch.get_default_device(), dtype)


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def misaligned(x: Tensor) -> Tensor:
    """Copy a tensor to memory one element past an aligned address."""
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)


def every_other(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def channels_outermost(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


LAYOUTS = [torch.Tensor.contiguous, channels_last, misaligned, every_other, channels_outermost]
SHAPES = [(0, 3, 4, 4), (1, 1), (5, 1, 7, 7), (1, 3, 1, 2), (64, 33), (300, 64), (40, 8, 7, 7), (9, 24, 14, 14)]
SHAPES += [(3, 3, 49), (2, 5, 3, 4, 5), (7, 6, 2), (2, 200, 31), (3, 16, 24, 24), (1, 2, 5000), (2000, 3), (50, 6, 3)]
SHAPES += [(3, 3, 1050), (70, 4, 7, 7), (5, 36), (70, 16, 2, 2)]


def run(impl, x: Tensor, dy: Tensor, params: torch.dtype, momentum: float | None = 0.1) -> dict[str, Tensor]:
    """Run the four stages on a made-up total, with inputs from the reference's float64 statistics."""
    channels = x.shape[1]
    gamma, beta = tensor((channels,), params, 2), tensor((channels,), params, 3)
    running = RunningStats(tensor((channels,), params, 4), tensor((channels,), params, 5), torch.tensor(3))
    total = 2 * reference.forward_stats(x.double(), max(len(x), 1))
    out = {"payload": impl.forward_stats(x, 7)}
    out["y"], out["saved"] = impl.forward_apply(x, total, None, gamma, beta, 1e-5, running, momentum)
    out.update(running._asdict())
    saved = reference.forward_apply(x.double(), total, None, gamma, beta, 1e-5, None, None)[1]
    out["backward payload"] = impl.backward_stats(dy, x, saved)
    backward_total = 2 * reference.backward_stats(dy.double(), x.double(), saved)
    out["dx"] = impl.backward_apply(dy, x, backward_total, saved, gamma, 7 / max(x.numel() // channels, 1))
    if in_one_go := getattr(impl, "gradients", None):
        dx, out["dgamma"], out["dbeta"] = in_one_go(dy, x, backward_total, saved, gamma, beta, 7, 3)
        assert torch.equal(dx, out["dx"])
    else:
        out["dgamma"], out["dbeta"] = parameter_gradients(backward_total, 3, gamma, beta)
    return out


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], x: Tensor, what: str, units: int = 16) -> None:
    """Compare results of :func:`run`, within ``units`` units in the last place of the largest value."""
    for name, value in want.items():
        of_sums = name.endswith("payload")
        scale = value.abs().max().item() if value.numel() else 0
        # A result in a narrow type may be rounded the other way; a sum has the accumulator's rounding error.
        kind = reference.accumulator(x) if of_sums else value.dtype
        atol = torch.finfo(kind).eps * (16 if of_sums else units) * scale if kind.is_floating_point else 0
        torch.testing.assert_close(got[name], value, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}, {what}: {m}")


def check_stages(impl: ModuleType, dtype: torch.dtype) -> None:
    assert impl.why_not(torch.get_default_device()) is None
    for shape, layout in itertools.product(SHAPES, LAYOUTS):
        x, dy = layout(tensor(shape, dtype)), layout(tensor(shape, dtype, 1))
        got, want = run(impl, x, dy, torch.float32), run(reference, x, dy, torch.float32)
        assert_close(got, want, x, f"{shape}, {layout.__name__}", units=4)
        for name in ("mean", "var", "num_batches_tracked"):
            assert torch.equal(got[name], want[name]), f"running {name} of {shape}: not bit for bit"
        expected = x if layout is not every_other else x.contiguous()
        assert got["y"].stride() == got["dx"].stride() == expected.stride(), f"{shape}, {layout.__name__}"


def check_different_layouts(impl: ModuleType) -> None:
    """Check a dy whose layout differs from x's, or that is expanded."""
    x, dy = tensor((4, 6, 5, 5), torch.float32), tensor((4, 6, 5, 5), torch.float32, 1)
    want = run(reference, x, dy, torch.float32)
    for x_layout, dy_layout in itertools.product(LAYOUTS, LAYOUTS):
        got = run(impl, x_layout(x), dy_layout(dy), torch.float32)
        for name in ("backward payload", "dx"):
            torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-4, msg=dy_layout.__name__)
    expanded = torch.tensor(2.0).expand_as(x)
    want, got = run(reference, x, expanded, torch.float32), run(impl, x, expanded, torch.float32)
    torch.testing.assert_close(got["dx"], want["dx"])


def check_parameter_dtypes(impl: ModuleType) -> None:
    for x_dtype, params in itertools.product(DTYPES, DTYPES):
        x, dy = tensor((6, 20, 9), x_dtype), tensor((6, 20, 9), x_dtype, 1)
        for momentum in (0.3, None):
            got, want = run(impl, x, dy, params, momentum), run(reference, x, dy, params, momentum)
            for name in ("mean", "var", "num_batches_tracked", "dgamma", "dbeta"):
                assert torch.equal(got[name], want[name]), f"{name}, {x_dtype}, {params}, {momentum}"
            for name in ("y", "dx"):
                torch.testing.assert_close(got[name], want[name])

    table = tensor((4, 20), torch.float32).t().contiguous().t()  # strided rows
    gamma, beta, *buffers = table.unbind()
    x, total = tensor((6, 20, 9), torch.float32), reference.forward_stats(tensor((6, 20, 9), torch.float32), 1)
    y, _ = impl.forward_apply(x, total, 1, gamma, beta, 1e-5, RunningStats(*buffers, None), 0.1)
    got, table = table.clone(), tensor((4, 20), torch.float32)
    want_y, _ = reference.forward_apply(x, total, 1, table[0], table[1], 1e-5, RunningStats(*table[2:], None), 0.1)
    assert torch.equal(got, table)
    torch.testing.assert_close(y, want_y)


def check_not_finite(name: str) -> None:
    for value, layout in itertools.product((float("nan"), float("inf")), LAYOUTS):
        x = tensor((40, 3, 10), torch.float32)
        x[17, 1, 4] = value
        x = layout(x)
        got, want = (
            functional.sync_batch_norm(x, None, None, training=True, impl=impl) for impl in (name, "reference")
        )
        assert got[:, 1].isnan().all(), "the whole channel"
        torch.testing.assert_close(got, want, equal_nan=True)
        mean, var = torch.zeros(3), torch.ones(3)
        functional.sync_batch_norm(x, mean, var, training=True, impl=name)
        assert not mean[1].isfinite()
        assert var[1].isnan()
        assert mean[[0, 2]].isfinite().all()


def check_many_channels(impl: ModuleType) -> None:
    for layout in (torch.Tensor.contiguous, channels_last):
        x = layout(tensor((2, 65536, 3), torch.float32))
        got, want = impl.forward_stats(x, 1), reference.forward_stats(x, 1)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def check_precision(impl: ModuleType) -> None:
    """Check a large mean with an outlier in the worst place, the first element."""
    for offset, layout in itertools.product((0, 1e3, 1e4), (torch.Tensor.contiguous, channels_last)):
        x = torch.randn(64, 4, 100, dtype=torch.float64).mul(1e-2).add(offset).float()
        x[0, 0, 0] = offset + 100
        payload, exact = impl.forward_stats(layout(x), 1), reference.forward_stats(x.double(), 1)
        mean, wanted_mean = payload[:4], exact[:4]
        var, wanted_var = payload[4:8], exact[4:8]
        std = wanted_var.sqrt()
        assert ((mean - wanted_mean).abs() / std).max() < 1e-6 + 1e-15 * offset / 1e-2
        assert ((var / wanted_var - 1).abs()).max() < 1e-6


def check_gradients(name: str) -> None:
    for shape, mode, layout in itertools.product([(5, 3, 4), (6, 5)], ("default", "exact"), LAYOUTS):
        x, gamma, beta = (
            tensor(s, torch.float64, i).requires_grad_() for i, s in enumerate((shape, shape[1:2], shape[1:2]))
        )
        dy = tensor(shape, torch.float64, 5)
        y = functional.sync_batch_norm(layout(x), None, None, gamma, beta, training=True, stats_mode=mode, impl=name)
        got = torch.autograd.grad(y, (x, gamma, beta), dy)
        weight, divisor = (1, 1) if mode == "default" else (x.numel() // shape[1], None)
        want = torch.autograd.grad(
            composed_sync_batch_norm(x, gamma, beta, 1e-5, weight, divisor, None), (x, gamma, beta), dy
        )
        torch.testing.assert_close(got, want)


def checks_of(impl: ModuleType, name: str) -> list[tuple[Callable[..., None], tuple[object, ...]]]:
    """Return all checks of an implementation's stages, with their arguments."""
    return [
        *((check_stages, (impl, dtype)) for dtype in DTYPES),
        *((check, (impl,)) for check in (check_different_layouts, check_parameter_dtypes)),
        *((check, (impl,)) for check in (check_many_channels, check_precision)),
        *((check, (name,)) for check in (check_not_finite, check_gradients)),
    ]
