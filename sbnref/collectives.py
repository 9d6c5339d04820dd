"""Process groups, and the one collective that the layer needs: a traceable, differentiable sum over the ranks."""

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

if dist.is_available():
    # Its functions take the world at the time of this import as a default argument. DistributedDataParallel imports it
    # too; after that import, destroy_process_group could not end the world's threads, and a thread that releases a
    # tensor while the interpreter shuts down aborts the process (PyTorch's issue 190489).
    import torch.distributed.nn.functional

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    Group = ProcessGroup | DeviceMesh | None


def resolve(group: Group) -> ProcessGroup | None:
    """Return the process group to synchronize over, or None if this process is alone.

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
    """Return the group of a mesh. The mesh finds it by name, and a newer group may have that name."""
    if torch.compiler.is_compiling():
        return mesh.get_group()
    group = getattr(mesh, "_sbnref_group", None) or mesh.get_group()
    check_registered(group)
    mesh._sbnref_group = group  # type: ignore[attr-defined]
    return group


# Groups for the layers alone, by the group of the same ranks that DistributedDataParallel uses.
_apart: weakref.WeakKeyDictionary[ProcessGroup, ProcessGroup] = weakref.WeakKeyDictionary()


def apart_from_ddp(group: ProcessGroup) -> ProcessGroup:
    """Return a group of the same ranks that ``DistributedDataParallel`` does not use, if sharing ``group`` is unsafe.

    With ``find_unused_parameters=True``, DDP reduces its buckets in an order that depends on the parts of the model
    that a rank used. The layer's collective then has another place among them on each rank, and ranks would sum a
    bucket with a payload. The first layer that is called in such a model creates the second group, and all layers use
    it from then on. Compiled code cannot create a group.
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
            "DistributedDataParallel(find_unused_parameters=True) and a SyncBatchNorm share a process group; from now "
            "on the layers use a separate group of the same ranks",
            stacklevel=2,
        )
    ranks, backend = dist.get_process_group_ranks(group), dist.get_backend_config(group)
    _apart[group] = dist.new_group(ranks, timeout_of(group), backend, use_local_synchronization=True)
    return _apart[group]


def world_size(group: ProcessGroup | None) -> int:
    """Return the number of ranks that synchronize, 1 for None."""
    return 1 if group is None else group.size()


def groups_of(ranks: int) -> ProcessGroup:
    """Divide the world into groups of ``ranks`` neighbouring ranks, with its timeout, and return this rank's group.

    Call it once on every rank of the world, with the same number, and pass the group to all layers that synchronize
    over it.

    Args:
        ranks: the number of ranks in a group.

    Raises:
        TypeError: ``ranks`` is not an integer.
        ValueError: the world cannot be divided into groups of that size.
        RuntimeError: no process group is initialized.
    """
    if isinstance(ranks, bool) or not isinstance(ranks, SupportsIndex):
        raise TypeError(f"expected the number of ranks in a group as an integer, got {ranks!r}")
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("expected an initialized process group, got none; call init_process_group before groups_of")
    world = dist.get_world_size()
    if ranks < 1 or world % ranks:
        divisors = [n for n in range(1, world + 1) if world % n == 0]
        raise ValueError(f"expected groups of one of {divisors} ranks in a world of {world}, got {ranks}")
    return dist.new_subgroups(group_size=int(ranks), timeout=timeout_of(dist.distributed_c10d._get_default_group()))[0]


def name_of(group: ProcessGroup) -> str:
    """Return the group's name, the same on all of its ranks; '' for a wrapper of another group."""
    try:
        return group.group_name
    except RuntimeError:
        return ""


def timeout_of(group: ProcessGroup) -> timedelta:
    """Return how long a collective of the group may take before its ranks raise."""
    return group._get_backend(group._device_types[0]).options._timeout


