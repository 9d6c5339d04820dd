"""Measure the overhead of sbnref.diagnose(model, every=10) in a training step of a small ResNet, on one and two ranks.

    python benchmarks/diagnose.py --output NAME.json [--rounds 10]

Writes benchmarks/results/NAME.json, or the given file if its path is absolute. Each round times thirty steps without
diagnose and thirty with it, on one thread per process: about four minutes in all. Needs an idle machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import Results, Row
from benchmarks.show import show
from benchmarks.timing import spread
from sbnref import Ranks, SyncBatchNorm, diagnose

SHAPE, STEPS, EVERY = (16, 3, 32, 32), 30, 10


class Block(nn.Module):
    """Two convolutions with batch norms, beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = SyncBatchNorm(outer, stats_mode="exact")
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = SyncBatchNorm(outer, stats_mode="exact")
        self.shortcut = nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet() -> nn.Module:
    """Return ResNet-20 of He et al. (2016) for CIFAR-10: 18 batch norms in blocks, and one before them."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    strides = [1] * 3 + [2, 1, 1] * 2
    blocks = [Block(*sizes) for sizes in zip(widths, widths[1:], strides, strict=False)]
    first = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), SyncBatchNorm(16, stats_mode="exact"), nn.ReLU()]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def measure(rounds: int) -> list[Row]:
    """Measure the seconds per step; they include the exit from ``diagnose``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x, y = torch.randn(SHAPE), torch.randint(0, 10, SHAPE[:1])

    def train() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    def watched() -> None:
        with diagnose(model, every=EVERY):
            train()

    train()
    times: dict[str, list[float]] = {"alone": [], f"every={EVERY}": []}
    for _ in range(rounds):
        for name, work in zip(times, (train, watched), strict=True):
            start = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - start) / STEPS)
    world = torch.distributed.get_world_size()
    about = {"suite": "diagnose", "what": "training step", "shape": SHAPE, "dtype": "float32", "world_size": world}
    return [{**about, "layer": name, **spread(its)} for name, its in times.items()]


def main() -> None:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()

    results = Results()
    for world_size in (1, 2):
        with Ranks(world_size, timeout=1200) as ranks:
            results.rows += ranks.run(measure, options.rounds)[0]
    show(results)
    results.save(Path(__file__).parent / "results" / options.output)


if __name__ == "__main__":
    main()
