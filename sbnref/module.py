"""The layer as a module: it holds parameters, buffers and options; the function does the work."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .functional import sync_batch_norm
from .impls import check_name
from .validation import check_group, check_stats_mode

if TYPE_CHECKING:
    from .collectives import Group


torch.fx.wrap("sync_batch_norm")  # a symbolic trace records one call, as for F.batch_norm


class SyncBatchNorm(_BatchNorm):
    r"""Batch normalization by the statistics of the batches of all ranks together.

    .. math::
        y = \gamma \, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mu = \frac{1}{D} \sum_r w_r \mu_r, \qquad v = \frac{1}{D} \sum_r w_r \left( v_r + (\mu_r - \mu)^2 \right)

    ================  =================================  ======================  =====================================
    ``stats_mode``    weight :math:`w_r`                 divisor :math:`D`       equals BatchNorm over all ranks when
    ================  =================================  ======================  =====================================
    ``'default'``     1, or 0 on an empty rank           world size              every rank has as many elements
    ``'N'``           batch size, or 0 on an empty rank  :math:`\sum_r w_r`      every rank has the same spatial size
    ``'exact'``       elements per channel               :math:`\sum_r w_r`      always
    ================  =================================  ======================  =====================================

    ``'default'`` and ``'N'`` are the modes of ``mmcv.ops.SyncBatchNorm``; ``'exact'`` computes as
    :class:`torch.nn.SyncBatchNorm` does. In training every rank of the group has to call the layer, even a rank with
    an empty batch. In eval mode the layer communicates nothing.

    Args:
        num_features: the number of channels, C.
        eps: added to the variance.
        momentum: the weight of a step in the running statistics; None for the cumulative average.
        affine: whether to learn a ``weight`` (ones at first) and a ``bias`` (zeros). Their gradients are averaged
            over the group.
        track_running_stats: whether to keep ``running_mean``, ``running_var`` and ``num_batches_tracked``. Without
            them eval mode uses the statistics of this rank's own batch.
        group: the ranks to synchronize: None (all of them, or this process alone when no process group is
            initialized), a ``ProcessGroup``, or a one-dimensional ``DeviceMesh``. The layer looks it up at each call,
            so you can build the layer before ``init_process_group``.
        stats_mode: ``'default'``, ``'N'`` or ``'exact'``.
        impl: ``'reference'``, ``'cpu'``, ``'cuda'``, ``'auto'``, a name given to :func:`sbnref.register_impl`, or None
            to let :func:`sbnref.use_impl` and the environment variable ``SBNREF_IMPL`` decide.
        device: the device of parameters and buffers.
        dtype: the dtype of parameters and buffers.
        bias: False for a ``weight`` without a ``bias``.

    Shape:
        Input and output (N, C, \*), N may be 0. The output keeps the input's dtype and memory format.

    Raises:
        ValueError: ``stats_mode`` or ``impl`` is unknown.
        TypeError: ``group`` is of the wrong kind.

    One process loses no precision to an offset, however large. Between ranks, statistics travel in float64, and the
    variance has a relative error of up to :math:`10^{-15} (\mu / \sigma)^2`. If float64 inputs have a large common
    offset, such as seconds since 1970, subtract it before the layer.

    The equations: Ioffe and Szegedy (2015); Chan, Golub and LeVeque (1983) for combining variances.

    Example:
        >>> layer = SyncBatchNorm(8, stats_mode="exact")
        >>> layer(torch.randn(4, 8, 5, 5)).shape
        torch.Size([4, 8, 5, 5])
    """

    disable_patch_batchnorm = True  # fairscale's checkpoint_wrapper: the layer recognizes a repeated forward pass
    reverts_to: type[_BatchNorm] | None = None  # the class for revert_sync_batchnorm, if known

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        group: Group = None,
        stats_mode: str = "default",
        *,
        impl: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bias: bool = True,
    ) -> None:
        check_stats_mode(stats_mode)
        if impl is not None:
            check_name(impl)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:  # torch's own layers accept bias from version 2.12 on
            self.register_parameter("bias", None)
        self.group = group
        self.stats_mode = stats_mode
        self.impl = impl

    def reset_parameters(self) -> None:
        """Reset the parameters to ones and zeros, and the running statistics."""
        self.reset_running_stats()
        for parameter, value in ((self.weight, 1), (self.bias, 0)):
            if parameter is not None:  # torch before 2.12 does not check
                nn.init.constant_(parameter, value)

    @property
    def group(self) -> Group:
        """The ranks to synchronize, as given."""
        return self._group.group

    @group.setter
    def group(self, group: Group) -> None:
        check_group(group)
        self._group = _GroupReference(group)

    def forward(self, input: Tensor) -> Tensor:
        r"""Normalize ``input``, (N, C, \*); raises as :func:`sbnref.functional.sync_batch_norm` does."""
        tracks = self.track_running_stats or not self.training
        return sync_batch_norm(
            input,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
            num_features=self.num_features,
            num_batches_tracked=self.num_batches_tracked if tracks else None,
            group=self.group,
            stats_mode=self.stats_mode,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """Return the constructor's arguments as text."""
        impl = f", impl={self.impl!r}" if self.impl else ""
        return f"{super().extra_repr()}, stats_mode={self.stats_mode!r}{impl}"


class _GroupReference:
    """Share the group between copies, and leave it out of pickles: a process group ends with its processes."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> _GroupReference:
        return self

    def __reduce__(self) -> tuple[type, tuple[None]]:
        if self.group is not None:
            warnings.warn(
                "a process group cannot be pickled: the SyncBatchNorm loaded from this pickle will have group=None; "
                "set layer.group again",
                stacklevel=2,
            )
        return _GroupReference, (None,)
