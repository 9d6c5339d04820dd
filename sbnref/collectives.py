"""Process groups, and the one collective the layer needs: a sum over the ranks, traceable and differentiable."""

from __future__ import annotations

import functools
import warnings
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from .impls.environment import flag
from .validation import check_group, check_member, check_registered

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
            group = _group_of(group)
        elif not torch.compiler.is_compiling():  # compiled code checks where it takes the group's name
            check_registered(group)
    return group if group is not None and group.size() > 1 else None


def _group_of(mesh: DeviceMesh) -> ProcessGroup:
    """The group of a mesh, which looks it up by a name that another group may have got since."""
    if torch.compiler.is_compiling():
        return mesh.get_group()
    group = getattr(mesh, "_sbnref_group", None) or mesh.get_group()
    check_registered(group)
    mesh._sbnref_group = group  # type: ignore[attr-defined]
    return group


# Groups of the same ranks for the layers alone, by the group that they share with DistributedDataParallel.
_apart: weakref.WeakKeyDictionary[ProcessGroup, ProcessGroup] = weakref.WeakKeyDictionary()


def apart_from_ddp(group: ProcessGroup) -> ProcessGroup:
    """The group to synchronize over where ``DistributedDataParallel`` may make collectives of ``group`` in between.

    With ``find_unused_parameters=True`` its buckets are reduced in an order that depends on the parts of the model that
    a rank used, and so does the place of the layer's collective among them: ranks would sum a bucket with a payload.
    The first layer that is called in such a model makes another group of the same ranks, once, which every rank's
    layers use from then on. Compiled code cannot make one.
    """
    if torch.compiler.is_compiling():
        return group
    if (apart := _apart.get(group)) is not None:
        return apart
    model = torch.nn.parallel.DistributedDataParallel._active_ddp_module
    if model is None or not model.find_unused_parameters or model.process_group is not group:
        return group
    if flag("SBNREF_DEBUG"):
        warnings.warn(
            "DistributedDataParallel(find_unused_parameters=True) and a SyncBatchNorm share a process group; the "
            "layers use another one of the same ranks from now on",
            stacklevel=2,
        )
    ranks, backend = dist.get_process_group_ranks(group), dist.get_backend_config(group)
    _apart[group] = dist.new_group(ranks, timeout_of(group), backend, use_local_synchronization=True)
    return _apart[group]


def world_size(group: ProcessGroup | None) -> int:
    """The number of ranks that synchronize; 1 where :func:`resolve` gave None."""
    return 1 if group is None else group.size()


def groups_of(ranks: int) -> ProcessGroup:
    """Divide the world into groups of so many neighbouring ranks, with its timeout, and give this rank's own.

    Every rank of the world has to call it with the same number, once: give the group to all layers that are to
    synchronize over it.

    Args:
        ranks: how many in a group.

    Raises:
        TypeError: ``ranks`` is not an integer.
        ValueError: the world cannot be divided into such groups.
        RuntimeError: no process group is initialized.
    """
    if isinstance(ranks, bool) or not isinstance(ranks, SupportsIndex):
        raise TypeError(f"expected the number of ranks in a group as an integer, got {ranks!r}")
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("expected a process group to divide, got none: call init_process_group before groups_of")
    world = dist.get_world_size()
    if ranks < 1 or world % ranks:
        divisors = [n for n in range(1, world + 1) if world % n == 0]
        raise ValueError(f"expected groups of one of {divisors} ranks in a world of {world}, got {ranks}")
    return dist.new_subgroups(group_size=int(ranks), timeout=timeout_of(dist.distributed_c10d._get_default_group()))[0]


def name_of(group: ProcessGroup) -> str:
    """Return the group's name, the same on all of its ranks; '' for a group that stands before another one."""
    try:
        return group.group_name
    except RuntimeError:
        return ""


def timeout_of(group: ProcessGroup) -> timedelta:
    """How long a collective of the group may take before the ranks in it raise."""
    return group._get_backend(group._device_types[0]).options._timeout


