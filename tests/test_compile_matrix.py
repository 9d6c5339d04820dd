"""torch.compile on combinations of models, ranks and ways to compile: eager code's numbers, and no deadlock.

By default, the combinations cover every pair of choices. ``--ways 3`` runs combinations for the missing triples,
``--ways 7`` the rest of the whole product.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from covertable import make
from test_compile import agree, step
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from sbnref import SyncBatchNorm
from sbnref.modes import STATS_MODES

pytestmark = pytest.mark.slow

CHANNELS = 3
Norm = Callable[[int], nn.Module]


class Twins(nn.Module):
    """Two layers that normalize one tensor: their payloads are equal, even on full ranks."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.left, self.right = norm(CHANNELS), norm(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x).tanh() + self.right(x).square()


MODELS: dict[str, Callable[[Norm], nn.Module]] = {
    # equal and different widths
    "a chain": lambda norm: nn.Sequential(norm(3), nn.GELU(), norm(3), nn.Tanh(), nn.Conv1d(3, 2, 2), norm(2)),
    "two on the same tensor": Twins,
    "one called twice": lambda norm: nn.Sequential(twice := norm(CHANNELS), nn.GELU(), twice),
}
BATCHES = {  # per step, each rank's: ragged, all empty, one empty, another one empty, one sample, full
    2: [(4, 2), (0, 0), (0, 2), (4, 0), (1, 2), (4, 4)],
    3: [(4, 2, 4), (0, 0, 0), (0, 2, 4), (4, 0, 4), (1, 2, 4), (4, 4, 4)],
}
CHOICES = {
    "model": list(MODELS),
    "world_size": list(BATCHES),
    "stats_mode": list(STATS_MODES),
    "backend": ["inductor", "aot_eager", "eager"],
    "sizes": ["static", "dynamic"],
    "ddp": ["none", "around", "within"],
    "impl": ["reference", "cpu", "cuda"],
}


def trained(model: str, world_size: int, stats_mode: str, backend: str, sizes: str, ddp: str, impl: str) -> None:
    """Train compiled code on every rank; compare each step's outputs, gradients and buffers with eager code."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    eager = MODELS[model](lambda channels: SyncBatchNorm(channels, stats_mode=stats_mode, impl=impl)).double()
    counter = CompileCounterWithBackend(backend)
    options = dict(backend=counter, dynamic=False if sizes == "static" else None)
    compiled: nn.Module = copy.deepcopy(eager)
    if ddp == "around":
        compiled = torch.compile(DistributedDataParallel(compiled), **options)
    else:
        compiled = torch.compile(compiled, fullgraph=True, **options)
    if ddp == "within":
        compiled = DistributedDataParallel(compiled)
    if ddp != "none":
        eager = DistributedDataParallel(eager)
    rank = dist.get_rank()
    steps = BATCHES[world_size] if sizes == "dynamic" else BATCHES[world_size][:-1]  # the last adds no new code
    with torch._dynamo.config.patch(recompile_limit=64), torch._inductor.config.patch(compile_threads=1):
        for batches in steps:
            x = torch.randn(batches[rank], CHANNELS, 6, dtype=torch.float64) + rank
            want = {name.replace("module.", ""): tensor for name, tensor in step(eager, x).items()}
            agree(step(compiled, x, dynamic=sizes == "dynamic"), want, f"batches {batches}")
    if ddp != "around":  # DistributedDataParallel breaks the graph itself, and its buckets compile one by one
        assert not counters["graph_break"], counters["graph_break"]
        # Code is compiled for every size; with dynamic sizes, for zero, one, and many samples.
        kinds = {batches[rank] if sizes == "static" else min(batches[rank], 2) for batches in steps}
        assert counter.frame_count == len(kinds)
    torch._dynamo.reset()


def combinations(ways: int) -> list[dict[str, Any]]:
    """Return combinations that, with those for pairs, cover every ``ways`` choices; for 2, those for pairs."""
    pairs = list(make(CHOICES, strength=2))
    more = make(CHOICES, strength=ways, presets=pairs, tolerance=2)  # a tolerance that gives few combinations
    return [combination for combination in more if combination not in pairs] if ways > 2 else pairs


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "combination" in metafunc.fixturenames:
        chosen = combinations(metafunc.config.getoption("ways"))
        metafunc.parametrize("combination", chosen, ids=lambda c: ", ".join(str(c[name]) for name in CHOICES))


def test_compiled_steps_are_eager_steps(simulated, combination):
    simulated(combination["world_size"]).run(trained, **combination)
