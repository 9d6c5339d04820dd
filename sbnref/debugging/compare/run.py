"""Run one training step of a copy of the model, and keep each layer's input and upstream gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from ...collectives import resolve
from ...impls import use_impl
from ...module import SyncBatchNorm
from ...running import RunningStats
from ..layers import input_of, synchronized_layers

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass
class Call:
    """The input and the upstream gradient of one call of a layer."""

    name: str
    layer: SyncBatchNorm
    x: Tensor
    running: RunningStats | None
    dy: Tensor | None = None

    @property
    def group(self) -> ProcessGroup | None:
        """The ranks that synchronize."""
        return resolve(self.layer.group)


def run_once(model: nn.Module, inputs: Any, impl: str, upstream: Any, seed: int) -> list[Call]:
    """Run one training step of a copy of the model, and return the calls of its layers."""
    if isinstance(model, DistributedDataParallel):
        model = model.module  # averaging gradients is not part of the comparison
    layers = synchronized_layers(model)
    if not any(layer.training for layer in layers.values()):
        raise ValueError(
            f"expected a synchronized batch norm in training mode, got {len(layers)} in eval mode, which does not "
            "synchronize; call model.train() first"
        )
    model = copy.deepcopy(model)
    calls: list[Call] = []
    with ExitStack() as hooks:
        for name, layer in synchronized_layers(model).items():
            for handle in (
                layer.register_forward_pre_hook(_keep_input(name, calls), with_kwargs=True),
                layer.register_forward_hook(_keep_gradient(calls)),
            ):
                hooks.callback(handle.remove)
        inputs = tree_map(lambda t: t.detach().requires_grad_() if _is_float(t) else t, inputs)
        with use_impl(impl), torch.enable_grad():
            if isinstance(inputs, dict):
                output = model(**inputs)
            else:
                output = model(*(inputs if isinstance(inputs, (tuple, list)) else (inputs,)))
            outputs = [t for t in tree_leaves(output) if _is_float(t) and t.requires_grad]
            if not calls:
                raise ValueError(
                    "expected the model to call a synchronized batch norm in training mode, but it called none"
                )
            torch.autograd.backward(outputs, _upstream(outputs, upstream, seed))
    for call in calls:
        if call.dy is None:  # no gradient reached the layer
            call.dy = _random_like([call.x], seed)[0]
    return calls


def _keep_input(name: str, calls: list[Call]) -> Callable[..., None]:
    def hook(layer: SyncBatchNorm, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if not layer.training:
            return
        before = sum(call.layer is layer for call in calls)
        running = None
        if layer.track_running_stats and layer.running_mean is not None and layer.running_var is not None:
            steps = layer.num_batches_tracked
            running = RunningStats(
                layer.running_mean.clone(), layer.running_var.clone(), None if steps is None else steps.clone()
            )
        called = f"{name} (call {before + 1})" if before else name
        calls.append(Call(called, layer, input_of(args, kwargs).detach().clone(), running))

    return hook


def _keep_gradient(calls: list[Call]) -> Callable[..., None]:
    def hook(layer: SyncBatchNorm, args: tuple[Tensor, ...], y: Tensor) -> None:
        if layer.training and y.requires_grad:
            call = calls[-1]

            def keep(dy: Tensor) -> None:
                call.dy = dy.detach().clone()

            y.register_hook(keep)

    return hook


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _upstream(outputs: list[Tensor], upstream: Any, seed: int) -> list[Tensor]:
    if upstream is not None:
        given = [t for t in tree_leaves(upstream) if isinstance(t, Tensor)]
        if [t.shape for t in given] != [t.shape for t in outputs]:
            raise ValueError(
                f"expected upstream with the shapes of the outputs, {[tuple(t.shape) for t in outputs]}, "
                f"got {[tuple(t.shape) for t in given]}"
            )
        return given
    drawn = zip(outputs, _random_like(outputs, seed), strict=True)
    return [torch.ones_like(t) if t.dim() == 0 else dy for t, dy in drawn]


def _random_like(tensors: list[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in tensors]
