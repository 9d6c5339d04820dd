"""Turn the batch norms of a model into synchronized ones, and back."""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from ..module import SyncBatchNorm

if TYPE_CHECKING:
    from ..collectives import Group

PLAIN = "torch.nn.modules.batchnorm._BatchNorm"  # BatchNorm1d, 2d and 3d share it
DIMENSIONS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # of the input
FROZEN = (
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "detectron2.layers.batch_norm.FrozenBatchNorm2d",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
)

# Names that a subclass may define and a conversion may drop.
HARMLESS = {*vars(type("", (), {})), "__init__", "__annotations__", "__repr__", "extra_repr", "_check_input_dim"}
HARMLESS |= {"__firstlineno__", "__static_attributes__", "__annotate__", "__annotations_cache__", "__constants__"}
# Attributes that depend on the synchronization.
SYNCHRONIZED = {*vars(SyncBatchNorm(1, device="meta")), "reverts_to", "group_size", "_stats_mode"}
GROUPS = ("group", "process_group", "_process_group")  # the attribute's names in torch and other libraries


class _Conversion(NamedTuple):
    convert: Callable[..., nn.Module] | None
    revert: Callable[[nn.Module], nn.Module] | None


# The conversions, by the full name of the class that defines the forward pass. So no package has to be imported to be
# recognized, and a subclass with a forward pass of its own is not recognized.
_registry: dict[str, _Conversion] = {}


def convert_sync_batchnorm(
    module: nn.Module,
    group: Group = None,
    stats_mode: str | None = None,
    impl: str | None = None,
    *,
    frozen: bool = False,
) -> nn.Module:
    """Replace every batch norm in ``module`` by a :class:`sbnref.SyncBatchNorm`.

    It replaces ``torch.nn.BatchNorm1d``, ``2d`` and ``3d``, ``torch.nn.SyncBatchNorm``, the synchronized layers of
    mmcv, detectron2, apex and fairscale, timm's ``BatchNormAct2d`` and ``SyncBatchNormAct``,
    :class:`sbnref.SyncBatchNorm` itself, and the classes added by :func:`sbnref.interop.register_conversion`. The new
    layer has the old one's parameters and buffers (the same tensors), children, hooks, training flag, attributes,
    ``eps`` and ``momentum``; do not use the old one any more. A layer that occurs in several places is replaced by one
    layer in all of them. Convert before wrapping in ``DistributedDataParallel`` or ``fully_shard``.
    :func:`sbnref.interop.convert.conversions` lists the conversions without changing anything.

    Args:
        module: changed in place, unless it is a batch norm itself.
        group: as in :class:`sbnref.SyncBatchNorm`; None keeps a synchronized layer's own group.
        stats_mode: as in :class:`sbnref.SyncBatchNorm`; None keeps each layer's arithmetic: the layers of mmcv,
            detectron2 and sbnref keep their mode, all others become ``'exact'``.
        impl: as in :class:`sbnref.SyncBatchNorm`; None keeps the ``impl`` of a layer of sbnref.
        frozen: whether to convert the frozen batch norms of torchvision, detectron2 and timm too. They train from then
            on: the weight and the bias, which were buffers, become parameters in the same memory.

    Returns:
        ``module``, or the new layer if ``module`` is a batch norm.

    Raises:
        ValueError: ``stats_mode`` or ``impl`` is unknown.
        TypeError: ``module`` is not a module, ``group`` is of the wrong kind, a batch norm does more than normalize (a
            forward pass or another method of its own, a property, lazy or computed parameters, channels in the last
            dimension) or is scripted or traced, or a registered function returns a module that cannot take the layer's
            place. In each case nothing is changed.
    """
    return _replace(module, _to_synchronized(group, stats_mode, impl, frozen))


def conversions(
    module: nn.Module,
    group: Group = None,
    stats_mode: str | None = None,
    impl: str | None = None,
    *,
    frozen: bool = False,
) -> dict[str, str]:
    """List what :func:`sbnref.convert_sync_batchnorm` would do to each batch norm in ``module``, and change nothing.

    Returns:
        The new layer by the path of each layer, or the reason why the layer would stay or raise an error.
    """
    conversion, found = _to_synchronized(group, stats_mode, impl, frozen), {}
    for path, layer in module.named_modules():
        build, about = conversion(layer), type(layer).__name__
        if build is None:
            if _kind(layer) in FROZEN:
                found[path] = f"{about} stays: it is frozen; pass frozen=True to convert it"
            elif isinstance(layer, _BatchNorm):
                found[path] = f"{about} stays: its class is registered with convert=None"
        elif reason := _why_not(layer):
            found[path] = f"rejected: a {about} {reason}"
        else:
            found[path] = f"{about} becomes {build(layer)}"
    return found


