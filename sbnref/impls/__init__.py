"""The implementations by name, and the choice among them.

An implementation is anything with the four stage functions of :mod:`sbnref.impls.reference` as attributes: a module,
an object, a class with static methods. These attributes are optional:

- ``why_not(device)`` returns the reason, in words, why it cannot run on a device, or None. It may build something.
- ``why_not_yet(device)`` does the same but builds nothing.
- ``dtypes`` is a tuple of the dtypes that it supports; without it, all.
- ``gradients`` is the last stage together with the gradients of gamma and beta, as in :mod:`sbnref.impls.cuda`.
- ``dense`` copies an input whose strides the stages do not support.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from . import cpu, cuda, reference

if TYPE_CHECKING:
    from ..running import RunningStats

#: The names of the four functions, in order.
STAGES = ("forward_stats", "forward_apply", "backward_stats", "backward_apply")


class Implementation(Protocol):
    """The four stages. :mod:`sbnref.impls.reference` explains the arguments and their shapes."""

    def forward_stats(self, x: Tensor, weight: int, /) -> Tensor: ...

    def forward_apply(
        self,
        x: Tensor,
        total: Tensor,
        divisor: int | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        running: RunningStats | None,
        momentum: float | None,
        /,
    ) -> tuple[Tensor, Tensor]: ...

    def backward_stats(self, dy: Tensor, x: Tensor, saved: Tensor, /) -> Tensor: ...

    def backward_apply(
        self, dy: Tensor, x: Tensor, total: Tensor, saved: Tensor, gamma: Tensor | None, k: float, /
    ) -> Tensor: ...


_registry: dict[str, Implementation] = {"reference": reference, "cpu": cpu, "cuda": cuda}
_in_use: list[str] = []  # the names of the use_impl blocks we are in, the innermost last


def register_impl(name: str, impl: Implementation) -> None:
    """Make an implementation available as ``impl=name``.

    Args:
        name: a new name.
        impl: anything whose attributes include the four stage functions.

    Raises:
        ValueError: the name is taken.
        TypeError: a stage function is missing.
    """
    if name in _registry or name == "auto":
        raise ValueError(f"expected a new name, got {name!r}; the names {impl_names()} are taken")
    if missing := [stage for stage in STAGES if not callable(getattr(impl, stage, None))]:
        raise TypeError(f"expected an implementation with the functions {STAGES}, got {impl!r} without {missing}")
    _registry[name] = impl


def impl_names() -> tuple[str, ...]:
    """Return the names that ``impl=`` accepts besides ``'auto'``."""
    return tuple(_registry)


@contextmanager
def use_impl(name: str) -> Iterator[None]:
    """Make every layer use the implementation ``name`` within the ``with`` block, instead of its own ``impl``.

    It holds for the whole process, including layers in other threads.

    Raises:
        ValueError: ``name`` is unknown.
    """
    check_name(name)
    _in_use.append(name)
    try:
        yield
    finally:
        _in_use.pop()


def check_name(name: str) -> None:
    """Raise :class:`ValueError` unless ``name`` is ``'auto'`` or the name of an implementation."""
    if name != "auto" and name not in _registry:
        raise ValueError(f"expected impl to be one of {('auto', *_registry)}, got {name!r}")


def why_not(name: str, device: torch.device) -> str | None:
    """Return why the implementation ``name`` cannot run on ``device``, or None. Builds it if needed."""
    reason = getattr(_registry[name], "why_not", None)
    return reason(device) if reason is not None else None


def why_not_yet(name: str, device: torch.device) -> str | None:
    """Like ``why_not``, but never builds: an implementation that is not built yet counts as unavailable."""
    reason = getattr(_registry[name], "why_not_yet", None)
    return reason(device) if reason is not None else why_not(name, device)


def choose_impl(name: str | None, device: torch.device) -> Implementation:
    """Return the implementation for a call on ``device``.

    A ``use_impl`` block decides first, then ``name``, then the environment variable ``SBNREF_IMPL``, then ``'auto'``.
    ``'auto'`` is ``'cuda'`` for CUDA tensors, or the reference with one warning if ``'cuda'`` cannot run. For CPU
    tensors it is ``'cpu'`` if already built, or silently the reference.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the implementation cannot run on ``device``; the message names what is missing.
    """
    name = _in_use[-1] if _in_use else name or os.environ.get("SBNREF_IMPL") or "auto"
    check_name(name)
    if name == "auto":
        if device.type == "cpu" and why_not_yet("cpu", device) is None:
            return _registry["cpu"]
        if device.type != "cuda":
            return reference
        if (reason := why_not("cuda", device)) is None:
            return _registry["cuda"]
        _warn(f"sbnref uses its reference implementation on {device}: {reason}")
        return reference
    if (reason := why_not(name, device)) is not None:
        raise RuntimeError(f"impl={name!r} cannot run on {device}: {reason}")
    return _registry[name]


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


# As torch.compiler.assume_constant_result, without its slow import: torch.compile runs the function untraced.
_warn._dynamo_marked_constant = True  # type: ignore[attr-defined]
