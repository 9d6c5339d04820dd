"""The layer as a function: every check, then the autograd function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import SyncBatchNormFunction
from .collectives import resolve
from .debug import agree_first
from .impls import choose_impl
from .modes import STATS_MODES, RunningStats
from .recompute import recomputing

if TYPE_CHECKING:
    from .collectives import Group

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@agree_first
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
    r"""Batch normalization with statistics over the batches of all ranks in ``group``.

    .. math::
        y = \gamma \, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mu = \frac{1}{D} \sum_r w_r \mu_r, \qquad v = \frac{1}{D} \sum_r w_r \left( v_r + (\mu_r - \mu)^2 \right)

    with the weights and the divisor of ``stats_mode`` (:mod:`sbnref.modes`). The first eight arguments are those of
    :func:`torch.nn.functional.batch_norm`. In training every rank of the group has to call, a rank without data too.

    Args:
        input: (N, C, \*), float16, bfloat16, float32 or float64, any strides; N may be 0.
        running_mean: (C,), updated in place in training; None to keep none.
        running_var: (C,), updated in place in training, unbiased; None to keep none.
        weight: :math:`\gamma`, (C,). Its gradient is averaged over the group.
        bias: :math:`\beta`, (C,). Its gradient is averaged over the group.
        training: True takes the statistics of all ranks; False the running ones or, where there are none, this rank's
            own, and communicates nothing.
        momentum: the weight of this step in the running statistics; None for the cumulative average.
        eps: added to the variance; positive where statistics are taken.
        num_features: C, where it is known; None to take any.
        num_batches_tracked: () int64, counts the steps that had data; needed for ``momentum=None``.
        group: the ranks to synchronize: None for all, a ``ProcessGroup`` or a one-dimensional ``DeviceMesh``.
        stats_mode: ``'default'``, ``'N'`` (both as in ``mmcv.ops.SyncBatchNorm``) or ``'exact'``.
        impl: the name of the implementation, None to let :func:`sbnref.use_impl`, ``SBNREF_IMPL`` or ``'auto'`` decide.

    Returns:
        (N, C, \*), in the dtype and memory format of ``input``.

    Raises:
        TypeError: a dtype, a layout, a number or the group is of the wrong kind.
        ValueError: a shape, a device, ``eps``, ``stats_mode`` or ``impl`` is not what is expected, this process is not
            in the group, or one value per channel is to be normalized by itself.
        RuntimeError: the implementation asked for cannot run on the input's device.

    The equations: Ioffe and Szegedy (2015); Chan, Golub and LeVeque (1983) for combining variances.
    """
    _check(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        num_features,
        num_batches_tracked,
        stats_mode,
    )
    if not training and running_mean is not None:
        # parameters as wide as the arithmetic: F.batch_norm takes them with half inputs, and no other mixture
        acc = torch.promote_types(input.dtype, torch.float32)
        running_mean, running_var, weight, bias = (
            None if t is None else t.to(acc) for t in (running_mean, running_var, weight, bias)
        )
        return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)

    process_group = resolve(group) if training else None
    chosen = choose_impl(impl, input.device)
    if process_group is None and input.numel() == input.shape[1]:
        raise ValueError(
            f"expected more than 1 value per channel to take statistics of, got input of shape {tuple(input.shape)} "
            "on the only rank"
        )
    running = None
    if training and running_mean is not None and running_var is not None and not recomputing():
        running = RunningStats(running_mean, running_var, num_batches_tracked)
    return SyncBatchNormFunction.apply(input, weight, bias, running, momentum, eps, stats_mode, process_group, chosen)


def check_stats_mode(stats_mode: str) -> None:
    """Raise :class:`ValueError` unless there is such a mode."""
    if stats_mode not in STATS_MODES:
        raise ValueError(f"expected stats_mode to be one of {STATS_MODES}, got {stats_mode!r}")


def _check(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_features: int | None,
    num_batches_tracked: Tensor | None,
    stats_mode: str,
) -> None:
    """Refuse bad input before anything is communicated or changed."""
    if not isinstance(input, Tensor):
        raise TypeError(f"expected input to be a Tensor, got {type(input).__name__}")
    if input.dtype not in DTYPES:
        raise TypeError(f"expected input of one of the dtypes {DTYPES}, got {input.dtype}")
    if input.is_nested or input.layout != torch.strided:
        raise TypeError(f"expected a dense input, got {'a nested one' if input.is_nested else input.layout}")
    if input.dim() < 2:
        raise ValueError(f"expected input of at least 2 dimensions (N, C, *), got shape {tuple(input.shape)}")
    check_stats_mode(stats_mode)
    channels = input.shape[1]
    if channels == 0:
        raise ValueError(f"expected input of at least 1 channel, got shape {tuple(input.shape)}")
    if num_features is not None and channels != num_features:
        raise ValueError(f"expected input of {num_features} channels (N, C, *), got shape {tuple(input.shape)}")
    for name, tensor in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if tensor is None:
            continue
        if tensor.shape != (channels,):
            raise ValueError(
                f"expected {name} of shape (C,) = ({channels},) for input of shape {tuple(input.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.dtype not in DTYPES:
            raise TypeError(f"expected {name} of one of the dtypes {DTYPES}, got {tensor.dtype}")
        if tensor.device != input.device:
            raise ValueError(f"expected {name} on the input's device {input.device}, got it on {tensor.device}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("expected running_mean and running_var both or neither, got one of them")
    count = num_batches_tracked
    if count is not None and (count.dtype, count.dim(), count.device) != (torch.int64, 0, input.device):
        raise TypeError(
            f"expected num_batches_tracked of shape () and dtype torch.int64 on the input's device {input.device}, got "
            f"shape {tuple(count.shape)}, {count.dtype}, on {count.device}"
        )
    for name, number in (("eps", eps), *(() if momentum is None else (("momentum", momentum),))):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"expected {name} to be a number, got {number!r}")
    if (training or running_mean is None) and not eps > 0:
        raise ValueError(f"expected a positive eps to take statistics with, got {eps!r}")
    if momentum is None and running_mean is not None and num_batches_tracked is None:
        raise ValueError("expected num_batches_tracked for momentum=None, the cumulative average, got None")
