"""Validate the layer's arguments before anything is communicated or changed.

A message names the expected and the given. :class:`TypeError` is for a dtype, a layout or an object of the wrong
kind, :class:`ValueError` for a shape, a number, a name or a group.
"""

from __future__ import annotations

from numbers import Real

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from .modes import STATS_MODES

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PLAIN = (Tensor, Parameter)


def check_call(
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
    """Raise unless the arguments of :func:`sbnref.functional.sync_batch_norm` fit together."""
    check_dense("input", input)
    if input.dtype not in DTYPES:
        raise TypeError(f"expected input of one of the dtypes {DTYPES}, got {input.dtype}")
    if input.dim() < 2:
        raise ValueError(f"expected input of at least 2 dimensions (N, C, *), got shape {tuple(input.shape)}")
    check_stats_mode(stats_mode)
    channels, device = input.shape[1], input.device
    if channels == 0:
        raise ValueError(f"expected input of at least 1 channel, got shape {tuple(input.shape)}")
    if num_features is not None and channels != num_features:
        raise ValueError(f"expected input of {num_features} channels (N, C, *), got shape {tuple(input.shape)}")
    fitting = (channels,), device
    named = ("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)
    for name, tensor in named:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN:
            check_dense(name, tensor)
        if tensor.dtype not in DTYPES:
            raise TypeError(f"expected {name} of one of the dtypes {DTYPES}, got {tensor.dtype}")
        if (tensor.shape, tensor.device) != fitting:
            raise ValueError(
                f"expected {name} of shape (C,) = ({channels},) on the input's device {device} for input of shape "
                f"{tuple(input.shape)}, got {tuple(tensor.shape)} on {tensor.device}"
            )
    if (running_mean is None) != (running_var is None):
        raise ValueError("expected running_mean and running_var both or neither, got only one")
    count = num_batches_tracked
    if count is not None and (count.dtype, count.dim(), count.device) != (torch.int64, 0, device):
        raise TypeError(
            f"expected num_batches_tracked of shape () and dtype torch.int64 on the input's device {device}, got "
            f"shape {tuple(count.shape)}, {count.dtype}, on {count.device}"
        )
    if type(eps) is not float:
        _check_number("eps", eps)
    if momentum is not None and type(momentum) is not float:
        _check_number("momentum", momentum)
    if momentum is not None and momentum != momentum:
        raise ValueError(f"expected momentum to be a number or None, got {momentum!r}")
    if (training or running_mean is None) and not eps > 0:
        raise ValueError(f"expected a positive eps, got {eps!r}")
    if momentum is None and running_mean is not None and num_batches_tracked is None:
        raise ValueError("expected num_batches_tracked for momentum=None, the cumulative average, got None")


def _check_number(name: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, float, Real)):  # NumPy's are Real
        raise TypeError(f"expected {name} to be a number, got {number!r}")


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise :class:`TypeError` unless ``tensor`` is a Tensor that holds all of its numbers in this process."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected {name} to be a Tensor, got {type(tensor).__name__}")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise TypeError(f"expected a dense {name}, got {'a nested one' if tensor.is_nested else tensor.layout}")
    if type(tensor) is not Tensor and not torch.compiler.is_compiling():
        _check_class(name, tensor)


def _check_class(name: str, tensor: Tensor) -> None:
    """Raise :class:`TypeError` for a subclass of Tensor that does not hold its numbers itself."""
    if hasattr(tensor, "device_mesh"):
        remedy = f"pass this rank's part, {name}.to_local()"
        if name != "input":
            remedy = "leave this layer out of distribute_module, which turns its parameters and buffers into DTensors"
        raise TypeError(f"expected {name} to be a plain Tensor, got a DTensor; {remedy}")
    own = type(tensor).__torch_dispatch__
    if own is not Tensor.__torch_dispatch__ and not type(tensor).__module__.startswith("torch._subclasses"):
        raise TypeError(
            f"expected {name} to be a plain Tensor, got a {type(tensor).__name__}, which replaces PyTorch's operations "
            "by its own; pass the Tensor inside it"
        )