def _to_synchronized(
    group: Group, stats_mode: str | None, impl: str | None, frozen: bool
) -> Callable[[nn.Module], Callable[[nn.Module], nn.Module] | None]:
    """Return a function from a layer to its conversion, or to None for a layer that stays as it is."""
    # validates the arguments before any change
    SyncBatchNorm(1, group=group, stats_mode="exact" if stats_mode is None else stats_mode, impl=impl)

    def conversion(layer: nn.Module) -> Callable[[nn.Module], nn.Module] | None:
        kind = _kind(layer)
        if kind in FROZEN and not frozen:
            return None
        is_norm = isinstance(layer, _BatchNorm) or _is_scripted(layer)
        known = _registry.get(kind, _Conversion(_synchronized if is_norm else None, None))
        return known.convert and partial(
            known.convert,
            group=_group_of(layer) if group is None else group,
            stats_mode=_own(layer, ("stats_mode", "_stats_mode"), "exact") or "default"  # detectron2's name is ""
            if stats_mode is None
            else stats_mode,
            impl=_own(layer, ("impl",)) if impl is None else impl,
        )

    return conversion


def _group_of(layer: nn.Module) -> Group:
    """Return the layer's group; None for the world."""
    group = _own(layer, GROUPS)
    return None if dist.is_available() and group is dist.group.WORLD else group


def _own(layer: nn.Module, names: tuple[str, ...], default: Any = None) -> Any:
    """Return the first of these attributes that the layer has; a plain batch norm may use the names for anything."""
    return next((getattr(layer, name) for name in names if _kind(layer) != PLAIN and hasattr(layer, name)), default)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every synchronized batch norm in ``module`` by one of ``torch.nn``, for a single process.

    It is the inverse of :func:`sbnref.convert_sync_batchnorm`: it recognizes the same layers and keeps the same state.
    A converted layer becomes its old class again, ``BatchNorm1d``, ``2d``, ``3d`` or timm's ``BatchNormAct2d``, but a
    frozen layer is not frozen again. A layer that was built synchronized becomes a batch norm of any dimension, and its
    first input decides between ``BatchNorm1d``, ``2d`` and ``3d``.

    Args:
        module: changed in place, unless it is a synchronized batch norm itself.

    Returns:
        ``module``, or the new layer if ``module`` is a synchronized batch norm.

    Raises:
        TypeError: as :func:`sbnref.convert_sync_batchnorm`; a layer of an unknown class stays as it is.
    """

    return _replace(module, lambda layer: _registry.get(_kind(layer), _Conversion(None, None)).revert)


def register_conversion(
    name: str, convert: Callable[..., nn.Module] | None, revert: Callable[[nn.Module], nn.Module] | None
) -> None:
    """Register how to convert the layers of a class, and how to revert them.

    The old layer's parameters, buffers, children, hooks and training flag replace those of the module that either
    function returns. The new module must not have any that the old layer lacks; build it with ``device="meta"`` to save
    memory.

    Args:
        name: the full name, ``"package.module.Class"``, of the class that defines the layer's forward pass. It covers
            subclasses without a forward pass of their own, and need not be imported.
        convert: ``convert(layer, group=..., stats_mode=..., impl=...)`` returns the replacement for
            :func:`sbnref.convert_sync_batchnorm`; ``stats_mode`` is ``'exact'`` if neither the caller nor the layer has
            one. None leaves the layer as it is.
        revert: ``revert(layer)`` returns the replacement for :func:`sbnref.revert_sync_batchnorm`. None leaves the
            layer as it is.

    Raises:
        ValueError: ``name`` is taken, or is not a full name.
        TypeError: ``name`` is not a string, or ``convert`` or ``revert`` is neither a function nor None.
    """
    if not isinstance(name, str):
        raise TypeError(f"expected the full name of a class as a string, got {name!r}")
    if not re.fullmatch(r"\w+(\.(\w+|<locals>))+", name):
        raise ValueError(f"expected the full name of a class, as in 'package.module.Class', got {name!r}")
    if name in _registry:
        raise ValueError(f"expected a new name, got {name!r}, which is registered already")
    for function in (convert, revert):
        if function is not None and not callable(function):
            raise TypeError(f"expected convert and revert to be functions or None, got {function!r}")
    _registry[name] = _Conversion(convert, revert)


class SyncBatchNormAct(SyncBatchNorm):
    """A :class:`sbnref.SyncBatchNorm` followed by the ``drop`` and ``act`` of timm's ``BatchNormAct2d``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class BatchNorm(_BatchNorm):
    """A batch norm of any dimension. Its first input turns it into ``BatchNorm1d``, ``2d`` or ``3d``."""

    def _check_input_dim(self, input: Tensor) -> None:
        if torch.jit.is_scripting() or torch.compiler.is_compiling():
            return
        self.__class__ = DIMENSIONS.get(input.dim(), BatchNorm)  # type: ignore[assignment]


