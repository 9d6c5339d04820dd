"""Find the synchronized batch norms of a model, and what they are called with."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..module import SyncBatchNorm


def synchronized_layers(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, Any]:
    """The :class:`sbnref.SyncBatchNorm` layers, and those of ``kinds``, by name in the model.

    A model that is itself a layer goes by its class's name.

    Raises:
        TypeError: it is not a module.
        ValueError: it has no such layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    wanted: tuple[type[nn.Module], ...] = (SyncBatchNorm, *kinds)
    layers = {name or type(layer).__name__: layer for name, layer in model.named_modules() if isinstance(layer, wanted)}
    if not layers:
        others = sorted({type(m).__name__ for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)})
        found = f"only {', '.join(others)}; sbnref.convert_sync_batchnorm(model) converts them" if others else "none"
        raise ValueError(f"expected a model with a layer of type sbnref.SyncBatchNorm, found {found}")
    return layers


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The one argument of a layer's call, by position or by name, as a hook gets them."""
    (x,) = (*args, *kwargs.values())
    return x
