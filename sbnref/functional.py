"""The layer as a function: validate, choose the implementation, call the autograd function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from .autograd import SyncBatchNormFunction
from .collectives import apart_from_ddp, resolve, transforming
from .differentiable import recomputing, transformed_sync_batch_norm
from .impls import choose_impl
from .impls.environment import flag
from .running import RunningStats
from .validation import (
    check_call,
    check_eager_trace,
    check_join,
    check_mask,
    check_mask_unmapped,
    check_normalized,
    check_spread,
)

if TYPE_CHECKING:
    from .collectives import Group


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    num_features: int | None = None,
    num_batches_tracked: Tensor | None = None,
    group: Group = None,
    stats_mode: str = "default",
    impl: str | None = None,
) -> Tensor:
    r"""Normalize a batch by the statistics of the batches of all ranks in ``group``.

    .. math::
        y = \gamma \, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mu = \frac{1}{D} \sum_r w_r \mu_r, \qquad v = \frac{1}{D} \sum_r w_r \left( v_r + (\mu_r - \mu)^2 \right)

    with the weights and the divisor of ``stats_mode`` (:mod:`sbnref.modes`). The first eight arguments are as in
    :func:`torch.nn.functional.batch_norm`. In training, call it on every rank of the group, even without data.

    Args:
        input: (N, C, \*), float16, bfloat16, float32 or float64, any strides; N may be 0.
        running_mean: (C,), updated in place in training; None to keep none.
        running_var: (C,), updated in place in training, unbiased; None to keep none.
        weight: :math:`\gamma`, (C,). Its gradient is averaged over the group.
        bias: :math:`\beta`, (C,). Its gradient is averaged over the group.
        training: True uses the statistics of all ranks. False uses the running statistics or, without them, this
            rank's batch, and communicates nothing.
        momentum: the weight of this step in the running statistics; None for the cumulative average.
        eps: added to the variance; positive unless running statistics are used.
        num_features: the expected C; None to accept any.
        num_batches_tracked: () int64, counts the steps that had data; needed for ``momentum=None``.
        group: the ranks to synchronize: None for all, a ``ProcessGroup`` or a one-dimensional ``DeviceMesh``.
        stats_mode: ``'default'``, ``'N'`` (both as in ``mmcv.ops.SyncBatchNorm``) or ``'exact'``.
        impl: the name of the implementation; None to let :func:`sbnref.use_impl`, ``SBNREF_IMPL`` or ``'auto'`` decide.

    Returns:
        (N, C, \*), in the dtype and memory format of ``input``.

    Raises:
        TypeError: a dtype, a layout, a number or the group is of the wrong kind.
        ValueError: a shape, a device, ``eps``, ``stats_mode`` or ``impl`` is wrong, this process is not in the group,
            or the only rank has one value per channel.
        RuntimeError: the chosen implementation cannot run on the input's device, or the call is made within DDP's
            ``Join``.

    Within a transform of :mod:`torch.func`, and in forward mode (:mod:`torch.autograd.forward_ad`), every
    implementation computes as ``'reference'`` does, with operations that can be transformed again. Every rank of the
    group has to be within the same transform.

    The equations: Ioffe and Szegedy (2015); Chan, Golub and LeVeque (1983) for combining variances.
    """
    positional = input, running_mean, running_var, weight, bias, training, momentum, eps
    if type(input) is not Tensor and has_torch_function_unary(input):
        # The input's class calls this function again on plain tensors and wraps the output. Pass it the function
        # without the check of SBNREF_DEBUG, which has to run once per call.
        function: Callable[..., Tensor] = getattr(sync_batch_norm, "__wrapped__", sync_batch_norm)
        checks = dict(num_features=num_features, num_batches_tracked=num_batches_tracked)
        choices = dict(group=group, stats_mode=stats_mode, impl=impl)
        return handle_torch_function(function, (input,), *positional, **checks, **choices)
    check_call(*positional, num_features, num_batches_tracked, stats_mode)
    if not training:
        return _normalize_locally(input, running_mean, running_var, weight, bias, eps)
    check_eager_trace()

    process_group = resolve(group)
    chosen = choose_impl(impl, input.device)
    if process_group is None:
        check_spread(input)
    else:
        check_join()
        process_group = apart_from_ddp(process_group)
    running = None
    if running_mean is not None and running_var is not None and not recomputing():
        running = RunningStats(running_mean, running_var, num_batches_tracked)
    if transforming():
        if torch.compiler.is_compiling():  # compiled, a gradient would miss the paths through the statistics
            torch._dynamo.graph_break(msg="sbnref.SyncBatchNorm is not compiled within a transform of torch.func")
        return transformed_sync_batch_norm(input, weight, bias, eps, stats_mode, process_group, running, momentum)
    return SyncBatchNormFunction.apply(input, weight, bias, running, momentum, eps, stats_mode, process_group, chosen)


def _normalize_locally(
    input: Tensor,  # (N, C, *)
    running_mean: Tensor | None,  # (C,)
    running_var: Tensor | None,  # (C,)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    eps: float,
) -> Tensor:  # (N, C, *)
    """Run :func:`torch.nn.functional.batch_norm` with the running statistics, or else the batch's own (eval mode)."""
    # float32 parameters with half inputs are the only mixture of dtypes that F.batch_norm accepts
    acc = torch.promote_types(input.dtype, torch.float32)
    weight, bias = (None if t is None else t.to(acc) for t in (weight, bias))
    x = input.to(acc) if transforming() else input  # under a transform, F.batch_norm accepts no mixture at all
    if running_mean is None or running_var is None:
        check_spread(input)
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps).to(input.dtype)
    # The backward pass reads the statistics, which a step in training mode may have moved by then.
    keep = torch.is_grad_enabled() and not (torch.compiler.is_compiling() or torch._C._get_tracing_state())
    running_mean, running_var = (t.to(acc, copy=keep) for t in (running_mean, running_var))
    return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps).to(input.dtype)