def _options(layer: nn.Module) -> dict[str, Any]:
    """Return this layer's arguments for a batch norm's constructor."""
    names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    return {name: getattr(layer, name) for name in names}


def _unsynchronized(layer: nn.Module) -> type[_BatchNorm] | None:
    """Return ``BatchNorm1d``, ``2d`` or ``3d`` if the layer is one of them or was converted from one."""
    return next((c for c in DIMENSIONS.values() if isinstance(layer, c)), getattr(layer, "reverts_to", None))


def _shell(kind: type[nn.Module], layer: nn.Module, **choices: Any) -> nn.Module:
    """Build a ``kind`` with the options of ``layer`` and without memory: it gets the layer's tensors later."""
    with unset_fake_temporarily():  # in fake mode torch cannot make a batch counter without memory
        return kind(**_options(layer), **choices, device="meta")


def _synchronized(layer: nn.Module, **choices: Any) -> nn.Module:
    converted = _shell(SyncBatchNorm, layer, **choices)
    converted.reverts_to = _unsynchronized(layer)  # type: ignore[assignment]
    return converted


def _plain(layer: nn.Module) -> nn.Module:
    return _shell(_unsynchronized(layer) or BatchNorm, layer)


def _synchronized_act(layer: nn.Module, **choices: Any) -> nn.Module:
    if not hasattr(layer, "act"):  # a timm synchronized layer not made from another layer has no act
        return _synchronized(layer, **choices)
    return _shell(SyncBatchNormAct, layer, **choices)


def _plain_act(layer: nn.Module) -> nn.Module:
    if not hasattr(layer, "act"):
        return _plain(layer)
    from timm.layers.norm_act import BatchNormAct2d  # the layer has drop and act, so timm is installed

    return _shell(BatchNormAct2d, layer)


def _thawed(layer: Any, **choices: Any) -> nn.Module:
    """Convert a frozen layer. It has no momentum and no batch counter, so these are new."""
    kind = SyncBatchNormAct if hasattr(layer, "act") else SyncBatchNorm
    thawed = kind(len(layer.weight), layer.eps, **choices, device=layer.weight.device)
    thawed.reverts_to = nn.BatchNorm2d
    return thawed


register_conversion(PLAIN, _synchronized, None)
for _name in (
    "sbnref.module.SyncBatchNorm",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "mmcv.ops.sync_bn.SyncBatchNorm",
    "detectron2.layers.batch_norm.NaiveSyncBatchNorm",
    "apex.parallel.sync_batchnorm.SyncBatchNorm",
    "apex.parallel.optimized_sync_batchnorm.SyncBatchNorm",
    "fairscale.experimental.nn.sync_batchnorm.SyncBatchNorm",
):
    register_conversion(_name, _synchronized, _plain)
register_conversion("timm.layers.norm_act.BatchNormAct2d", _synchronized_act, None)
for _name in ("timm.layers.norm_act.SyncBatchNormAct", f"{__name__}.SyncBatchNormAct"):
    register_conversion(_name, _synchronized_act, _plain_act)
for _name in FROZEN:
    register_conversion(_name, _thawed, None)


