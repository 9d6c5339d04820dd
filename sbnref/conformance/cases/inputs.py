"""Inputs: for batches that differ or are empty, dtypes, shapes and layouts, one step equals the definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...functional import sync_batch_norm
from ...modes import STATS_MODES
from ..oracle import train_step
from .parts import CHANNELS, DTYPES, Case, check_step, close, random_inputs, random_layer


def cases() -> Iterator[Case]:
    """Families ``batches``, ``dtypes``, ``shapes``, ``layouts`` and ``classes``."""
    for world_size, stats_mode in itertools.product((1, 2, 3, 4), STATS_MODES):
        for kind, sizes in batch_sizes(world_size).items():
            name = f"batches: {kind}, {stats_mode}, {world_size} ranks"
            yield Case(name, world_size, partial(check_step, stats_mode, sizes))
    for stats_mode, (dtype, param_dtype) in itertools.product(STATS_MODES, DTYPES):
        check = partial(check_step, stats_mode, [3, 0, 5], dtype=dtype, param_dtype=param_dtype)
        yield Case(f"dtypes: {name_of(dtype)} input, {name_of(param_dtype)} parameters, {stats_mode}", 3, check)
    for stats_mode, (kind, spatial) in itertools.product(STATS_MODES, SPATIAL.items()):
        yield Case(f"shapes: {kind}, {stats_mode}", 2, partial(check_step, stats_mode, [2, 3], spatial=spatial))
    for layout in LAYOUTS:
        yield Case(f"layouts: {layout}", 2, partial(check_layout, layout))
    yield Case("classes: a subclass of Tensor", 2, check_subclass)


def batch_sizes(world_size: int) -> dict[str, list[int]]:
    """Return each rank's batch size, for every way in which batches differ."""
    kinds = {
        "equal": [3] * world_size,
        "ragged": [4, 1, 2, 3][:world_size],
        "some empty": [3, 0, 2, 0][:world_size],
        "all but one empty": [0] * (world_size - 1) + [5],
        "all empty": [0] * world_size,
    }
    return kinds if world_size > 1 else {kind: kinds[kind] for kind in ("equal", "all empty")}


SPATIAL: dict[str, list[tuple[int, ...]]] = {  # of rank 0 and rank 1
    "2 dimensions": [(), ()],
    "3 dimensions, lengths differ": [(7,), (4,)],
    "4 dimensions, sizes differ": [(3, 5), (6, 2)],
    "4 dimensions, one spatially empty": [(3, 5), (0, 4)],
    "5 dimensions, sizes differ": [(2, 3, 4), (1, 5, 3)],
    "6 dimensions": [(2, 1, 3, 2), (2, 1, 3, 2)],
}


def _strided(x: Tensor) -> Tensor:
    """Return the same values with a gap after every element."""
    return torch.stack([x, x], -1)[..., 0]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # each changes the strides of an (N, C, D, H, W) tensor
    "channels last": lambda x: x[:, :, 0].contiguous(memory_format=torch.channels_last),
    "channels last 3d": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "permuted": lambda x: x.permute(4, 1, 0, 3, 2),
    "batch innermost": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "strided": _strided,
    "every other channel": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "expanded": lambda x: x[:, :, :1, :1].expand(-1, -1, 3, 4, -1),
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


def name_of(dtype: torch.dtype) -> str:
    """Return 'float32' for torch.float32."""
    return str(dtype).removeprefix("torch.")


def check_layout(layout: str, impl: str, device: str) -> None:
    """Strides change nothing, and the output has the input's memory format; the upstream gradient has another one."""
    contiguous, _ = random_inputs([2, 3], [(2, 3, 4), (2, 3, 4)], torch.float32)
    xs = [LAYOUTS[layout](x) for x in contiguous]
    dys = [torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) for x in xs]
    want = train_step(xs, dys, torch.ones(CHANNELS), torch.zeros(CHANNELS), "exact")
    rank = dist.get_rank()
    x = LAYOUTS[layout](contiguous[rank].to(device))
    leaf = x.detach().requires_grad_()
    y = sync_batch_norm(leaf, None, None, training=True, stats_mode="exact", impl=impl)
    close("y", y, want.y[rank])
    for memory_format in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        if x.dim() == {torch.channels_last: 4, torch.channels_last_3d: 5}.get(memory_format, x.dim()):
            kept = not x.is_contiguous(memory_format=memory_format) or y.is_contiguous(memory_format=memory_format)
            assert kept, f"{memory_format} input gave an output with strides {y.stride()}"
    (dx,) = torch.autograd.grad(y, leaf, dys[rank].to(device), retain_graph=True)
    close("dx", dx, want.dx[rank])

    ones = [torch.ones(()).expand(x.shape) for x in xs]  # the upstream gradient of y.sum().backward()
    want = train_step(xs, ones, torch.ones(CHANNELS), torch.zeros(CHANNELS), "exact")
    (dx,) = torch.autograd.grad(y.sum(), leaf)
    close("dx of a sum", dx, want.dx[rank])


class _Labelled(torch.Tensor):
    """A batch with a label. Every operation passes the label on, and the batch cannot be sliced."""

    label: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("__getitem__", "chunk", "to"):
            raise ValueError(f"a batch with a label was given to {func.__name__}")
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, cls) and isinstance(args[0], cls):
            result.label = vars(args[0]).get("label", "")
        return result


def check_subclass(impl: str, device: str) -> None:
    """The layer computes on plain tensors; the output has the input's class and its attributes."""
    xs, _ = random_inputs([3, 0], [(4,)] * 2, torch.float32)
    x = xs[dist.get_rank()].to(device)
    given = x.as_subclass(_Labelled)
    given.label = "rank"
    for training in (True, False):
        layers = [random_layer(stats_mode="exact", impl=impl, device=device).train(training) for _ in range(2)]
        got, want = layers[0](given), layers[1](x)
        assert type(got) is _Labelled, type(got)
        assert got.label == "rank"
        close("y", got.as_subclass(Tensor), want)
        close("running_var", layers[0].running_var, layers[1].get_buffer("running_var"))
