"""Turn the batch norms of a model into synchronized ones, and back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from ..module import SyncBatchNorm

if TYPE_CHECKING:
    from ..collectives import Group

# The layers that compute what ours computes, by the class that defines their forward pass. They go by name, so that no
# package has to be installed or imported to be recognized, and a subclass with a forward pass of its own is not.
BATCH_NORM = "torch.nn.modules.batchnorm._BatchNorm"  # BatchNorm1d, 2d and 3d share it
SYNC_BATCH_NORMS = {
    "sbnref.module.SyncBatchNorm",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "mmcv.ops.sync_bn.SyncBatchNorm",
    "detectron2.layers.batch_norm.NaiveSyncBatchNorm",
    "apex.parallel.sync_batchnorm.SyncBatchNorm",
    "apex.parallel.optimized_sync_batchnorm.SyncBatchNorm",
    "fairscale.experimental.nn.sync_batchnorm.SyncBatchNorm",
}
DIMENSIONS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # of the input


def convert_sync_batchnorm(
    module: nn.Module, group: Group = None, stats_mode: str = "default", impl: str | None = None
) -> nn.Module:
    """Replace every batch norm in ``module`` by a :class:`sbnref.SyncBatchNorm`.

    Replaced are ``torch.nn.BatchNorm1d``, ``2d`` and ``3d``, ``torch.nn.SyncBatchNorm``, the synchronized layers of
    mmcv, detectron2, apex and fairscale, and :class:`sbnref.SyncBatchNorm` itself. The new layer has the old one's
    parameters and buffers (the same tensors), hooks, training flag, ``eps`` and ``momentum``; the old one should not
    be used any more. A layer that occurs in several places is replaced by one layer in all of them. Convert before
    wrapping in ``DistributedDataParallel`` or ``fully_shard``.

    Args:
        module: is changed in place, unless it is a batch norm itself.
        group: as in :class:`sbnref.SyncBatchNorm`. This and what follows replace what the layers had before.
        stats_mode: as in :class:`sbnref.SyncBatchNorm`; ``'exact'`` keeps what ``torch.nn.SyncBatchNorm`` computes.
        impl: as in :class:`sbnref.SyncBatchNorm`.

    Returns:
        ``module``, or the new layer if ``module`` is a batch norm.

    Raises:
        ValueError: no such ``stats_mode`` or ``impl``.
        TypeError: ``group`` is of the wrong kind, or a batch norm does more than normalize (a forward pass of its
            own, lazy or computed parameters, channels in the last dimension): converting would lose it. Nothing is
            changed then.
    """

    def convert(layer: nn.Module) -> nn.Module:
        converted = SyncBatchNorm(**_options(layer), group=group, stats_mode=stats_mode, impl=impl, device="meta")
        converted.reverts_to = _unsynchronized(layer)
        return converted

    SyncBatchNorm(
        1, group=group, stats_mode=stats_mode, impl=impl
    )  # refuses what is wrong with the arguments before any change
    return _replace(module, lambda layer: isinstance(layer, _BatchNorm) or _kind(layer) in SYNC_BATCH_NORMS, convert)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every synchronized batch norm in ``module`` by one of ``torch.nn``, for a single process.

    It is the inverse of :func:`convert_sync_batchnorm`, with the same layers recognized and the same things kept. A
    layer that was converted becomes again the ``BatchNorm1d``, ``2d`` or ``3d`` that it was. One that was built
    synchronized accepts any input, until its first input tells which of the three it becomes.

    Args:
        module: is changed in place, unless it is a synchronized batch norm itself.

    Returns:
        ``module``, or the new layer if ``module`` is a synchronized batch norm.

    Raises:
        TypeError: as :func:`convert_sync_batchnorm`.
    """

    def revert(layer: nn.Module) -> nn.Module:
        return (_unsynchronized(layer) or BatchNorm)(**_options(layer), device="meta")

    return _replace(module, lambda layer: _kind(layer) in SYNC_BATCH_NORMS, revert)


class BatchNorm(_BatchNorm):
    """A batch norm of any dimension, which becomes ``BatchNorm1d``, ``2d`` or ``3d`` with its first input."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if not torch.compiler.is_compiling():
            self.__class__ = DIMENSIONS.get(input.dim(), BatchNorm)  # type: ignore[assignment]


def _options(layer: nn.Module) -> dict[str, Any]:
    """The arguments of every batch norm's constructor, as this layer has them."""
    names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    return {name: getattr(layer, name) for name in names}


def _unsynchronized(layer: nn.Module) -> type[_BatchNorm] | None:
    """``BatchNorm1d``, ``2d`` or ``3d``, where the layer is one of them or was converted from one."""
    return next((c for c in DIMENSIONS.values() if isinstance(layer, c)), getattr(layer, "reverts_to", None))


def _replace(
    root: nn.Module, applies: Callable[[nn.Module], bool], build: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Put ``build(layer)``, with the layer's state, in the place of every layer it applies to."""
    layers = {layer: path for path, layer in root.named_modules() if applies(layer)}
    for layer, path in layers.items():
        if reason := _why_not(layer):
            raise TypeError(
                f"expected batch norms that only normalize, got {path!r}, a {type(layer).__name__} {reason}"
            )
    replacements = {layer: _take_over(build(layer), layer) for layer in layers}
    for parent in root.modules():
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(root, root)


def _kind(layer: nn.Module) -> str:
    """The full name of the class that defines the layer's forward pass."""
    owner = next(c for c in type(layer).__mro__ if "forward" in vars(c))
    return f"{owner.__module__}.{owner.__qualname__}"


def _why_not(layer: nn.Module) -> str | None:
    """What the layer does besides normalizing; None if nothing."""
    if _kind(layer) not in {BATCH_NORM, *SYNC_BATCH_NORMS} or "forward" in vars(layer):
        return "with a forward pass of its own"
    if isinstance(layer, LazyModuleMixin):
        return "that learns its num_features from its first input: give it one before"
    if not {"weight", "bias", "running_mean", "running_var"} <= {*layer._parameters, *layer._buffers}:
        return "whose parameters are computed from others (a parametrization, pruning): make them plain before"
    if option := next((o for o in ("channel_last", "fuse_relu") if getattr(layer, o, False)), None):  # apex
        return f"with {option}=True"
    return None


def _take_over(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give ``new`` what every module has: the training flag, parameters, buffers and hooks, by reference."""
    vars(new).update({key: vars(old)[key] for key in vars(nn.Module())})
    for hook in new._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):  # it is called with the module that it remembers
            hook.module = weakref.ref(new)  # type: ignore[attr-defined]
    return new