def _replace(root: nn.Module, conversion: Callable[[nn.Module], Callable[[nn.Module], nn.Module] | None]) -> nn.Module:
    """Replace every layer that has a conversion, and move its state to the new layer."""
    if not isinstance(root, nn.Module):
        raise TypeError(f"expected a module to convert, got {type(root).__name__}")
    found = {layer: (path, build) for path, layer in root.named_modules() if (build := conversion(layer))}
    for layer, (path, _) in found.items():
        if reason := _why_not(layer):
            raise TypeError(
                f"expected batch norms that only normalize, got {path!r}, a {type(layer).__name__} {reason}"
            )
    replacements = {layer: build(layer) for layer, (_, build) in found.items()}
    for layer, new in replacements.items():
        if reason := _why_not_instead(new, layer):
            raise TypeError(
                f"expected the conversion of {found[layer][0]!r}, a {type(layer).__name__}, to return a module without "
                f"extra parameters, buffers or children, got {reason}"
            )
    if len({id(new) for new in replacements.values()}) < len(replacements):
        raise TypeError("expected a conversion to return a new module for each layer, got one module for several")
    for layer, new in replacements.items():
        _take_over(new, layer)
    for parent in root.modules():
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(root, root)


def _kind(layer: nn.Module) -> str:
    """Return the full name of the class that defines the layer's forward pass."""
    owner = next(c for c in type(layer).__mro__ if "forward" in vars(c))
    return f"{owner.__module__}.{owner.__qualname__}"


def _is_scripted(layer: nn.Module) -> bool:
    """Return whether it is a batch norm compiled by ``torch.jit``, except frozen ones, which need no other ranks."""
    name = getattr(layer, "original_name", "") if isinstance(layer, torch.jit.ScriptModule) else ""
    return "BatchNorm" in name and "Frozen" not in name


def _why_not(layer: nn.Module) -> str | None:
    """Return why the layer cannot be converted, or None."""
    if _is_scripted(layer):
        return f"that torch.jit compiled from a {layer.original_name}; convert the model before scripting or tracing it"
    if _kind(layer) not in _registry:
        return "with a forward pass of its own; register its class with sbnref.interop.register_conversion"
    if "forward" in vars(layer):
        return "with a forward pass of its own"
    if changed := _overrides(layer):
        return f"that overrides {', '.join(changed)}, which converting would lose"
    if isinstance(layer, LazyModuleMixin):
        return "that gets its num_features from its first input; run the model once before converting it"
    if _kind(layer).startswith("apex.") and (
        option := next((o for o in ("channel_last", "fuse_relu") if getattr(layer, o, False)), None)
    ):
        return f"with {option}=True"
    if not {"weight", "bias", "running_mean", "running_var"} <= _contents(layer) and isinstance(layer, _BatchNorm):
        return "with computed parameters (parametrized, pruned, in FSDP); undo that, or convert before"
    return None


def _overrides(layer: nn.Module) -> list[str]:
    """Return the methods and properties in which the layer differs from the class that defines its forward pass."""
    classes = itertools.takewhile(lambda c: "forward" not in vars(c), type(layer).__mro__)
    theirs = {name: value for c in classes if not c.__module__.startswith("torch.") for name, value in vars(c).items()}
    found = {name for name, value in theirs.items() if isinstance(value, property) or hasattr(_BatchNorm, name)}
    patched = {name for name in vars(layer) if callable(getattr(_BatchNorm, name, None))}
    return sorted((found | patched) - HARMLESS)


def _why_not_instead(new: Any, old: nn.Module) -> str | None:
    """Return why ``new``, the result of a conversion, cannot replace ``old``, or None."""
    if not isinstance(new, nn.Module):
        return f"a {type(new).__name__}"
    besides = _contents(new) - _contents(old) - {"num_batches_tracked"}  # a frozen layer has no counter
    return f"a {type(new).__name__} that also has {sorted(besides)}" if besides else None


def _contents(layer: nn.Module) -> set[str]:
    return {*layer._parameters, *layer._buffers, *layer._modules}


def _take_over(new: nn.Module, old: nn.Module) -> None:
    """Move a module's state to ``new`` by reference: the training flag, parameters, buffers, children and hooks."""
    parameters, count = new._parameters, new._buffers.get("num_batches_tracked")
    vars(new).update({key: vars(old)[key] for key in vars(nn.Module())})
    frozen = [name for name in parameters if name in old._buffers]
    if frozen and not isinstance(old, _BatchNorm):
        buffers: dict[str, Any] = {**old._buffers, "num_batches_tracked": count}
        new._parameters = {**old._parameters, **{name: nn.Parameter(buffers.pop(name)) for name in frozen}}
        new._buffers = buffers
    # The user's own attributes, and the qconfig of torch.ao.
    for name in vars(old).keys() - SYNCHRONIZED - {*GROUPS} - vars(new).keys():
        setattr(new, name, vars(old)[name])
    for hook in new._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):  # the hook is called with the module that it stores
            hook.module = weakref.ref(new)  # type: ignore[attr-defined]
