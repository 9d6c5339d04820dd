"""A file of kernels, compiled against the simulation, as a job for a process of its own."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ...impls import STAGES
from ...impls.target import OURS
from ...laboratory import Kernels
from ...laboratory.kernels import simulate
from ..apart.process import Job
from .source import refusal
from .tell import Fault


@dataclass(frozen=True)
class Served:
    """What is brought into the process: a module that answers by functions, made of libraries.

    Attributes:
        module: its text, in which ``{file}``, ``{watched}`` and ``{fast}`` stand for paths.
        functions: that it defines.
        fast: whether it wants the kernels compiled for counting, too.
    """

    module: str
    functions: Sequence[str]
    fast: bool


STAGES_SERVED = Served(
    """from pathlib import Path

from sbnref.laboratory.implementation import StageKernels

stages = StageKernels(Path({file}), Path({watched}))
forward_stats, forward_apply = stages.forward_stats, stages.forward_apply
backward_stats, backward_apply = stages.backward_stats, stages.backward_apply
""",
    STAGES,
    fast=False,
)


class Unfit(Exception):
    """The file is not run, for a fault that is in its text."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


@contextmanager
def job_of(kernels: Kernels, served: Served, memory: float, seconds: float) -> Iterator[tuple[Job, Path, Path]]:
    """The job, the library in which accesses are watched, and the file that it was made of; all are gone in the end.

    That file is a copy: what was looked at is what is compiled, and nothing that lies beside the original can be
    included instead of what is meant.

    Args:
        kernels: of which file, and which functions of it.
        served: what asks for them there.
        memory: gigabytes that they may take, on Linux.
        seconds: of computing that they may take on each core, on Linux.

    Raises:
        Unfit: the file says what it may not, or does not compile.
    """
    file = kernels.file
    text = file.read_text(errors="replace")
    if (refused := refusal(text)) is not None:
        raise Unfit(Fault(refused[1], line=refused[0]))
    with tempfile.TemporaryDirectory(prefix="sbnref-check-", ignore_cleanup_errors=True) as place:
        place = os.path.realpath(place)  # as the compiler writes it into what it makes
        fast, watched, module = (Path(place, name) for name in ("fast.so", "watched.so", "served.py"))
        alone = Path(place, "alone", file.name)
        alone.parent.mkdir()
        alone.write_text(text)
        try:
            simulate(watched, replace(kernels, file=alone, recording=True))
            if served.fast:
                simulate(fast, replace(kernels, file=alone))
        except RuntimeError as error:
            raise Unfit(_complaint(alone, str(error), file.name)) from None
        paths = {name: repr(str(path)) for name, path in (("file", alone), ("watched", watched), ("fast", fast))}
        module.write_text(f"import sys\n\nsys.path.insert(0, {str(OURS.parent)!r})\n{served.module.format(**paths)}")
        seconds *= os.cpu_count() or 1
        yield (
            Job(str(module), place, memory, seconds, forbidden=(), place=place, functions=served.functions),
            watched,
            alone,
        )


def _complaint(file: Path, said: str, name: str) -> Fault:
    """What the compiler said of the file, for whoever wrote it and calls it ``name``."""
    errors = re.findall(rf"^{re.escape(str(file))}:(\d+):\d+: (?:fatal )?error: (.*)$", said, re.MULTILINE)
    if not errors:
        return Fault(said.replace(str(file), name)[:2000])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Fault(f"it does not compile: {errors[0][1]}{more}", line=int(errors[0][0]))
