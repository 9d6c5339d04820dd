"""Loaders of unequal length: a rank that has run out continues with empty batches until all have run out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from numbers import Number
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from ..collectives import resolve
from ..validation import check_dense

if TYPE_CHECKING:
    from ..collectives import Group

Batch = TypeVar("Batch")
WHOLE = (Tensor, Number, str, bytes, type(None))  # types allowed in a batch; NumPy's numbers are Numbers
OUT: Any = object()  # stands for the batch of a rank that has run out


def until_all_done(loader: Iterable[Batch], like: Batch | None = None, *, group: Group = None) -> Iterator[Batch]:
    """Iterate over ``loader`` until every rank has come to the end of its own loader.

    A rank that has run out gets empty batches, and so takes part in the collectives of the other ranks' steps. Each
    step costs one all-reduce of three integers, with a host sync. In a single process, it just iterates over
    ``loader``.

    Args:
        loader: this rank's batches: tensors with the batch in dimension 0, or tuples, lists and dicts of them, nested.
            An empty batch is the rank's last batch with 0 samples in every tensor; tensors without a dimension and
            other values stay as they were.
        like: a batch of any size, to make empty ones of on a rank that never had one.
        group: the ranks that iterate together, as in :class:`sbnref.SyncBatchNorm`.

    Raises:
        ValueError: a rank has no batch at all and no ``like`` while others have batches; on all ranks.
        TypeError: no tensor in a batch has a dimension, a tensor is not dense, or a value is neither a tensor nor a
            number, text or None.
        RuntimeError: on the other ranks, if a loader raised or a batch was invalid; the loop ends on all ranks.

    A ``break`` or an exception in the loop's body ends the loop on one rank only. The other ranks wait in their next
    collective until the group's timeout, so leave the loop on all ranks in the same step.
    """
    process_group = resolve(group)
    if process_group is None:
        yield from loader
        return
    on_cpu = torch.device("cpu") in process_group._device_types
    device = torch.device("cpu") if on_cpu else process_group._device_types[0]
    empty: Any = OUT
    batches = chain(loader, repeat(OUT))
    while True:
        batch, error = OUT, None
        try:
            if empty is OUT and like is not None:
                empty = _empty(like)
            batch = next(batches)
            if batch is not OUT:
                empty = _empty(batch)
        except Exception as raised:  # first report it to the other ranks, which would wait
            error = raised
        counts = torch.tensor([batch is not OUT, empty is OUT, error is not None], dtype=torch.int64, device=device)
        dist.all_reduce(counts, group=process_group)
        with_batch, without_any, failed = counts.tolist()
        if error is not None:
            raise error
        if failed > 0:
            raise RuntimeError(
                f"expected a batch or the end from every rank's loader, got an error on {failed} of "
                f"{process_group.size()} ranks; see its traceback there. The loop ends on all ranks."
            )
        if with_batch == 0:
            return
        if without_any > 0:
            raise ValueError(
                f"expected a batch or `like` on every rank, got neither on {without_any} of {process_group.size()} "
                "ranks; pass `like`, any batch to make empty ones from"
            )
        yield _empty(empty) if batch is OUT else batch  # a new one, which the loop may change


def _empty(batch: Batch) -> Batch:
    """Return the batch without samples. New tensors, because a slice would keep the samples in memory."""
    leaves = tree_leaves(batch, is_leaf=lambda part: isinstance(part, PackedSequence))
    if any(isinstance(leaf, PackedSequence) for leaf in leaves):
        raise TypeError(
            "expected a batch that can be empty, got one with a PackedSequence; pad the sequences instead, and "
            "normalize them with sbnref.functional.masked"
        )
    if others := sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, WHOLE)}):
        raise TypeError(
            "expected a batch of tensors, numbers, text and None, in tuples, lists and dicts, got one with "
            f"{', '.join(others)}, which may hold samples; convert them to tensors in the loader"
        )
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for tensor in tensors:
        check_dense("batch", tensor)
    if not any(tensor.dim() for tensor in tensors):
        what = "tensors without dimensions" if tensors else f"a {type(batch).__name__} without tensors"
        raise TypeError(f"expected a batch with samples in dimension 0 of its tensors, got {what}")
    return tree_map(lambda x: x.new_empty((0, *x.shape[1:])) if isinstance(x, Tensor) and x.dim() else x, batch)
