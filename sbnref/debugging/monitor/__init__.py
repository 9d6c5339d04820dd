"""Record each rank's batches at the synchronized batch norms of a model, and the statistics of each mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..layers import synchronized_layers
from ..recording import Recorder, Recording, share
from .report import Monitor
from .steps import Layer, Step, layers_of

__all__ = ["Layer", "Monitor", "Step", "monitor"]


@contextmanager
def monitor(model: nn.Module, *, every: int = 1, timeout: float = 300) -> Iterator[Monitor]:
    """Record every :class:`sbnref.SyncBatchNorm` and :class:`torch.nn.SyncBatchNorm` of a model while it trains.

    It communicates nothing until the block ends; then the ranks exchange their records, :math:`4C` numbers per layer
    and recorded step. Every rank has to be inside the block, or none. No hook remains after the block. For a verdict
    and a remedy, use :func:`sbnref.diagnose`.

    Args:
        model: in training mode by the time it is called; steps in eval mode are not recorded.
        every: record the first step and every ``every``-th after it. Above 128 recorded steps, older ones are dropped.
        timeout: seconds to wait for the other ranks when the block ends. After that, missing ranks are left out.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: the model has no synchronized batch norm, or ``every`` is not an integer of at least 1.

    Example:
        >>> layer = sbnref.SyncBatchNorm(8)
        >>> with sbnref.monitor(layer) as watch:
        ...     y = layer(torch.randn(4, 8))
        >>> watch.layers["SyncBatchNorm"].mean_off("default")
        0.0
    """
    watch, left = Monitor({}), None
    recorder = Recorder(model, synchronized_layers(model, nn.SyncBatchNorm), every)
    try:
        with recorder:
            yield watch
    except BaseException as error:
        left = error
        raise
    finally:
        watch.layers = share(recorder.finish(left), _summarize, timeout)


def _summarize(recordings: dict[int, Recording]) -> dict[str, Layer]:
    """Return the layers by name, with the steps in which every rank's copy was in training mode."""
    layers: dict[str, Layer] = {}
    for layer in layers_of(recordings):
        layer.steps = [step for step in layer.steps if not step.in_eval]
        layers.setdefault(layer.name, layer)
    return layers
