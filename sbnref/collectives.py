"""Process groups, and the one collective the layer needs: a sum over the ranks, traceable and differentiable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .refusals import check_group, check_member

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    Group = ProcessGroup | DeviceMesh | None


def resolve(group: Group) -> ProcessGroup | None:
    """The process group to synchronize over, or None where this process is alone.

    Args:
        group: None (all processes, or this one alone when no process group is initialized), a ``ProcessGroup``, or a
            one-dimensional ``DeviceMesh``.

    Raises:
        ValueError: this process is not in the group, or the mesh has more than one dimension.
        TypeError: ``group`` is none of the above.
    """
    check_group(group)
    if group is None:
        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    else:
        check_member(group)
        if isinstance(group, dist.device_mesh.DeviceMesh):
            group = group.get_group()
    return group if group is not None and group.size() > 1 else None


def world_size(group: ProcessGroup | None) -> int:
    """The number of ranks that synchronize; 1 where :func:`resolve` gave None."""
    return 1 if group is None else group.size()


def all_reduce(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of ``tensor`` over the ranks of ``group``, as a new tensor, the same on every rank.

    Differentiable to any order (the derivative of a sum over ranks is a sum over ranks) and traceable by
    :func:`torch.compile`. With ``group=None`` it is the identity and communicates nothing.
    """
    return tensor if group is None else _AllReduce.apply(tensor, group.group_name)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group_name: str) -> Tensor:
        ctx.group_name = group_name
        total = torch.ops._c10d_functional.all_reduce(tensor.contiguous(), "sum", group_name)
        return torch.ops._c10d_functional.wait_tensor(total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grad, ctx.group_name), None