def all_reduce(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum ``tensor`` over the ranks of ``group``; return a new tensor, the same on every rank.

    It is differentiable to any order and in either mode, because the derivative of a sum over ranks is a sum over
    ranks, and :func:`torch.compile` can trace it. With ``group=None`` it is the identity and communicates nothing.
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
    """Sum in place and wait: no transform may copy the result of an unfinished collective."""
    if torch._C._functorch.is_legacy_batchedtensor(tensor):
        return _all_reduce_batch(tensor, group)
    dist.all_reduce(tensor, group=group)
    return tensor


def _all_reduce_batch(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Sum a batch of payloads within the older vmap, which ``is_grads_batched=True`` and ``vectorize=True`` use.

    That vmap loops over the batch where an operator has no rule of its own, with one collective for each payload.
    """
    level, batch = 64, tensor[None][:0]  # more levels than that vmap nests
    while not len(batch):  # at a level where the tensor has no batch, the new dimension has the size passed, 0
        level -= 1
        batch = torch._remove_batch_dim(tensor, level, 0, 0)
    _check_same_on_all(len(batch), tensor.device, group)
    return torch._add_batch_dim(_all_reduce_now(batch.contiguous(), group), 0, level)


def _check_same_on_all(batch_size: int, device: torch.device, group: ProcessGroup) -> None:
    """Raise on all ranks if they map over different numbers of payloads, which could not be summed."""
    sizes = torch.tensor([1, batch_size, batch_size**2], dtype=torch.int64, device=device)
    ranks, total, squares = _all_reduce_now(sizes, group).tolist()
    if ranks * squares != total * total:  # equality means that all sizes are equal
        raise ValueError(
            f"expected vmap of one size on every rank, got {batch_size} on this rank and {total / ranks:g} on "
            "average; for a Jacobian, give every rank an input and an output of one size"
        )


def transforming() -> bool:
    """Return whether this call is made within a transform of :mod:`torch.func`, or in forward mode."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


# As torch.compiler.assume_constant_result, without importing the compiler. Compiled code is guarded by both states.
transforming._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _traced(tensor: Tensor) -> bool:
    """Return whether a collective becomes an operation in a graph instead of running now."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)


def _registered_name(group: ProcessGroup) -> str:
    """Return the name by which compiled code finds the group, after checking that the group still owns it."""
    dist.group.WORLD  # noqa: B018  a guard of compiled code: a new world runs the check again
    check_registered(group)
    return group.group_name


# ---- an operator with an effect, for compilers ----
#
# torch.compile treats PyTorch's functional collectives as pure. It may merge two with equal payloads (an empty rank's
# payloads are all the same constant), move one that depends on no gradient from the backward pass into the forward
# pass, run one again where a backward pass needs its result, and reorder two independent ones. Each rank compiles by
# itself, sees other payloads, and decides otherwise: ranks then wait for collectives that others do not make. An
# operator with an ordered effect runs as often, and in the order, in which the program calls it. PyTorch merges on
# purpose (its issues 130918 and 146045), and 2.14.1 still does: the operator stays until PyTorch's own collectives
# have an effect.


def _all_reduce_by_name(tensor: Tensor, group_name: str) -> Tensor:
    return _all_reduce_now(tensor.clone(), dist.distributed_c10d._resolve_process_group(group_name))  # type: ignore[arg-type]


_LIBRARY = torch.library.Library("sbnref", "FRAGMENT")
_LIBRARY.define("all_reduce(Tensor payload, str group_name) -> Tensor")
_LIBRARY.impl("all_reduce", _all_reduce_by_name, "CompositeExplicitAutograd")
_LIBRARY._register_effectful_op("sbnref::all_reduce", torch._library.effects.EffectType.ORDERED)


@torch.library.register_fake("sbnref::all_reduce", lib=_LIBRARY)
def _(payload: Tensor, group_name: str) -> Tensor:
    _keep_inductors_order()
    # An operator with an effect cannot run again: take it out of a checkpoint that is being traced. PyTorch's own rule
    # for these operators exempts checkpoints, and fails on them.
    torch.fx.traceback.current_meta.pop("recompute", None)
    return torch.empty_like(payload)


torch.utils.checkpoint.SAC_IGNORED_OPS.add(torch.ops.sbnref.all_reduce.default)  # keeps a checkpoint from marking it


@functools.cache
def _keep_inductors_order() -> None:
    """Make inductor run the operator as one of its own collectives, which its scheduler keeps in the graph's order.

    Inductor loses the order of other operators with effects: it stores the order under the names of buffers and looks
    it up under the names of operations (pull request 189209 of PyTorch, open when this was written).
    """
    from torch._inductor.lowering import lowerings, register_lowering  # takes seconds: import it only to compile

    c10d = torch.ops._c10d_functional

    @register_lowering(torch.ops.sbnref.all_reduce.default, type_promotion_kind=None)
    def _(payload: Any, group_name: str) -> Any:
        return lowerings[c10d.wait_tensor.default](lowerings[c10d.all_reduce.default](payload, "sum", group_name))
