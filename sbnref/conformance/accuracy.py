"""Measure the layer's errors against float64, on inputs that break batch norms."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..functional import sync_batch_norm
from .oracle import train_step

EPS = 1e-5


def offset(rank: int, mean: float, std: float) -> Tensor:
    """Return values with a small spread about a large mean; on rank 0 with an outlier of 100 standard deviations."""
    x = torch.randn(8, 4, 16, 16, dtype=torch.float64) * std + mean
    if rank == 0:
        x[0, :, 0, 0] = mean + 100 * std
    return x


INPUTS = {
    "mean 1e3, std 1e-2": lambda rank: offset(rank, 1e3, 1e-2).float(),
    "mean 1e4, std 1e-2": lambda rank: offset(rank, 1e4, 1e-2).float(),
    "float16 near its limit": lambda rank: (torch.randn(8, 4, 16, 16) * 100 + 64_000).clamp(max=65_504).half(),
    "one huge outlier": lambda rank: torch.randn(8, 4, 16, 16).index_put_(
        tuple(torch.zeros(4, 1, dtype=torch.long)), torch.tensor(1e8 if rank == 0 else 0.0)
    ),
    "a constant channel": lambda rank: torch.cat([torch.full((8, 1, 16, 16), 1e3), torch.randn(8, 3, 16, 16)], 1),
    "float64, mean 1.7e9, std 1, on one rank only": lambda rank: offset(rank, 1.7e9, 1)[: 0 if rank else None],
    "means 1e6 apart": lambda rank: torch.randn(8, 4, 16, 16) + 1e6 * rank,
}


def measure_accuracy(name: str, impl: str, device: str) -> dict[str, dict[str, float]]:
    """Run one of ``INPUTS`` through the layer, and through ``F.batch_norm`` over the concatenated batch.

    Returns:
        The relative errors ``layer`` and ``F.batch_norm`` of y, dx, dgamma, dbeta, mean and var against float64, and
        the error ``allowed``. An element's error is relative to its size or to its channel's root mean square, if that
        is larger; the mean's is relative to the standard deviation. Allowed are :math:`10^{-6}`, the rounding of a half
        result and, if two ranks have data, :math:`10^{-15} (\\mu / \\sigma)^2`. The channel shown has the largest error
        of the layer over the allowed one.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    xs = [INPUTS[name](r) for r in range(world_size)]
    dys = [torch.randn(x.shape).to(x.dtype) for x in xs]
    gamma, beta = torch.randn(4), torch.randn(4)
    want = train_step(xs, dys, gamma, beta, "exact", EPS)

    def run(x: Tensor, dy: Tensor, batch_norm: bool) -> list[Tensor]:
        x, dy = x.detach().to(device).requires_grad_(), dy.to(device)
        dtype = torch.promote_types(x.dtype, torch.float32)
        w, b = (p.detach().to(device, dtype).requires_grad_() for p in (gamma, beta))
        if batch_norm:
            mean, var = torch.zeros(4, device=device, dtype=dtype), torch.ones(4, device=device, dtype=dtype)
            y = F.batch_norm(x, mean, var, w, b, True, 1.0, EPS)
        else:
            mean, var = torch.zeros(4, device=device).double(), torch.ones(4, device=device).double()
            y = sync_batch_norm(x, mean, var, w, b, True, 1.0, EPS, stats_mode="exact", impl=impl)
        y.backward(dy)
        return [t.detach().double().cpu() for t in (y, x.grad, w.grad, b.grad, mean, var)]  # type: ignore[union-attr]

    got = run(xs[rank], dys[rank], batch_norm=False)
    peer = run(torch.cat(xs), torch.cat(dys), batch_norm=True)
    mine = slice(8 * rank, 8 * rank + 8)
    peer = [peer[0][mine], peer[1][mine], peer[2] / world_size, peer[3] / world_size, peer[4], peer[5]]
    expected = [want.y[rank], want.dx[rank], want.dgamma, want.dbeta, want.mean, want.unbiased_var]

    sigma2 = want.var + EPS
    between = sum(x.numel() > 0 for x in xs) > 1
    bound = 1e-6 + between * 1e-15 * want.mean**2 / sigma2  # (C,)
    figures, half = {}, xs[rank].dtype.itemsize == 2
    for i, quantity in enumerate(("y", "dx", "dgamma", "dbeta", "mean", "var")):
        rounding = 0.505 * torch.finfo(xs[rank].dtype).eps if half and quantity in ("y", "dx") else 0
        allowed = bound + rounding
        errors = [_error(candidate[i], expected[i], quantity, sigma2) for candidate in (got, peer)]
        worst = int((errors[0] / allowed).nan_to_num(torch.inf).argmax())
        figures[quantity] = {
            "layer": float(errors[0][worst]),
            "F.batch_norm": float(errors[1].max()),
            "allowed": float(allowed[worst]),
        }
    return figures


def _error(got: Tensor, want: Tensor, quantity: str, sigma2: Tensor) -> Tensor:  # (C,)
    difference = (got - want).abs()
    if quantity == "mean":
        return difference / sigma2.sqrt()
    if quantity == "var":
        return difference / (want + EPS)
    if want.dim() == 1:
        return difference / want.abs().max()
    if want.numel() == 0:
        return torch.zeros_like(sigma2)
    per_channel = [d for d in range(want.dim()) if d != 1]
    rms = want.square().mean(per_channel, keepdim=True).sqrt()
    return (difference / torch.maximum(want.abs(), rms)).amax(per_channel)
