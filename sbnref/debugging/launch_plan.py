"""The launch plan of the CUDA kernels for a tensor, as data and as a sentence."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..impls import cuda

LAYOUTS = ("channels-first", "short runs", "channels-last")  # in the order of csrc/plan.h


def launch_plan(x: Tensor, *, backward: bool = False, multiprocessors: int = 0) -> dict[str, Any]:
    """Return how the kernels divide the work on a dense tensor.

    Args:
        x: (N, C, \\*), only its shape, strides and dtype matter.
        backward: True for the backward stages, which read two tensors.
        multiprocessors: the size of the GPU to plan for; 0 for the GPU at hand or simulated.

    Returns:
        ``layout`` (``'channels-first'``, ``'short runs'`` or ``'channels-last'``, see ``csrc/plan.h``), ``inner``
        (elements of a channel side by side), ``edges`` (those of them read one by one), ``grid`` (blocks), ``block``
        (threads), ``vector`` (elements per access), ``lanes`` (threads side by side along a row), ``rows`` (read by a
        block at once), ``tile_channels`` (channels per block), ``tiles``, ``splits`` (blocks that share a tile).

    Raises:
        ValueError: the tensor has no channels, or no plan fits it.
        BuildError: the kernels can be neither found nor built.
    """
    if x.dim() < 2 or x.shape[1] == 0:
        raise ValueError(f"expected a tensor (N, C, *) with at least one channel, got shape {tuple(x.shape)}")
    channels = x.shape[1]
    inner = x.numel() if channels == 1 else x.stride(1)
    outer = x.numel() // (channels * inner) if x.numel() else 0
    plan = cuda.operators().launch_plan(
        outer, channels, inner if outer else 1, x.element_size(), backward, multiprocessors
    )
    if not plan:
        raise ValueError(f"launch_plan: {cuda.operators().failure()}")
    layout, *numbers = plan
    names = ("inner", "grid", "block", "vector", "lanes", "rows", "edges", "tile_channels", "tiles", "splits")
    return {"layout": LAYOUTS[layout], **dict(zip(names, numbers, strict=True))}


def plan_in_words(plan: dict[str, Any]) -> str:
    """Return a launch plan as a sentence."""
    elements = f"{plan['vector']} element{'s' if plan['vector'] > 1 else ''} at a time"
    if plan["layout"] == "channels-first":
        work = f"each works on one channel and reads it {elements}"
        if plan["edges"]:
            work += f", except {plan['edges']} of the {plan['inner']} contiguous ones, at the ends, one by one"
    else:
        work = (
            f"each works on {plan['tile_channels']} neighbouring channels: {plan['lanes']} threads read a row of them "
            f"side by side, {elements}, and {plan['rows']} row{'s are' if plan['rows'] > 1 else ' is'} read at once"
        )
    if plan["splits"] > 1:
        what = "a channel" if plan["tile_channels"] == 1 else "these channels"
        work += f"; {plan['splits']} blocks share {what}, and the last to finish adds up their partial sums"
    blocks = f"{plan['grid']} block{'s' if plan['grid'] > 1 else ''}"
    return f"{blocks} of {plan['block']} threads; {work}."
