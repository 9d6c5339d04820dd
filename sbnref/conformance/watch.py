"""Record the collectives and the host syncs of an implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero"}


class Watch(TorchDispatchMode):
    """Record, while it is entered, every collective and every operation with a host sync.

    Attributes:
        collectives: (name, number of elements, dtype) of each, in order; the in-place form has the same name.
        host_reads: the names of the operations with a host sync.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[tuple[str, int, torch.dtype]] = []
        self.host_reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the operation, then run it."""
        namespace, name = func._schema.name.split("::")
        if namespace in ("_c10d_functional", "c10d") and name != "wait_tensor":
            tensor = args[0]
            while isinstance(tensor, (list, tuple)):
                tensor = tensor[0]
            name = name.removesuffix("_").replace("allreduce", "all_reduce")  # the same by another interface
            self.collectives.append((name, tensor.numel(), tensor.dtype))
        if func._schema.name in HOST_READS:
            self.host_reads.append(func._schema.name)
        return func(*args, **(kwargs or {}))
