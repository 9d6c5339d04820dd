"""Check the stages as PyTorch operators ``torch.ops.<namespace>``: schemas, fake tensors and errors."""

import re
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def off_by_one(x: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to memory one byte past an aligned address."""
    return torch.frombuffer(bytearray(b"-" + x.numpy().tobytes()), dtype=x.dtype, offset=1).view(x.shape)


INPUTS = {
    "channels-first": lambda: torch.randn(4, 3, 5, 5),
    "channels-last": lambda: torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
    "matrix": lambda: torch.randn(6, 3),
    "volume": lambda: torch.randn(2, 3, 4, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last_3d),
    "not dense": lambda: torch.randn(4, 3, 5, 10)[..., ::2],
    "not dense, channels last": lambda: torch.randn(4, 10, 5, 3).permute(0, 3, 1, 2)[:, :, ::2],
    "permuted": lambda: torch.randn(5, 3, 4).permute(2, 1, 0),
    "not aligned": lambda: off_by_one(torch.randn(4, 3, 5, 5)),
    "empty": lambda: torch.randn(0, 3, 5, 5),
}


def calls(x: torch.Tensor) -> dict[str, tuple]:
    """Return arguments for every operator."""
    channels = x.shape[1]
    gamma, beta, mean, var = torch.rand(4, channels)
    total, saved = torch.rand(3 * channels + 2, dtype=torch.float64), torch.rand(4, channels, dtype=torch.float64)
    return {
        "forward_stats": (x, 5),
        "forward_apply": (x, total, 2, gamma, beta, 1e-5, mean, var, torch.tensor(1), 0.1),
        "backward_stats": (torch.randn_like(x), x, saved),
        "backward_apply": (torch.randn_like(x), x, total[: 2 * channels].clone(), saved, gamma, 0.1),
        "gradients": (torch.randn_like(x), x, total[: 2 * channels].clone(), saved, gamma, beta, 5, 3),
    }


def check_operators(operators: Any, kind: str) -> None:
    for name, args in calls(INPUTS[kind]()).items():
        torch.library.opcheck(getattr(operators, name).default, args)
        if name == "forward_apply":
            torch.library.opcheck(operators.forward_apply.default, (*args[:2], None, None, None, 1e-5, *[None] * 4))


def check_strides(operators: Any, kind: str) -> None:
    """Compare the strides of fake and real results; a wrong stride would break compiled code only later."""
    for name, args in calls(INPUTS[kind]()).items():
        operator = getattr(operators, name)
        real = operator(*args)
        with FakeTensorMode() as mode:
            fake = operator(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args))
        for r, f in zip(*((o if isinstance(o, tuple) else (o,)) for o in (real, fake)), strict=True):
            assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype), name


def check_refusals(operators: Any) -> None:
    x = torch.randn(4, 3)
    args = {name: list(values) for name, values in calls(x).items()}

    def refuses(message: str, name: str, position: int, value: object) -> None:
        changed = [*args[name][:position], value, *args[name][position + 1 :]]
        result = getattr(operators, name)(*changed)
        assert all(one is None for one in (result if isinstance(result, tuple) else [result]))
        assert re.match(message, operators.failure())

    refuses(r"expected x of shape \(N, C, \*\) with C > 0, got \[4\]", "forward_stats", 0, x[:, 0])
    refuses(
        r"expected a tensor of float16, bfloat16, float32 or float64, got \[4, 3\] of Int", "forward_stats", 0, x.int()
    )
    refuses("expected total with 11 contiguous float64 numbers on x's device, got", "forward_apply", 1, torch.zeros(8))
    refuses(r"expected gamma of shape \[3\] on x's device, got \[4\]", "forward_apply", 3, torch.zeros(4))
    refuses("expected num_batches_tracked as one int64", "forward_apply", 8, torch.zeros(1))
    refuses(
        r"expected dy like x, \[4, 3\] of Float on the same device, got \[2, 3\] of Float", "backward_stats", 0, x[:2]
    )
    beta = off_by_one(torch.ones(3))
    refuses("expected beta to start on a multiple of 4 bytes", "forward_apply", 4, beta)
    refuses("expected total with 6 contiguous float64 numbers", "gradients", 2, torch.zeros(6))
    assert operators.forward_apply(*args["forward_apply"][:8], None, None) == (None, None)
    assert operators.failure() == "expected num_batches_tracked for momentum=None, got None"


def check_alignment(operators: Any) -> None:
    """Check that misaligned tensors give the bits of aligned ones."""
    x = torch.randn(4, 3, 5, 5)
    for name, args in calls(x).items():
        moved = tuple(off_by_one(a) if isinstance(a, torch.Tensor) and a.shape == x.shape else a for a in args)
        out, expected = (
            getattr(operators, name)(*(a.clone() if isinstance(a, torch.Tensor) and a.dim() < 2 else a for a in given))
            for given in (moved, args)
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