def masked(layer: Callable[[Tensor], Tensor], input: Tensor, mask: Tensor) -> Tensor:
    r"""Normalize the valid positions of a padded batch by the statistics of all ranks' valid positions.

    The valid positions are gathered into a batch of vectors, (M, C), passed to ``layer``, and put back. So padding
    enters no statistics, is zero in the output, and gets a gradient of zero. A rank without a valid position takes
    part as a rank without data.

    Args:
        layer: normalizes (M, C), M may be 0: a :class:`sbnref.SyncBatchNorm` in any mode. In ``'N'`` and ``'exact'``
            every valid position counts as one.
        input: (N, C, \*), in a dtype that the layer accepts.
        mask: (N, \*), bool, True where a position is valid.

    Returns:
        (N, C, \*), in the dtype and memory format of ``input``.

    Raises:
        TypeError: ``mask`` is not a dense tensor of bools, ``input`` is not a dense tensor, or the output of ``layer``
            is not a tensor of its input's dtype and device.
        ValueError: the mask's shape or device does not fit the input, the output of ``layer`` is not (M, C), or
            :func:`torch.func.vmap` maps over a batch of masks.

    The output of ``layer`` is checked after the call: by then its collectives are made and its statistics updated.

    Example:
        >>> lengths = torch.tensor([5, 2, 0])
        >>> mask = torch.arange(5) < lengths[:, None]
        >>> masked(SyncBatchNorm(8), torch.randn(3, 8, 5), mask).shape
        torch.Size([3, 8, 5])
    """
    check_mask(input, mask)
    if transforming():
        check_mask_unmapped(mask)
    valid = mask.nonzero(as_tuple=True)
    positions = input.movedim(1, -1)[valid]
    normalized = layer(positions)
    check_normalized(positions, normalized)
    output = torch.zeros_like(input)
    if transforming():  # not in place: a mapped weight makes a batch of outputs, which one output cannot hold
        return output.movedim(1, -1).index_put(valid, normalized).movedim(-1, 1)
    output.movedim(1, -1)[valid] = normalized
    return output  # not the view: autograd stops at an empty one, and this rank would miss collectives


if flag("SBNREF_DEBUG"):  # read once, when sbnref is imported
    from .debugging.agreement import agree_first

    sync_batch_norm = agree_first(sync_batch_norm)
