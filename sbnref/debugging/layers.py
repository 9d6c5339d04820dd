"""Find the batch norms of a model, their settings, and the inputs of their calls."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ..modes import STATS_MODES
from ..module import SyncBatchNorm


def synchronized_layers(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, Any]:
    """Return the :class:`sbnref.SyncBatchNorm` layers, and those of ``kinds``, by name in the model.

    A model that is itself a layer is named after its class.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no layer of these types.
    """
    wanted: tuple[type[nn.Module], ...] = (SyncBatchNorm, *kinds)
    layers = {name: layer for name, layer in _named(model).items() if isinstance(layer, wanted)}
    if not layers:
        others = sorted({type(m).__name__ for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)})
        found = f"only {', '.join(others)}; sbnref.convert_sync_batchnorm(model) converts them" if others else "none"
        raise ValueError(f"expected a model with a layer of type sbnref.SyncBatchNorm, found {found}")
    return layers


def batch_norms(model: nn.Module) -> dict[str, Any]:
    """Return every batch norm of any library, by name in the model.

    Any module with ``running_mean``, ``running_var``, ``eps`` and ``momentum`` counts, except instance norms.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no batch norm.
    """
    marks = ("running_mean", "running_var", "eps", "momentum")
    layers = {
        name: layer
        for name, layer in _named(model).items()
        if all(hasattr(layer, mark) for mark in marks) and not isinstance(layer, _InstanceNorm)
    }
    if not layers:
        raise ValueError(f"expected a model with a batch norm, found none in {type(model).__name__}")
    return layers


def _named(model: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return {name or type(layer).__name__: layer for name, layer in inner.named_modules()}


@dataclass(frozen=True)
class Settings:
    """The settings of a rank's copy of a layer. Ranks with different settings compute different results.

    Attributes:
        kind: the name of the class.
        stats_mode: the mode; empty if the layer does not synchronize.
        momentum: the weight of a step in the running statistics; None for the cumulative average.
        eps: added to the variance.
        track_running_stats: whether it has running statistics.
        group: the ranks that it synchronizes with, by their number in the world.
    """

    kind: str
    stats_mode: str
    momentum: float | None
    eps: float
    track_running_stats: bool
    group: tuple[int, ...]


def differing(settings: list[Settings]) -> list[str]:
    """Return the names of the settings that differ."""
    return [f.name for f in fields(Settings) if len({getattr(s, f.name) for s in settings}) > 1]


def settings_of(layer: Any) -> Settings:
    """Return the settings of a batch norm of any library."""
    synchronizes = "sync" in type(layer).__name__.lower() or hasattr(layer, "stats_mode")
    mode = getattr(layer, "stats_mode", getattr(layer, "_stats_mode", "exact")) if synchronizes else ""
    if synchronizes and mode not in STATS_MODES:
        mode = "default"  # detectron2's "": all ranks have equal weights
    kept = layer.running_mean is not None
    momentum = layer.momentum if layer.momentum is None else float(layer.momentum)
    return Settings(type(layer).__name__, mode, momentum, float(layer.eps), kept, _group_of(layer))


def _group_of(layer: Any) -> tuple[int, ...]:
    if not (dist.is_available() and dist.is_initialized()):
        return (0,)
    groups = (getattr(layer, name, None) for name in ("process_group", "_process_group", "group"))
    group = next((g for g in groups if g is not None), None)
    if isinstance(group, dist.device_mesh.DeviceMesh):
        group = group.get_group()
    return tuple(dist.get_process_group_ranks(group or dist.group.WORLD))


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the first tensor among a call's positional and keyword arguments."""
    return next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
