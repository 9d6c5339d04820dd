"""A call whose every access is watched: what the simulation refuses, at which lines, and who wrote an element last."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .kernels import Call, Kernels, library, report
from .recording import sites_of

# The bits of a NaN that no arithmetic gives, by the bytes of an element: of results before they are written.
UNWRITTEN = {4: (torch.int32, 0x7FC05EED), 8: (torch.int64, 0x7FF800005EED5EED)}


@dataclass(frozen=True)
class Refusal:
    """What kernels did that CUDA does not allow.

    Attributes:
        what: in a sentence that names kernel, block and thread.
        frames: int64, how the kernels came there, and to the access that it collided with; for :func:`lines`.
    """

    what: str
    frames: Tensor


def watch(call: Call, *functions: str, written: Collection[str]) -> Refusal | None:
    """Run a call's kernels on CPU tensors, and watch what they do.

    Args:
        call: of what.
        functions: of the file, to run only these.
        written: the names of the arrays that have been written before; what else is read has to be written first.

    Returns:
        What was refused, where the kernels ended; None where all is legal.
    """
    try:
        call.launch(*functions, written=written)
    except RuntimeError as error:
        fault = report(library(call.kernels))["fault"] or {"at": [], "other": []}
        return Refusal(str(error), flat(fault["at"], fault["other"]))
    if (left := call.tickets.nonzero()).numel():
        first = int(left[0])
        what = f"p.tickets[{first}] is {int(call.tickets[first])} in the end; expected zero, as before"
        return Refusal(what, last_write(call, "tickets", first))
    return None


def last_write(call: Call, name: str, element: int) -> Tensor:
    """How the kernels of a call that was just watched came to write an element of an array last, for :func:`lines`.

    Args:
        call: which.
        name: of the array.
        element: of it, in the order of memory.
    """
    return flat(call.last_write(name, element))


def flat(*sites: list[int]) -> Tensor:
    """Sites one behind the other, a 0 behind each."""
    return torch.tensor([address for site in sites for address in (*site, 0)], dtype=torch.int64)


def lines(kernels: Kernels, frames: list[int]) -> tuple[int | None, int | None]:
    """The line of a file in which something happened, and the one in which what it collides with did.

    Args:
        kernels: of the file; ``built`` is given.
        frames: the addresses of two sites, a 0 behind each.
    """
    assert kernels.built is not None
    sites: list[list[int]] = [[]]
    for address in frames:
        if address:
            sites[-1].append(address)
        else:
            sites.append([])
    found = [
        next((line for path, line in site if Path(path) == kernels.file), None)
        for site in sites_of(kernels.built, sites)
    ]
    line, other, *_ = [*found, None, None]
    return line, other


def mark_unwritten(tensor: Tensor) -> Tensor:
    """Fill a tensor with the bit pattern of unwritten memory, and return it."""
    bits, pattern = UNWRITTEN[tensor.itemsize]
    tensor.view(bits).fill_(pattern)
    return tensor


def unwritten(tensor: Tensor) -> Tensor:
    """Where a tensor is as :func:`mark_unwritten` left it: bool, of its shape."""
    bits, pattern = UNWRITTEN[tensor.itemsize]
    return tensor.view(bits) == pattern