def check_mask(input: Tensor, mask: Tensor) -> None:
    r"""Raise unless ``mask`` has one bool for each position of ``input``, (N, C, \*)."""
    check_dense("input", input)
    check_dense("mask", mask)
    if input.dim() < 2:
        raise ValueError(f"expected input of at least 2 dimensions (N, C, *), got shape {tuple(input.shape)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"expected mask of torch.bool, True where a position is valid, got {mask.dtype}")
    positions = input.shape[:1] + input.shape[2:]
    if mask.shape != positions:
        raise ValueError(
            f"expected mask of shape (N, *) = {tuple(positions)} for input of shape {tuple(input.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    if mask.device != input.device:
        raise ValueError(f"expected mask on the input's device {input.device}, got it on {mask.device}")


def check_normalized(positions: Tensor, normalized: Tensor) -> None:  # (M, C)
    """Raise unless the layer's output for the valid positions can be put in their places."""
    if not isinstance(normalized, Tensor):
        raise TypeError(f"expected layer to return a Tensor, got {type(normalized).__name__}")
    if normalized.shape != positions.shape:
        raise ValueError(
            f"expected layer to keep the shape (M, C) = {tuple(positions.shape)} of the valid positions, "
            f"got {tuple(normalized.shape)}"
        )
    if (normalized.dtype, normalized.device) != (positions.dtype, positions.device):
        raise TypeError(
            f"expected layer to keep the valid positions' dtype and device, {positions.dtype} on {positions.device}, "
            f"got {normalized.dtype} on {normalized.device}"
        )


def check_spread(input: Tensor) -> None:  # (N, C, *)
    """Raise :class:`ValueError` for one value per channel: one value has no variance."""
    if input.numel() == input.shape[1]:
        raise ValueError(
            f"expected more than 1 value per channel to compute statistics, got input of shape {tuple(input.shape)} "
            "on the only rank"
        )


def check_stats_mode(stats_mode: str) -> None:
    """Raise :class:`ValueError` unless ``stats_mode`` is one of :data:`sbnref.modes.STATS_MODES`."""
    if stats_mode not in STATS_MODES:
        raise ValueError(f"expected stats_mode to be one of {STATS_MODES}, got {stats_mode!r}")


def check_group(group: object) -> None:
    """Raise :class:`TypeError` unless ``group`` is None, a process group or a mesh."""
    if group is None or group is dist.GroupMember.NON_GROUP_MEMBER:
        return
    is_group = isinstance(group, dist.ProcessGroup)  # apart: torch.compile does not recognize it in a tuple
    if not (is_group or isinstance(group, dist.device_mesh.DeviceMesh)):
        raise TypeError(
            f"expected group to be None, a ProcessGroup or a one-dimensional DeviceMesh, got {type(group).__name__}"
        )


def check_member(group: object) -> None:
    """Raise :class:`ValueError` unless this process is in ``group``, and a mesh has one dimension."""
    if isinstance(group, dist.device_mesh.DeviceMesh):
        if group.ndim != 1:
            raise ValueError(
                f"expected a one-dimensional DeviceMesh, got one of {group.ndim} dimensions {group.mesh_dim_names}; "
                "select the dimension to synchronize along with mesh['name']"
            )
        member = group.get_coordinate() is not None
    else:
        member = group is not dist.GroupMember.NON_GROUP_MEMBER
    if not member:
        raise ValueError(f"expected a group that this process is in, got a group without rank {dist.get_rank()}")


def check_registered(group: dist.ProcessGroup) -> None:
    """Raise :class:`ValueError` if ``group`` was destroyed: its name may belong to another group by now."""
    c10d = dist.distributed_c10d
    if group in c10d._world.pg_map:
        return
    try:
        name = group.group_name
    except RuntimeError:  # a wrapper of another group may have no name
        return
    try:
        registered = c10d._resolve_process_group(name)
    except RuntimeError:
        registered = None
    if registered is not group:
        raise ValueError("expected an initialized process group, got a destroyed one; set layer.group again")


check_registered._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_eager_trace() -> None:
    """Raise :class:`RuntimeError` if :func:`torch.jit.trace` or the older ONNX exporter records a training step."""
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            "expected a SyncBatchNorm in eval mode for tracing or export, got one in training mode; call eval() first"
        )


def check_join() -> None:
    """Raise :class:`RuntimeError` within DDP's ``Join``: a joined rank issues DDP's collectives but not the layer's."""
    if torch.compiler.is_compiling():
        return
    model = torch.nn.parallel.DistributedDataParallel._active_ddp_module
    if model is None or not model._join_config.enable or model._join_config.throw_on_early_termination:
        return  # with throw_on_early_termination no rank goes on after the first one ran out of batches
    raise RuntimeError(
        "expected no Join around a model with SyncBatchNorm: in a Join, a rank without batches issues DDP's "
        "collectives but not the layer's, and the other ranks wait for those. Leave Join out and give that rank empty "
        "batches, x[:0], until all ranks have run out; or end on all ranks with throw_on_early_termination=True."
    )


def check_running_unmapped(*tensors: Tensor | None) -> None:
    """Raise :class:`ValueError` if ``vmap`` maps over one of the tensors."""
    if any(map(_mapped, tensors)):
        raise ValueError(
            "expected no running statistics under vmap, got some: a batch of statistics cannot update one buffer; "
            "map the layer with track_running_stats=False or in eval mode"
        )


def check_mask_unmapped(mask: Tensor) -> None:
    """Raise :class:`ValueError` if ``vmap`` maps over ``mask``."""
    if _mapped(mask):
        raise ValueError(
            "expected one mask under vmap, got a batch of masks, which differ in their number of valid positions; "
            "pass in_dims=None for the mask, or loop over the masks"
        )


def _mapped(tensor: Tensor | None) -> bool:
    """Return whether ``vmap`` maps over ``tensor``."""
    functorch = torch._C._functorch
    while tensor is not None and functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False
