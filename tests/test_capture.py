"""A training step has no host sync, so a CUDA graph can capture it."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from sbnref import SyncBatchNorm
from sbnref.conformance.watch import Watch
from sbnref.modes import STATS_MODES


@pytest.mark.ranks(2)
def test_a_training_step_asks_the_host_for_nothing():
    for stats_mode in STATS_MODES:
        model = nn.Sequential(nn.Conv2d(2, 4, 3), SyncBatchNorm(4, momentum=None, stats_mode=stats_mode), nn.ReLU())
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for sizes in ([2, 3], [4, 0], [0, 0]):
            for forward in (model, partial(checkpoint, model, use_reentrant=False)):
                x = torch.randn(sizes[dist.get_rank()], 2, 5, 5)
                with Watch() as watch:
                    optimizer.zero_grad()
                    forward(x).pow(2).sum().backward()
                    optimizer.step()
                assert not watch.host_reads, watch.host_reads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU captures")
@pytest.mark.parametrize("batch_size", [4, 0])
@pytest.mark.parametrize("impl", ["reference", "cuda"])
def test_a_captured_step_is_replayed(impl, batch_size):
    eager = SyncBatchNorm(4, impl=impl, device="cuda")
    captured = copy.deepcopy(eager)
    x, dy = torch.randn(2, batch_size, 4, 8, 8, device="cuda")
    x.requires_grad_()

    def step(layer: SyncBatchNorm) -> None:
        layer.weight.grad = layer.bias.grad = x.grad = None
        layer(x).backward(dy)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(captured)
    torch.cuda.current_stream().wait_stream(side)
    captured.reset_running_stats()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured)
    captured_dx = x.grad
    for _ in range(3):
        with torch.no_grad():
            x.normal_(1, 2)
        graph.replay()
        step(eager)
        torch.testing.assert_close(captured_dx, x.grad)
        torch.testing.assert_close(captured.weight.grad, eager.weight.grad)
        torch.testing.assert_close(captured.state_dict(), eager.state_dict())


def check_reduce_overhead(device: str) -> None:
    """Check the kernels in CUDA graphs of ``mode="reduce-overhead"``: warmed up, recorded and replayed."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    eager = nn.Sequential(*(SyncBatchNorm(4, impl="cuda", device=device) for _ in range(3)))  # splits need tickets
    graphed = copy.deepcopy(eager)
    compiled = torch.compile(graphed, mode="reduce-overhead", fullgraph=True)
    for batch_size in (64, 64, 64, 0, 0, 0, 64, 0, 3, 3, 3):
        x, dy = torch.randn(2, batch_size, 4, 32, 32, device=device)
        torch.compiler.cudagraph_mark_step_begin()
        got = {}
        for name, model in (("eager", eager), ("graphed", compiled)):
            leaf = x.clone().requires_grad_()
            model.zero_grad()
            model(leaf).backward(dy)
            got[name] = leaf.grad.clone(), [p.grad.clone() for p in model.parameters()]
        torch.testing.assert_close(got["graphed"], got["eager"], msg=lambda m, n=batch_size: f"batch of {n}: {m}")
        torch.testing.assert_close(graphed.state_dict(), eager.state_dict())
    if device == "cuda":
        assert not counters["inductor"]["cudagraph_skips"], "no CUDA graph was made: nothing was checked"
