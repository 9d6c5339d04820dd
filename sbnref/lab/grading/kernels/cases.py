"""Inputs for a task's function, drawn so that hypothesis can shrink them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies
from torch import Tensor

from ...tasks import Task
from ..report import in_digits

FEW = 16  # elements that fit in a report
SIZES = (1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 64, 100, 257)


@dataclass(frozen=True)
class Case:
    """One input: the arguments, the kind of their values, and the order of threads and blocks."""

    given: dict[str, Any]
    values: str
    order: str

    @property
    def is_small(self) -> bool:
        """Whether a report can show it."""
        return all(v.numel() <= FEW for v in self.given.values() if isinstance(v, Tensor))

    def __str__(self) -> str:
        words = []
        for name, value in self.given.items():
            if not isinstance(value, Tensor):
                words.append(f"{name} = {value}")
            elif value.numel() <= FEW:
                words.append(f"{name} = {in_digits(value.tolist())}")
            else:
                words.append(f"{name} of shape {tuple(value.shape)}, values: {self.values}")
        turns = "" if self.order == "ascending" else f", threads and blocks in the order {self.order}"
        return ", ".join(words) + turns


class _Drawn:
    """Draw inputs with hypothesis, the simplest first."""

    def __init__(self, draw: Callable[..., Any], seed: int) -> None:
        self._draw = draw
        self.values = draw(strategies.sampled_from(["whole numbers", "normal", "large mean"]))
        self._generator = torch.Generator().manual_seed(seed + draw(strategies.integers(0, 3)))

    def size(self, *sizes: int) -> int:
        return int(self._draw(strategies.sampled_from(sizes or SIZES)))

    def array(self, *shape: int) -> Tensor:
        if self.values == "whole numbers":
            return torch.randint(-4, 5, shape, generator=self._generator).double()
        x = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return x + (1000 if self.values == "large mean" else 0)


@strategies.composite
def cases(draw: Callable[..., Any], task: Task, seed: int) -> Case:
    """Draw cases, the simplest first. Their numbers follow from ``seed``."""
    drawn = _Drawn(draw, 4 * seed)
    given = task.given(drawn)
    return Case(given, drawn.values, draw(strategies.sampled_from(["descending", "random:1", "random:2"])))
