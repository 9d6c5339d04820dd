"""Groups: ranks synchronize with the ranks of their group and no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ...collectives import groups_of, timeout_of
from .parts import Case, compare_step, random_inputs, random_layer
from .validation import expect_error


def cases() -> Iterator[Case]:
    """Family ``groups``."""
    yield Case("groups: a subgroup of the world", 4, check_subgroup)
    yield Case("groups: the world in pairs", 4, check_groups_of)
    yield Case("groups: a wrapper of another group", 2, check_wrapped_group)
    yield Case("groups: device meshes, one rank of a subgroup empty", 4, check_device_mesh)


def check_subgroup(impl: str, device: str) -> None:
    """Ranks of a subgroup synchronize among themselves, while the others do something else."""
    evens, odd = dist.new_group([0, 2]), dist.new_group([3])
    rank = dist.get_rank()
    xs, dys = random_inputs([2, 4, 3, 2], [(4,)] * 4, torch.float32)
    if rank in (0, 2):
        layer = random_layer(group=evens, stats_mode="default", impl=impl, device=device)
        compare_step(layer, xs[::2], dys[::2], rank // 2)
    elif rank == 3:
        layer = random_layer(group=odd, stats_mode="N", impl=impl, device=device)
        compare_step(layer, xs[3:], dys[3:], 0)
    else:
        for group in (evens, odd):
            layer = random_layer(group=group, impl=impl, device=device)
            with expect_error(ValueError, "a group without rank 1"):
                layer(xs[rank].to(device))


def check_groups_of(impl: str, device: str) -> None:
    """Neighbours synchronize in groups of one size; a size that does not divide the world raises on every rank."""
    rank = dist.get_rank()
    xs, dys = random_inputs([2, 4, 0, 3], [(4,)] * 4, torch.float32)
    pair = slice(0, 2) if rank < 2 else slice(2, 4)
    layer = random_layer(group=groups_of(2), stats_mode="N", impl=impl, device=device)
    compare_step(layer, xs[pair], dys[pair], rank % 2)
    fours = groups_of(4)
    assert timeout_of(fours) == timeout_of(dist.distributed_c10d._get_default_group())
    layer = random_layer(group=fours, stats_mode="N", impl=impl, device=device)
    compare_step(layer, xs, dys, rank)
    for ranks in (3, 0, 8, -2):
        with expect_error(ValueError, f"expected groups of one of [1, 2, 4] ranks in a world of 4, got {ranks}"):
            groups_of(ranks)
    with expect_error(TypeError, "as an integer, got 2.0"):
        groups_of(2.0)  # type: ignore[arg-type]


class _ForwardingGroup(dist.ProcessGroup):
    """A nameless group that forwards its collectives, as fault-tolerant groups do."""

    def __init__(self, inner: dist.ProcessGroup) -> None:
        super().__init__(inner.rank(), inner.size())  # type: ignore[call-arg]
        self.inner = inner

    def allreduce(self, *args: Any) -> Any:
        return self.inner.allreduce(*args)

    def size(self) -> int:
        return self.inner.size()


def check_wrapped_group(impl: str, device: str) -> None:
    """A collective goes through the object that the layer was given."""
    xs, dys = random_inputs([3, 0], [(4,)] * 2, torch.float32)
    assert dist.group.WORLD is not None
    group = _ForwardingGroup(dist.group.WORLD)
    compare_step(random_layer(group=group, stats_mode="N", impl=impl, device=device), xs, dys, dist.get_rank())


def check_device_mesh(impl: str, device: str) -> None:
    """A mesh of one dimension is a group; a mesh of two raises until one dimension is selected."""
    rank = dist.get_rank()
    xs, dys = random_inputs([2, 4, 0, 3], [(4,)] * 4, torch.float32)
    mesh_device = "cpu" if dist.get_backend() == "gloo" else torch.device(device).type
    layer = random_layer(group=init_device_mesh(mesh_device, (4,)), stats_mode="N", impl=impl, device=device)
    compare_step(layer, xs, dys, rank)

    mesh = init_device_mesh(mesh_device, (2, 2), mesh_dim_names=("replica", "batch"))
    row = slice(0, 2) if rank < 2 else slice(2, 4)
    layer = random_layer(group=mesh["batch"], stats_mode="exact", impl=impl, device=device)
    compare_step(layer, xs[row], dys[row], rank % 2)
    layer = random_layer(group=mesh, impl=impl, device=device)
    with expect_error(ValueError, "one-dimensional DeviceMesh, got one of 2 dimensions"):
        layer(xs[rank].to(device))

    layer = random_layer(group=DeviceMesh(mesh_device, [0, 1, 2]), stats_mode="N", impl=impl, device=device)
    if rank == 3:
        with expect_error(ValueError, "a group without rank 3"):
            layer(xs[rank].to(device))
    else:
        compare_step(layer, xs[:3], dys[:3], rank)
