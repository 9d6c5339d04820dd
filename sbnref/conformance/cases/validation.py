"""Validation: bad input raises an error that names it, before anything is communicated or changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ...functional import sync_batch_norm
from ...module import SyncBatchNorm
from ..watch import Watch
from .parts import CHANNELS, Case, random_layer


def cases() -> Iterator[Case]:
    """Family ``validation``."""
    yield Case("validation: before anything is communicated or changed", 2, check_validation)
    yield Case("validation: one value per channel in a group of one", 1, check_single_value)


class expect_error:
    """Pass if the block raises ``error`` with ``text`` in its message, after ``collectives`` collectives."""

    def __init__(self, error: type[Exception], text: str, collectives: int = 0) -> None:
        self.error, self.text, self.collectives, self.watch = error, text, collectives, Watch()

    def __enter__(self) -> None:
        self.watch.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        self.watch.__exit__(kind, error, trace)
        assert kind is not None, f"expected a {self.error.__name__} with {self.text!r}, got no error"
        assert isinstance(error, self.error), f"expected a {self.error.__name__}, got {error!r}"
        assert self.text in str(error), f"expected {self.text!r} in the message, got {error}"
        assert len(self.watch.collectives) == self.collectives
        return True


def check_validation(impl: str, device: str) -> None:
    """Bad input raises an error that names it, before anything is communicated or changed."""
    layer = random_layer(impl=impl, device=device)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(2, CHANNELS, 3, device=device)
    bad_inputs = [
        (ValueError, "at least 2 dimensions (N, C, *), got shape (5,)", x[0, :, 0]),
        (ValueError, "input of 5 channels (N, C, *), got shape (2, 4, 3)", x[:, :4]),
        (ValueError, "at least 1 channel", x[:, :0]),
        (TypeError, "torch.int64", x.long()),
        (TypeError, "torch.complex64", x.to(torch.complex64)),
        (TypeError, "to be a Tensor, got list", x.tolist()),
        (TypeError, "a dense input, got torch.sparse_coo", x.to_sparse()),
    ]
    mesh = DeviceMesh(x.device.type, list(range(dist.get_world_size())))
    bad_inputs.append((TypeError, "got a DTensor", DTensor.from_local(x, mesh, [Shard(0)])))
    for error, text, bad in bad_inputs:
        with expect_error(error, text):
            layer(bad)
    modes, bad_impl = "('default', 'N', 'exact'), got 'n'", {"impl": "gpu"}
    bad_choices: list[tuple[dict[str, Any], str]] = [({"stats_mode": "n"}, modes), (bad_impl, "got 'gpu'")]
    for choice, text in bad_choices:
        with expect_error(ValueError, text):
            SyncBatchNorm(CHANNELS, **choice)
        with expect_error(ValueError, text):
            sync_batch_norm(x, None, None, training=True, **choice)
    mean, var = torch.zeros(CHANNELS, device=device), torch.ones(CHANNELS, device=device)
    bad_arguments: list[tuple[dict[str, Any], str]] = [
        (dict(running_var=None), "running_mean and running_var both or neither"),
        (dict(running_mean=mean[:3]), "running_mean of shape (C,) = (5,)"),
        (dict(momentum=None), "num_batches_tracked"),
        (dict(eps=0), "a positive eps, got 0"),
        (dict(momentum=float("nan")), "momentum to be a number or None, got nan"),
        (dict(bias=mean.to("meta")), f"the input's device {x.device} for input of shape (2, 5, 3), got (5,) on meta"),
    ]
    for arguments, text in bad_arguments:
        statistics = dict(running_mean=mean, running_var=var)
        with expect_error(ValueError, text):
            sync_batch_norm(x, training=True, impl=impl, **(statistics | arguments))
    wrong_types: list[tuple[dict[str, Any], str]] = [
        (dict(eps="exact"), "eps to be a number, got 'exact'"),
        (dict(momentum=True), "momentum to be a number, got True"),
        (dict(num_batches_tracked=torch.zeros(1, device=device)), "dtype torch.int64"),
        (dict(num_batches_tracked=torch.tensor(0, device="meta")), "on meta"),
    ]
    for arguments, text in wrong_types:
        with expect_error(TypeError, text):
            sync_batch_norm(x, mean, var, training=True, impl=impl, **arguments)
    with expect_error(TypeError, "weight of one of the dtypes"):
        sync_batch_norm(x, mean, var, mean.long(), mean, training=True, impl=impl)
    with expect_error(TypeError, "ProcessGroup or a one-dimensional DeviceMesh, got list"):
        random_layer(group=[0, 1], impl=impl, device=device)
    with expect_error(TypeError, "ProcessGroup or a one-dimensional DeviceMesh, got list"):
        sync_batch_norm(x, None, None, training=True, impl=impl, group=[0, 1])  # type: ignore[arg-type]
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed"


def check_single_value(impl: str, device: str) -> None:
    """One value per channel has no variance, unless other ranks have more values."""
    layer = random_layer(impl=impl, device=device)
    with expect_error(ValueError, "more than 1 value per channel"):
        layer(torch.randn(1, CHANNELS, device=device))
    assert layer.num_batches_tracked == 0
