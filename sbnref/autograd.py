"""The forward and the backward pass, each as stats, all-reduce, apply. All implementations share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .collectives import sum_payloads, world_size
from .differentiable import composed_sync_batch_norm
from .modes import fixed_divisor, rank_weight
from .running import RunningStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .impls import Implementation


class SyncBatchNormFunction(torch.autograd.Function):
    """Batch normalization over the union of the ranks' batches, with a derivative written by hand."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, C, *)
        gamma: Tensor | None,  # (C,)
        beta: Tensor | None,  # (C,)
        running: RunningStats | None,  # updated in place
        momentum: float | None,
        eps: float,
        stats_mode: str,
        group: ProcessGroup | None,
        impl: Implementation,
    ) -> Tensor:  # y (N, C, *)
        if dense := getattr(impl, "dense", None):
            x = dense(x)
        count = x.numel() // x.shape[1]
        weight = rank_weight(stats_mode, x.shape[0], count)
        divisor = fixed_divisor(stats_mode, world_size(group))

        total = sum_payloads(impl.forward_stats(x, weight), group)
        y, saved = impl.forward_apply(x, total, divisor, gamma, beta, eps, running, momentum)
        if running is not None and not torch.compiler.is_compiling():
            increment_version(filter(torch.is_tensor, running))  # PyTorch's operations do it, kernels do not

        ctx.save_for_backward(x, gamma, beta, saved)
        ctx.layer = eps, weight, divisor, group
        ctx.impl = impl
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            return *_differentiable_backward(ctx, dy), *[None] * 6

        x, gamma, beta, saved = ctx.saved_tensors
        _, weight, _, group = ctx.layer
        total = sum_payloads(ctx.impl.backward_stats(dy, x, saved), group)
        impl, ranks, dx = ctx.impl, world_size(group), None
        if ctx.needs_input_grad[0]:
            if in_one_go := getattr(impl, "gradients", None):
                return *in_one_go(dy, x, total, saved, gamma, beta, weight, ranks), *[None] * 6
            k = weight / max(x.numel() // x.shape[1], 1)
            dx = impl.backward_apply(dy, x, total, saved, gamma, k)
        return dx, *parameter_gradients(total, ranks, gamma, beta), *[None] * 6


def parameter_gradients(
    total: Tensor,  # (2C,) [sum g, sum g xhat], summed over the ranks
    ranks: int,
    gamma: Tensor | None,
    beta: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of gamma and beta, averaged over the ranks."""
    # Divide by a tensor, as the kernels do: PyTorch's CUDA division by a number multiplies by its inverse.
    sum_g, sum_g_xhat = (total if ranks == 1 else total / total.new_full((), ranks)).chunk(2)
    dgamma = None if gamma is None else sum_g_xhat.to(gamma.dtype)
    dbeta = None if beta is None else sum_g.to(beta.dtype)
    return dgamma, dbeta


def _differentiable_backward(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """Return the gradients of x, gamma and beta as differentiable functions of x, gamma, beta and dy."""
    given = ctx.saved_tensors[:3]
    # Compute all of them: each needs collectives, and ranks may need different ones.
    inputs = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in given]
    y = composed_sync_batch_norm(*inputs, *ctx.layer)
    grads = iter(torch.autograd.grad(y, [t for t in inputs if t is not None], dy, create_graph=True))
    return [None if t is None else next(grads) for t in inputs]
