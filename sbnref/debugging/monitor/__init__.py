"""Watch the synchronized batch norms of a model as it trains: what each rank brought, and what each mode made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...collectives import resolve, world_size
from ...differentiable import recomputing
from ...impls import reference
from ...modes import STATS_MODES, combine, fixed_divisor, payload_dtype, rank_weight
from ..layers import input_of, synchronized_layers
from .report import Monitor
from .steps import Layer, Step

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Layer", "Monitor", "Step", "monitor"]


@contextmanager
def monitor(model: nn.Module, *, every: int = 1) -> Iterator[Monitor]:
    """Watch every :class:`sbnref.SyncBatchNorm` and :class:`torch.nn.SyncBatchNorm` of a model while it trains.

    It adds one small collective per layer and recorded step, :math:`4C + 3` numbers from each rank, and waits for its
    result. Every rank of a layer's group has to be inside the block, or none. Nothing remains after it.

    Args:
        model: in training mode by the time it is called; steps in eval mode are not recorded.
        every: record each layer's first step and every so many after it.

    Raises:
        TypeError: it is not a module.
        ValueError: the model has no such layer, or ``every`` is below 1.

    Example:
        >>> layer = sbnref.SyncBatchNorm(8)
        >>> with sbnref.monitor(layer) as watch:
        ...     y = layer(torch.randn(4, 8))
        >>> watch.layers["SyncBatchNorm"].verdict()
        "layer SyncBatchNorm: 'default' gave the statistics of the whole batch."
    """
    if every < 1:
        raise ValueError(f"expected every to be at least 1, got {every}")
    watched = synchronized_layers(model, nn.SyncBatchNorm)
    layers = {name: Layer(name, getattr(layer, "stats_mode", "exact")) for name, layer in watched.items()}
    handles = [
        watched[name].register_forward_hook(_Recorder(record, every), with_kwargs=True)
        for name, record in layers.items()
    ]
    try:
        yield Monitor(layers)
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """The forward hook of one layer."""

    def __init__(self, record: Layer, every: int) -> None:
        self.record, self.every = record, every
        self.calls = 0

    @torch.no_grad()
    def __call__(self, layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> None:
        if not layer.training or recomputing():
            return
        self.calls += 1
        if (self.calls - 1) % self.every == 0:
            group = resolve(layer.process_group if isinstance(layer, nn.SyncBatchNorm) else layer.group)
            self.record.ranks = (0,) if group is None else tuple(dist.get_process_group_ranks(group))
            rows = _rows(layer, input_of(args, kwargs), group)
            self.record.steps.append(_step(rows, layer.num_features, self.record.ranks))


def _rows(layer: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:  # (G, 5C + 3)
    """Each rank's [n, mean, var, mean^2, 1 or 0, m, running mean, running variance]."""
    wide = payload_dtype(x.device)
    elements = x.numel() // x.shape[1]
    running = [b.to(wide) for b in (layer.running_mean, layer.running_var) if b is not None]
    row = torch.cat(
        [
            torch.tensor([x.shape[0]], dtype=wide, device=x.device),
            reference.forward_stats(x, min(elements, 1)),
            *running,
        ]
    )
    if group is None:
        return row[None].cpu()
    rows = [torch.empty_like(row) for _ in range(world_size(group))]
    dist.all_gather(rows, row, group=group)
    return torch.stack(rows).cpu()


def _step(rows: Tensor, channels: int, ranks: tuple[int, ...]) -> Step:
    batch_sizes, rows = [int(n) for n in rows[:, 0]], rows[:, 1:].double()
    payloads, running = rows[:, : 3 * channels + 2], rows[:, 3 * channels + 2 :]
    elements = [int(m) for m in payloads[:, -1]]
    means, variances = {}, {}
    for mode in STATS_MODES:
        weights = [rank_weight(mode, n, m) for n, m in zip(batch_sizes, elements, strict=True)]
        w = torch.tensor(weights, dtype=torch.float64)[:, None]
        total = torch.cat([w * payloads[:, :-1], payloads[:, -1:]], 1).sum(0)  # payloads have weight 1, or 0 if empty
        stats = combine(total, fixed_divisor(mode, len(elements)))
        means[mode], variances[mode] = stats.mean, stats.var
    return Step(
        tuple(batch_sizes),
        tuple(elements),
        means,
        variances,
        tuple(r for r, bad in zip(ranks, (~payloads.isfinite()).any(1), strict=True) if bad),
        _spread(running),
    )


def _spread(running: Tensor) -> float:  # (G, 2C or 0)
    """The largest difference between two ranks; infinite where one of them alone has NaN."""
    if running.numel() == 0:
        return 0.0
    nan = running.isnan()
    if (nan.any(0) != nan.all(0)).any():
        return torch.inf
    return float((running.amax(0) - running.amin(0)).nan_to_num(0).max())
