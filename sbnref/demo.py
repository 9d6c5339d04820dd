"""Compare the statistics modes on real data, with several ranks and batches that are often empty.

Four processes train one small convolutional network on scikit-learn's handwritten digits. As in a detection head, a
rank normalizes only the objects that it finds: at each step every rank looks at a few digits and keeps those of its own
classes, often none.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .collectives import all_reduce, resolve, world_size
from .debugging.monitor.report import MODE_COLORS
from .impls.reference import forward_stats
from .launch import Ranks
from .modes import STATS_MODES, combine, fixed_divisor, rank_weight
from .module import SyncBatchNorm

UNSYNCHRONIZED = "no sync"
MODES = (*STATS_MODES, UNSYNCHRONIZED)
MISSING = "sbnref demo needs scikit-learn and matplotlib: pip install scikit-learn matplotlib"
LOOKED_AT = 8  # digits that a rank looks at in each step
LOOKS_FOR: list[set[int]] = [set(range(10)), {2, 3}, {8}, {5}]  # classes that a rank keeps, repeated for more ranks


def run(ranks: int, steps: int, seed: int, output: Path, as_json: bool) -> None:
    """Train once in each mode, print a table, and save a figure and the numbers in ``output``."""
    console = Console(stderr=as_json)
    results: dict[str, Any] = {
        "ranks": ranks,
        "steps": steps,
        "seed": seed,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "modes": {},
    }
    load_digits()  # report a missing package before any process starts
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit(MISSING)
    output.mkdir(parents=True, exist_ok=True)
    with console.status(f"starting {ranks} ranks"):
        pool = Ranks(ranks)
        pool.run(dist.get_rank)
    with pool:
        for mode in MODES:
            results["modes"][mode] = pool.run(train, mode, steps, seed)[0]
    share = sum(count > 0 for count in results["modes"]["exact"]["empty_ranks"]) / steps
    results["share_of_steps_with_an_empty_rank"] = share

    (output / "demo.json").write_text(json.dumps(results) + "\n")
    draw(results, output / "demo.png")
    if as_json:
        sys.stdout.write(json.dumps(results) + "\n")
    else:
        console.print(f"{ranks} ranks, {steps} steps; in {share:.0%} of the steps at least one rank was empty.")
        console.print(table(results))
        console.print(f"Saved {output / 'demo.png'} and {output / 'demo.json'}.")


def train(mode: str, steps: int, seed: int) -> dict[str, Any]:
    """Train in one mode, on every rank. All ranks return the same results, except for ``seconds``."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    images, labels, test_images, test_labels = load_digits()
    group = [dist.new_group([r]) for r in range(ranks)][rank] if mode == UNSYNCHRONIZED else None
    stats_mode = "exact" if mode == UNSYNCHRONIZED else mode
    torch.manual_seed(seed)
    model = network(partial(SyncBatchNorm, group=group, stats_mode=stats_mode))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)

    generator = torch.Generator().manual_seed(seed)
    losses, empty_ranks, errors = [], [], []
    seen: list[Tensor] = []  # indices of the digits that all ranks kept
    start = time.perf_counter()
    with progress(f"{mode:>8}", steps, shown=rank == 0) as advance:
        for _ in range(steps):
            kept = draw_batches(labels, ranks, generator)
            x, target = images[kept[rank]], labels[kept[rank]]
            with measured_errors(model) as step_errors:
                logits = wrapped(x)
            # DistributedDataParallel averages over ranks: the factor makes the loss the mean over all samples
            total = max(sum(map(len, kept)), 1)
            loss = F.cross_entropy(logits, target, reduction="sum") / total
            optimizer.zero_grad()
            (loss * ranks).backward()
            optimizer.step()
            schedule.step()
            losses.append(all_reduce(loss.detach(), resolve(None)).item())
            empty_ranks.append(sum(len(k) == 0 for k in kept))
            errors.append(step_errors)
            seen += kept
            advance()
    seconds = time.perf_counter() - start

    mean_errors, var_errors = torch.tensor(errors).mean(1).T.tolist()  # over the layers
    running_mean_error, running_var_error = running_errors(model, images[torch.cat(seen)])
    with torch.no_grad():
        accuracy = (model.eval()(test_images).argmax(1) == test_labels).float().mean().item()
    return {
        "mean_error": sum(mean_errors) / steps,
        "var_error": sum(var_errors) / steps,
        "running_mean_error": running_mean_error,
        "running_var_error": running_var_error,
        "loss": sum(losses[-20:]) / len(losses[-20:]),
        "accuracy": accuracy,
        "seconds": seconds,
        "empty_ranks": empty_ranks,
        "mean_errors": mean_errors,
        "var_errors": var_errors,
        "losses": losses,
    }


def load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images (N, 1, 8, 8) and classes (N,) to train on, then every fifth image and class to test on."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise SystemExit(MISSING) from error
    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    test = torch.arange(len(labels)) % 5 == 0
    return images[~test], labels[~test], images[test], labels[test]


