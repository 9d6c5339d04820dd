"""The implementations by name, and the choice among them.

An implementation is anything with the four stage functions of :mod:`sbnref.impls.reference` as attributes: a module,
an object, a class with static methods. Where it cannot run everywhere it also has ``why_not(device)``, which gives
the reason in words, or None; and where that takes long, because something is built, ``why_not_yet(device)``, which
builds nothing. One that does not take all dtypes has ``dtypes``, a tuple of those that it takes, for the tools that try
it on some. It may have ``gradients``, the last stage with those of gamma and beta, and ``dense``, which copies an input
that it cannot use as it is, as :mod:`sbnref.impls.cuda` does.
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

#: The names of the four functions, in their order.
STAGES = ("forward_stats", "forward_apply", "backward_stats", "backward_apply")


class Implementation(Protocol):
    """The four stages. Shapes and meanings stand at the arguments of :mod:`sbnref.impls.reference`."""

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
        name: a name that is not taken.
        impl: anything whose attributes include the four stage functions.

    Raises:
        ValueError: the name is taken.
        TypeError: a stage function is missing.
    """
    if name in _registry or name == "auto":
        raise ValueError(f"expected a new name, got {name!r}, which is taken; the names taken are {impl_names()}")
    if missing := [stage for stage in STAGES if not callable(getattr(impl, stage, None))]:
        raise TypeError(f"expected an implementation with the functions {STAGES}, got {impl!r} without {missing}")
    _registry[name] = impl


def impl_names() -> tuple[str, ...]:
    """The names that ``impl=`` accepts besides ``'auto'``."""
    return tuple(_registry)


@contextmanager
def use_impl(name: str) -> Iterator[None]:
    """Within the ``with`` block every layer uses the implementation ``name``, whatever it was built with.

    It holds for the whole process, for layers in other threads too.

    Raises:
        ValueError: there is no such implementation.
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
    """Why the implementation ``name`` cannot run on ``device``; None if it can. Builds it where it has to be built."""
    reason = getattr(_registry[name], "why_not", None)
    return reason(device) if reason is not None else None


def why_not_yet(name: str, device: torch.device) -> str | None:
    """The same, and nothing is built: that it has to be built is a reason."""
    reason = getattr(_registry[name], "why_not_yet", None)
    return reason(device) if reason is not None else why_not(name, device)


def choose_impl(name: str | None, device: torch.device) -> Implementation:
    """The implementation for a call on ``device``.

    A ``use_impl`` block decides first, then ``name``, then the environment variable ``SBNREF_IMPL``, then ``'auto'``:
    ``'cuda'`` for CUDA tensors where it can run, or else the reference, with one warning; ``'cpu'`` for CPU tensors
    where it has been built already, or else the reference, in silence.

    Raises:
        ValueError: there is no implementation of that name.
        RuntimeError: it cannot run on ``device``; the message says what is missing.
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


# torch.compiler.assume_constant_result, without the second that its import takes: torch.compile runs it, untraced.
_warn._dynamo_marked_constant = True  # type: ignore[attr-defined]
