"""The thirty lines agree with the layer's definition in float64: outputs and gradients, in every mode."""

import pytest
import torch
import torch.distributed as dist

from sbnref.conformance.oracle import train_step
from sbnref.minimal import sync_batch_norm
from sbnref.modes import STATS_MODES


def worst(stats_mode: str, sizes: list[tuple[int, ...]]) -> float:
    torch.manual_seed(0)
    xs, dys = ([torch.randn(n, 5, *s, dtype=torch.float64) + 2 for n, *s in sizes] for _ in range(2))
    gamma, beta = torch.rand(2, 5, dtype=torch.float64)
    want = train_step(xs, dys, gamma, beta, stats_mode)
    rank = dist.get_rank()
    x, weight, bias = (t.clone().requires_grad_() for t in (xs[rank], gamma, beta))
    y = sync_batch_norm(x, weight, bias, stats_mode)
    y.backward(dys[rank])
    for parameter in (weight, bias):  # like DistributedDataParallel
        dist.all_reduce(parameter.grad)
        parameter.grad /= len(sizes)
    got, expected = (y, x.grad, weight.grad, bias.grad), (want.y[rank], want.dx[rank], want.dgamma, want.dbeta)
    return max(float((a - b).abs().amax()) for a, b in zip(got, expected, strict=True) if a.numel())


@pytest.mark.parametrize("stats_mode", STATS_MODES)
@pytest.mark.parametrize("sizes", [[(3, 4), (0, 4), (2, 6)], [(4, 2, 3), (4, 2, 3)], [(0,), (7,)], [(3, 2)]], ids=str)
def test_thirty_lines_are_the_definition(world, stats_mode, sizes):
    assert max(world(len(sizes)).run(worst, stats_mode, sizes)) < 1e-13