def all_reduce(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum ``tensor`` over the ranks of ``group``; returns a new tensor, the same on every rank.

    Differentiable to any order and in either mode (the derivative of a sum over ranks is a sum over ranks), and
    traceable by :func:`torch.compile`. With ``group=None`` it is the identity and communicates nothing.
    """
    if group is None:
        return tensor
    if torch.is_grad_enabled() or transforming():
        return _AllReduce.apply(tensor, group)
    return _AllReduce.forward(tensor, group)


def sum_payloads(payload: Tensor, group: ProcessGroup | None) -> Tensor:
    """Like :func:`all_reduce`, but may reduce ``payload`` in place: the caller must not use it afterwards."""
    if group is None or torch.is_grad_enabled() or _traced(payload) or transforming():
        return all_reduce(payload, group)
    return _all_reduce_now(payload.contiguous(), group)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(tensor: Tensor, group: ProcessGroup) -> Tensor:
        if _traced(tensor):
            return torch.ops.sbnref.all_reduce(tensor.contiguous(), _registered_name(group))
        return _all_reduce_now(tensor.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ProcessGroup], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grad, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _AllReduce.apply(tangent, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], tensor: Tensor, group: ProcessGroup) -> tuple[Tensor, int]:
        _check_same_on_all(info.batch_size, tensor.device, group)
        return _AllReduce.apply(tensor, group), in_dims[0]


def _all_reduce_now(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Sum in place and wait: between the start of a collective and its end no transform may copy the result."""
    if torch._C._functorch.is_legacy_batchedtensor(tensor):
        return _all_reduce_batch(tensor, group)
    dist.all_reduce(tensor, group=group)
    return tensor


def _all_reduce_batch(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Sum a batch of payloads within the older vmap, that of ``is_grads_batched=True`` and ``vectorize=True``.

    Its rule for an operator without one of its own is a loop: it would make a collective for each payload.
    """
    level, batch = 64, tensor[None][:0]  # more levels than that vmap nests
    while not len(batch):  # a tensor that is not batched at a level gets a dimension of the size that is asked for
        level -= 1
        batch = torch._remove_batch_dim(tensor, level, 0, 0)
    _check_same_on_all(len(batch), tensor.device, group)
    return torch._add_batch_dim(_all_reduce_now(batch.contiguous(), group), 0, level)


def _check_same_on_all(batch_size: int, device: torch.device, group: ProcessGroup) -> None:
    """Raise on all ranks alike where they map over different numbers of payloads, which could not be summed."""
    sizes = torch.tensor([1, batch_size, batch_size**2], dtype=torch.int64, device=device)
    ranks, total, squares = _all_reduce_now(sizes, group).tolist()
    if ranks * squares != total * total:  # they are equal only where all are the same
        raise ValueError(
            f"expected vmap over as many on every rank, got {batch_size} on this one and {total / ranks:g} on the "
            "average; a Jacobian maps over as many as the input or the output has numbers"
        )


def transforming() -> bool:
    """Whether this call is made within a transform of :mod:`torch.func`, or in forward mode."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


# What torch.compiler.assume_constant_result does, which would import the compiler. Compiled code is guarded by both.
transforming._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _traced(tensor: Tensor) -> bool:
    """Whether a collective is to be an operation in a graph, or of a tensor without numbers, rather than made now."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)


def _registered_name(group: ProcessGroup) -> str:
    """The name by which compiled code finds the group; it would find another one where the group was destroyed."""
    dist.group.WORLD  # noqa: B018  compiled code is guarded by the world that it reads: a new one is checked again
    check_registered(group)
    return group.group_name


# ---- what a compiler sees: an operator with an effect ----
#
# PyTorch's functional collectives are pure to torch.compile, which may therefore merge two that are given the same
# payload (an empty rank's payloads are all the same constant), move one that depends on no gradient from the backward
# pass into the forward pass, run one again where a backward pass needs its result, and reorder two that do not depend
# on each other. Each rank compiles by itself, sees other payloads, and decides otherwise: ranks then wait for
# collectives that others do not make. An operator with an ordered effect is run as often, and in the order, in which
# the program calls it. PyTorch means to merge (its issues 130918 and 146045), and 2.14.1 still does: this stays needed
# until PyTorch gives its own collectives such an effect.


def _all_reduce_by_name(tensor: Tensor, group_name: str) -> Tensor:
    return _all_reduce_now(tensor.clone(), dist.distributed_c10d._resolve_process_group(group_name))  # type: ignore[arg-type]


_LIBRARY = torch.library.Library("sbnref", "FRAGMENT")
_LIBRARY.define("all_reduce(Tensor payload, str group_name) -> Tensor")
_LIBRARY.impl("all_reduce", _all_reduce_by_name, "CompositeExplicitAutograd")
_LIBRARY._register_effectful_op("sbnref::all_reduce", torch._library.effects.EffectType.ORDERED)


@torch.library.register_fake("sbnref::all_reduce", lib=_LIBRARY)
def _(payload: Tensor, group_name: str) -> Tensor:
    _keep_inductors_order()
    # What has an effect cannot be run again: take it out of the checkpoint that is being traced, if one is. PyTorch's
    # own rule for such operators exempts checkpoints, and fails on them.
    torch.fx.traceback.current_meta.pop("recompute", None)
    return torch.empty_like(payload)


torch.utils.checkpoint.SAC_IGNORED_OPS.add(torch.ops.sbnref.all_reduce.default)  # a checkpoint does not mark it anew


@functools.cache
def _keep_inductors_order() -> None:
    """Have inductor run the operator as one of its own collectives, which its scheduler keeps in the graph's order.

    Of operators with effects in general it loses the order: it notes which comes first under the names of buffers and
    looks it up under those of operations (pull request 189209 of PyTorch, open when this was written).
    """
    from torch._inductor.lowering import lowerings, register_lowering  # takes seconds: not before something is compiled

    c10d = torch.ops._c10d_functional

    @register_lowering(torch.ops.sbnref.all_reduce.default, type_promotion_kind=None)
    def _(payload: Any, group_name: str) -> Any:
        return lowerings[c10d.wait_tensor.default](lowerings[c10d.all_reduce.default](payload, "sum", group_name))
