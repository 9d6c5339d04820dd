"""The report: ranked suspects, each with evidence and remedy, and the numbers examined."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ..recording import Recording
from ..report import Report, in_words, jsonable, ranks_in_words
from .rules import Suspect

if TYPE_CHECKING:
    from rich.console import RenderableType

FEW_STEPS = 10  # of training: below, most rules cannot tell a fault from noise
WIDTH = 100  # columns of the printed list, unless a remedy's code is longer


class Diagnosis(Report):
    """The result of :func:`sbnref.diagnose`, complete when its block ends. Printing it shows the list.

    Attributes:
        suspects: a :class:`Suspect` for each problem, the most harmful first.
        examined: numbers of ``batch_norms``, ``training_steps``, ``evaluation_steps`` and ``ranks``.
        complete: whether all records could be examined.
        notes: sentences about missing or broken records, with the reason.
    """

    def __init__(
        self,
        recordings: dict[int, Recording] | None = None,
        suspects: Sequence[Suspect] = (),
        failures: Sequence[str] = (),
    ) -> None:
        self.suspects = list(suspects)
        of_all = list((recordings or {}).values())
        self.examined = {
            "batch_norms": len({name for r in of_all for name in r.settings}),
            "training_steps": max((r.training_steps for r in of_all), default=0),
            "evaluation_steps": max((r.evaluation_steps for r in of_all), default=0),
            "ranks": len(of_all),
        }
        self.complete = not failures and not any(recording.failures for recording in of_all)
        self.notes = ["The block has not ended yet."] if recordings is None else _notes(recordings)
        self.notes += [f"Please report this: {failure}." for failure in failures]

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's types."""
        return jsonable({**vars(self), "suspects": [vars(suspect) for suspect in self.suspects]})

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        return Text(str(self), overflow="ignore", no_wrap=True)  # never wrap a line of code

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        names = [suspect.where() for suspect in self.suspects]
        width = max(map(len, names), default=0)
        lines = []
        for number, (name, suspect) in enumerate(zip(names, self.suspects, strict=True), 1):
            evidence = f"{number}. {name:{width}}  {suspect.evidence}"
            lines += textwrap.wrap(evidence, WIDTH, subsequent_indent="   ", break_on_hyphens=False)
            remedy = f"   {suspect.advice}:  {suspect.code}"
            lines += [remedy] if len(remedy) <= WIDTH else [f"   {suspect.advice}:", f"       {suspect.code}"]
        counts = [_count(n, key.replace("_", " ")) for key, n in self.examined.items()]
        nothing = " Nothing else was found." if self.suspects else " Nothing was found."
        said = nothing if self.complete and self.examined["batch_norms"] else ""
        return [*lines, f"Examined: {', '.join(counts)}.{said}", *self.notes]


def _count(n: int, things: str) -> str:
    return f"{n} {things.removesuffix('s') if n == 1 else things}"


def _notes(recordings: dict[int, Recording]) -> list[str]:
    notes = []
    world = range(dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1)
    if missing := [rank for rank in world if rank not in recordings]:
        notes.append(f"Records of {ranks_in_words(missing)} are missing.")
    if not any(recording.settings for recording in recordings.values()):
        notes.append("No batch norm was called. Compiled layers are not recorded: run the model without torch.compile.")
    for rank, recording in recordings.items():
        if recording.left:
            notes.append(
                f"Rank {rank} left the block after {recording.training_steps} training steps: {recording.left}"
            )
        notes += [f"Rank {rank} did not record everything: {failure}" for failure in recording.failures]
    steps = {rank: recording.training_steps for rank, recording in recordings.items()}
    if 0 < max(steps.values()) < FEW_STEPS:
        few = max(steps.values())
        notes.append(f"{_count(few, 'training steps')} {'is' if few == 1 else 'are'} too few: record 30 or more.")
    if len(set(steps.values())) > 1:
        notes.append("The ranks trained different numbers of steps: " + in_words(list(steps.values())) + ".")
    return notes
