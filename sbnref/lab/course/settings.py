"""A teacher's settings, in one file: the points of each stage and part, and the cases to grade them on."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...impls import STAGES
from ..grading.kernels.report import PARTS

FUNCTIONS, KERNELS = "mine.py", "mine.cu"  # the files that students submit
FILES = {FUNCTIONS: STAGES, KERNELS: PARTS}
SHOWN = ("after_published", "after_due_date")
LAST_SEED = 2**31 - 1
DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Settings:
    """The settings for grading a course."""

    #: whole numbers, for each of the four stages and of the kernels' three parts; a part with 0 points is not graded
    points: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*STAGES, *PARTS), 10))
    task: str = "batch_norm"  #: the kernels' task, by its name or a Python file that defines it
    #: the share of the points, 0 to 1, for hidden cases; ``efficient``, counted on one tensor, has none
    hidden_share: float = 0.5
    hidden_shown: str = SHOWN[0]  #: when to show results on hidden cases, ``'after_published'`` or ``'after_due_date'``
    seed: int = 1  #: of the visible cases
    hidden_seed: int = field(default_factory=lambda: secrets.randbelow(LAST_SEED + 1))  #: of the hidden cases
    examples: int = 100  #: number of cases for each stage or part
    timeout: float = 30  #: seconds for a stage or part, a day at most
    forbid: Sequence[str] = ()  #: modules and functions that the four functions may not use

    def __post_init__(self) -> None:
        names = (*STAGES, *PARTS)
        _expect(isinstance(self.points, dict) and {*self.points} <= {*names}, f"points for {names}", self.points)
        _expect(all(type(p) is int and p >= 0 for p in self.points.values()), "whole points, 0 or more", self.points)
        _expect(any(self.points.values()), "points for something", self.points)
        _expect(isinstance(self.task, str), "the name of a task, or a Python file", self.task)
        share, timeout = (n if type(n) in (int, float) else -1 for n in (self.hidden_share, self.timeout))
        _expect(0 <= share <= 1, "hidden_share, 0 to 1", self.hidden_share)
        _expect(self.hidden_shown in SHOWN, f"hidden_shown among {SHOWN}", self.hidden_shown)
        seeds = {"seed": self.seed, "hidden_seed": self.hidden_seed}
        known = all(type(s) is int and 0 <= s <= LAST_SEED for s in seeds.values())
        _expect(known, f"whole numbers as seeds, 0 to {LAST_SEED}", seeds)
        _expect(self.seed != self.hidden_seed, "a hidden_seed that is not the seed", seeds)
        _expect(type(self.examples) is int and self.examples >= 1, "examples, 1 or more", self.examples)
        _expect(1 <= timeout <= DAY, f"timeout, 1 to {DAY} seconds", self.timeout)
        forbid = self.forbid
        listed = isinstance(forbid, (list, tuple)) and all(isinstance(name, str) for name in forbid)
        _expect(listed and all(re.fullmatch(r"\w[\w.]*", name) for name in forbid), "forbid, a list of names", forbid)

    @classmethod
    def load(cls, file: Path) -> Settings:
        """Read settings from a file; missing ones have their defaults.

        Raises:
            ValueError: the file is not readable or has unknown or invalid settings.
        """
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"expected settings in {file}: {error}") from None
        fields = tuple(cls.__dataclass_fields__)
        if not isinstance(given, dict) or not {*given} <= {*fields}:
            raise ValueError(f"expected in {file} settings among {fields}, got {sorted(given)}")
        return cls(**given)

    def save(self, file: Path) -> None:
        """Write the settings to a file for :meth:`load`."""
        file.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """Return the text of the file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def graded(self, file: str) -> list[str]:
        """Return the stages of ``mine.py`` or the parts of ``mine.cu`` with points."""
        return [name for name in FILES[file] if self.points.get(name)]

    def command(self, *names: str) -> str:
        """Return the command that grades stages, or parts, on the visible cases."""
        file = next(file for file, graded in FILES.items() if names[0] in graded)
        kernels, timeout = file == KERNELS, str(self.timeout).removesuffix(".0")
        words = ["sbnref lab check", file, *([f"--task {self.task}"] if kernels else [])]
        words += [f"{'--part' if kernels else '--stage'} {name}" for name in names]
        words += [f"--seed {self.seed} --examples {self.examples} --timeout {timeout}"]
        words += [] if kernels else [f"--forbid {name}" for name in self.forbid]
        return " ".join(words)


def _expect(right: bool, what: str, given: Any) -> None:
    if not right:
        raise ValueError(f"settings: expected {what}, got {given!r}")