def network(norm: Any) -> nn.Module:
    """Return a network from (N, 1, 8, 8) to (N, 10)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), norm(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, stride=2), norm(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def draw_batches(labels: Tensor, ranks: int, generator: torch.Generator) -> list[Tensor]:
    """Return, for each rank, the indices of the digits that it keeps. All ranks draw the same."""
    kept = []
    for rank in range(ranks):
        looked_at = torch.randint(len(labels), (LOOKED_AT,), generator=generator)
        wanted = torch.tensor(sorted(LOOKS_FOR[rank % len(LOOKS_FOR)]))
        kept.append(looked_at[torch.isin(labels[looked_at], wanted)])
    return kept


@contextmanager
def measured_errors(model: nn.Module) -> Iterator[list[tuple[float, float]]]:
    """Collect, within the block, the relative errors of the mean and variance of each layer's forward pass.

    They are relative to the statistics of all samples together; unsynchronized ranks are averaged.
    """
    errors: list[tuple[float, float]] = []

    @torch.no_grad()
    def measure(layer: SyncBatchNorm, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        everyone, group = resolve(None), resolve(layer.group)

        def statistics(stats_mode: str, over: Any) -> Tensor:
            weight = rank_weight(stats_mode, x.shape[0], x.numel() // x.shape[1])
            total = all_reduce(forward_stats(x, weight), over)
            return torch.stack(combine(total, fixed_divisor(stats_mode, world_size(over)))[:2])

        true, used = statistics("exact", everyone), statistics(layer.stats_mode, group)
        error = (used - true).norm(dim=1) / true.norm(dim=1)
        has_data = error.new_full((1,), float(x.numel() > 0 or group is not None))
        error = torch.cat([torch.where(has_data > 0, error, 0), has_data])
        error = all_reduce(error, everyone)
        errors.append(tuple((error[:2] / error[2]).tolist()))

    hooks = [m.register_forward_pre_hook(measure) for m in model.modules() if isinstance(m, SyncBatchNorm)]
    try:
        yield errors
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def running_errors(model: nn.Module, samples: Tensor) -> tuple[float, float]:
    """Return the relative errors of the running mean and variance against all samples, averaged over layers."""
    errors = []

    def measure(layer: SyncBatchNorm, inputs: tuple[Tensor]) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        got, want = torch.stack([*layer.buffers()][:2]), torch.stack([mean, var])
        errors.append(((got - want).norm(dim=1) / want.norm(dim=1)).tolist())

    layers = [m for m in model.modules() if isinstance(m, SyncBatchNorm)]
    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    model.eval()(samples)
    for hook in hooks:
        hook.remove()
    mean_error, var_error = torch.tensor(errors).mean(0).tolist()
    return mean_error, var_error


@contextmanager
def progress(description: str, steps: int, shown: bool) -> Iterator[Any]:
    """Show a progress bar on standard error; yield the function that advances it."""
    with Progress(console=Console(stderr=True), disable=not shown) as bar:
        yield partial(bar.advance, bar.add_task(description, total=steps))


def table(results: dict[str, Any]) -> Table:
    """Return the comparison, a row for each mode."""
    rows = Table(title="Relative errors of the statistics, and results of the training")
    for heading in ("mode", "mean", "var", "running mean", "running var", "loss", "test acc.", "s"):
        rows.add_column(heading, justify="left" if heading == "mode" else "right")
    for mode, r in results["modes"].items():
        errors = (f"{r[key]:.1%}" for key in ("mean_error", "var_error", "running_mean_error", "running_var_error"))
        rows.add_row(mode, *errors, f"{r['loss']:.3f}", f"{r['accuracy']:.1%}", f"{r['seconds']:.1f}")
    rows.caption = (
        "mean, var: of a step, against all samples of that step; running: after training, against all samples seen"
    )
    return rows


def draw(results: dict[str, Any], path: Path) -> None:
    """Save the figure: the errors of the statistics by the number of empty ranks, and of the running statistics."""
    import matplotlib.ticker

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    modes = results["modes"]
    colors = {**MODE_COLORS, UNSYNCHRONIZED: "#6e7781"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(3, 2))
    counts = sorted(set(modes["exact"]["empty_ranks"]))
    for i, mode in enumerate(MODES):
        r = modes[mode]
        groups = [[e for e, n in zip(r["var_errors"], r["empty_ranks"], strict=True) if n == count] for count in counts]
        where = [count + 0.18 * (i - 1.5) for count in counts]
        for x, values in zip(where, groups, strict=True):
            left.plot([x] * len(values), values, "o", color=colors[mode], alpha=0.15, markersize=4, markeredgewidth=0)
        medians = [torch.tensor(values).median().item() for values in groups]
        left.plot(where, medians, "_", color=colors[mode], markersize=16, markeredgewidth=3, label=mode)
    left.set(
        xticks=counts, xlabel=f"empty ranks in a step, of {results['ranks']}", ylabel="relative error of the variance"
    )
    left.set_title("Each empty rank skews the statistics of 'default'", loc="left")
    left.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    left.legend(frameon=False, title="bar: median; dots: steps")

    for i, (key, label) in enumerate((("running_mean_error", "mean"), ("running_var_error", "variance"))):
        where = [m + 0.4 * (i - 0.5) for m in range(len(MODES))]
        values = [modes[mode][key] for mode in MODES]
        bars = right.barh(where, values, 0.36, color=[colors[mode] for mode in MODES], alpha=1 - 0.4 * i)
        right.bar_label(bars, [f"{label} {value:.1%}" for value in values], padding=4)
    right.invert_yaxis()
    right.set(yticks=range(len(MODES)), yticklabels=MODES, xlabel="relative error of the running statistics")
    right.margins(x=0.5)
    right.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    right.set_title("... and eval mode inherits it", loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    plt.close(figure)
