"""All that is special about activation checkpointing: its second forward pass must leave no trace."""

from __future__ import annotations

import torch


def recomputing() -> bool:
    """Whether this forward pass runs inside a backward pass, as the one that :mod:`torch.utils.checkpoint` repeats.

    Such a pass needs the batch's statistics once more, so it communicates, but its step was counted the first time:
    the running statistics and ``num_batches_tracked`` stay as they are.

    In compiled code it is always False: there the compiler repeats operations, never an update of a buffer.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
