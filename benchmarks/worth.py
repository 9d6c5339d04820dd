"""Trains on handwritten digits with and without synchronized statistics, for the page *Is it worth it?*.

    python benchmarks/worth.py             # writes docs/worth.json, in about six minutes of CPU time
    python benchmarks/worth.py --quick     # the same rows from less training, to another file: --output

One process plays all ranks. Synchronized ranks compute what one process computes from the whole batch; ranks that are
each for itself normalize their parts of it apart and average their gradients, and rank 0's running statistics are
kept. tests/test_worth.py compares both with real ranks.
"""

from __future__ import annotations

import argparse
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.results import Results, Row
from sbnref.demo import load_digits, network

RANKS = 4
BATCHES = (1, 2, 4, 8, 16, 32)  # samples per rank
RATES = (0.0032, 0.0125, 0.05, 0.2)  # of SGD with momentum 0.9
MOMENTA = (0.1, 0.01, None)  # of the running statistics
NORMS = {"synchronized": 1, "each for itself": RANKS}  # in how many parts the batch is normalized
SAMPLES = 3 * 1437  # that training sees: three times the training set
SEEDS = 5
OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "worth.json"
digits = cache(load_digits)


class Norm(nn.BatchNorm2d):
    """Batch norm over equal parts of the batch, each by itself.

    Attributes:
        parts: one for synchronized ranks, as many as there are ranks for others.
        running: for each momentum the running mean and variance, (2, C), of the first part, which is rank 0's. Training
            does not depend on them, so that one training serves all.
    """

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__(channels)
        self.parts = parts
        self.running = {momentum: torch.stack([self.running_mean, self.running_var]) for momentum in MOMENTA}

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        apart = x.unflatten(0, (self.parts, -1)).transpose(0, 1).flatten(1, 2)  # a channel for each part's channel
        seen = x.new_zeros(2, apart.shape[1])  # at momentum 1 the running statistics are those of the batch
        y = F.batch_norm(
            apart, *seen, self.weight.repeat(self.parts), self.bias.repeat(self.parts), True, 1.0, self.eps
        )
        self.num_batches_tracked += 1
        for momentum, running in self.running.items():
            factor = 1 / self.num_batches_tracked.item() if momentum is None else momentum
            running.lerp_(seen[:, : self.num_features].to(running), factor)
        return y.unflatten(1, (self.parts, -1)).transpose(0, 1).flatten(0, 1)

    def use(self, running: Tensor) -> None:
        """Take these for eval mode."""
        self.running_mean.copy_(running[0])
        self.running_var.copy_(running[1])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """The parts are equal, so the gradient of the mean over all is the average of the ranks' gradients."""
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def train(norm: str, batch: int, rate: float, samples: int, seed: int) -> dict[str, float]:
    """Train, then look at how far the running statistics are off, and how the network does in eval mode."""
    images, labels, *test = digits()
    torch.manual_seed(seed)
    model = network(partial(Norm, parts=NORMS[norm]))
    layers = [layer for layer in model if isinstance(layer, Norm)]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    order = torch.cat([torch.randperm(len(labels)) for _ in range(-(-samples // len(labels)))])[:samples]
    for drawn in order.split(RANKS * batch):
        if len(drawn) == RANKS * batch:
            step(model, optimizer, images[drawn], labels[drawn])

    true = true_statistics(model, images)
    errors = [
        (layer.running[0.1] - want).norm(dim=1) / want.norm(dim=1) for layer, want in zip(layers, true, strict=True)
    ]
    result = dict(zip(("mean_error", "var_error"), torch.stack(errors).mean(0).tolist(), strict=True))
    kept = {str(momentum): [layer.running[momentum] for layer in layers] for momentum in MOMENTA}
    for name, of in {**kept, "true": true}.items():
        for layer, running in zip(layers, of, strict=True):
            layer.use(running)
        result[f"accuracy, {name}"], result[f"loss, {name}"] = evaluate(model, *test)
    return result


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and loss in eval mode."""
    logits = model.eval()(images)
    return (logits.argmax(1) == labels).float().mean().item(), F.cross_entropy(logits, labels).item()


@torch.no_grad()
def true_statistics(model: nn.Module, images: Tensor) -> list[Tensor]:
    """For each layer the mean and variance, (2, C), of its input over all images, normalized by such before it."""
    statistics, x = [], images
    for layer in model:
        if isinstance(layer, Norm):
            var, mean = torch.var_mean(x, (0, 2, 3))
            statistics.append(torch.stack([mean, var]))
            x = F.batch_norm(x, mean, var, layer.weight, layer.bias)
        else:
            x = layer(x)
    return statistics


@torch.no_grad()
def spread(draws: int) -> list[Row]:
    """How far a batch's statistics are from the training set's at the network's start, root mean square."""
    images, *_ = digits()
    torch.manual_seed(0)
    x, rows = images, []
    for layer in network(nn.BatchNorm2d).train():
        if isinstance(layer, nn.BatchNorm2d):
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            for samples in (*BATCHES, *(RANKS * batch for batch in BATCHES[-2:])):
                drawn = torch.stack([x[torch.randperm(len(x))[:samples]] for _ in range(draws)])
                of_batch, about = torch.var_mean(drawn, (1, 3, 4), correction=0)
                rms = [((about - mean) / var.sqrt()).square().mean(), (of_batch / var - 1).square().mean()]
                pixels = x[0, 0].numel()
                mean_spread, var_spread = (value.sqrt().item() for value in rms)
                what = {"suite": "spread", "pixels": pixels, "samples": samples}
                rows.append({**what, "mean": round(mean_spread, 4), "var": round(var_spread, 4)})
        x = layer(x)
    return rows


def measure(samples: int, seeds: int, rates: tuple[float, ...], draws: int, processes: int) -> Results:
    """All rows; in those of training a list holds a value for each seed."""
    start = time.perf_counter()
    cases = [(norm, batch, rate) for norm in NORMS for batch in BATCHES for rate in rates]
    results = Results(rows=spread(draws))
    jobs = [(*case, samples, seed) for case in cases for seed in range(seeds)]
    if processes == 1:
        found = [train(*job) for job in jobs]
    else:
        with mp.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
            found = pool.starmap(train, jobs, chunksize=1)
    for i, (norm, batch, rate) in enumerate(cases):
        of: list[dict[str, Any]] = found[seeds * i : seeds * (i + 1)]
        values = {key: [round(one[key], 4) for one in of] for key in of[0]}
        results.rows.append({"suite": "training", "norm": norm, "batch": batch, "rate": rate, **values})
    results.notes = {"ranks": RANKS, "samples": samples, "seeds": seeds}
    results.notes["seconds"] = round(time.perf_counter() - start)
    return results


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description="Train with and without synchronized statistics.")
    parser.add_argument(
        "--quick", action="store_true", help="all rows, from little training: what they say means nothing"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    if args.quick and args.output == OUTPUT:
        parser.error("--quick is not for the page: give another --output")
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would only wait for one another in a network this small
    results = measure(128, 2, RATES[:1], 20, 1) if args.quick else measure(SAMPLES, SEEDS, RATES, 400, cores)
    results.save(args.output)
    print(f"{args.output}: {len(results.rows)} rows in {results.notes['seconds']} s")


if __name__ == "__main__":
    main()
