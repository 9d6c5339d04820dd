"""A file of kernels, compiled against the simulation, as a job for a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ....impls import STAGES
from ....impls.compiling import DoesNotCompile
from ....impls.user_module import OURS
from ... import Kernels
from ...kernels import compiled
from ...sandbox.process import Job
from ...task_call import compiled_task
from ...tasks import Task
from .report import Fault
from .source import refusal


@dataclass(frozen=True)
class Functions:
    """What is brought into the process: a module that answers by functions, made of libraries.

    Attributes:
        module: its text, in which ``{file}`` and ``{built}`` stand for paths.
        functions: that it defines.
    """

    module: str
    functions: Sequence[str]


STAGE_FUNCTIONS = Functions(
    """from pathlib import Path

from sbnref.lab.implementation import StageKernels

stages = StageKernels(Path({file}), Path({built}))
forward_stats, forward_apply = stages.forward_stats, stages.forward_apply
backward_stats, backward_apply = stages.backward_stats, stages.backward_apply
""",
    STAGES,
)


class RefusedFile(Exception):
    """The file is not run, for a fault that is in its text."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


@contextmanager
def job_of(
    target: str,
    kernels: Kernels,
    served: Functions,
    memory: float,
    seconds: float,
    hide: Sequence[str | Path] = (),
    user: str | None = None,
    task: Task | None = None,
) -> Iterator[tuple[Job, Kernels]]:
    """The job, and the kernels as they are compiled to be watched; both are gone in the end.

    Args:
        target: the file, as its author knows it.
        kernels: of which file, and which functions of it.
        served: what asks for them there.
        memory: gigabytes that they may take, on Linux.
        seconds: of computing that they may take on each core, on Linux.
        hide: folders and files that they are not to see, where they can be confined.
        user: the user that they run as; None for the user who grades.
        task: whose function the file defines, if not those of a ``Problem``.

    Raises:
        RefusedFile: the file says what it may not, or does not compile.
        RuntimeError: there is no compiler.
    """
    text = kernels.file.read_text(errors="replace")
    if (refused := refusal(text, None if task else "laboratory.cuh")) is not None:
        raise RefusedFile(Fault(refused[1], line=refused[0]))
    with tempfile.TemporaryDirectory(prefix="sbnref-check-", ignore_cleanup_errors=True) as place:
        place = os.path.realpath(place)  # as the compiler writes it into what it makes
        if user is not None:
            os.chmod(place, 0o711)  # to come to the files in it
        # What was looked at is what is compiled, and nothing beside it can be included instead of what is meant.
        alone = Path(place, "alone", "mine.cu")
        alone.parent.mkdir()
        alone.write_text(text)
        kernels = replace(kernels, file=alone)
        built, module = Path(place, "mine.so"), Path(place, "served.py")
        try:
            shutil.copyfile(compiled(kernels) if task is None else compiled_task(alone, task), built)
        except DoesNotCompile as error:
            raise RefusedFile(_complaint(alone, str(error), target)) from None
        paths = {name: repr(str(path)) for name, path in (("file", alone), ("built", built))}
        paths["signature"] = repr(task and task.signature)
        module.write_text(f"import sys\n\nsys.path.insert(0, {str(OURS.parent)!r})\n{served.module.format(**paths)}")
        seconds *= os.cpu_count() or 1
        job = Job(
            str(module), place, memory, seconds, (), place=place, functions=served.functions, hide=hide, user=user
        )
        yield job, replace(kernels, built=built)


def _complaint(file: Path, said: str, target: str) -> Fault:
    """The compiler's message about the file, which its author knows as ``target``."""
    errors = re.findall(rf"^{re.escape(str(file))}:(\d+)(?::\d+)?: (?:fatal )?error: (.*)$", said, re.MULTILINE)
    if not errors:
        return Fault(said.replace(str(file), target)[:2000])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Fault(f"it does not compile: {errors[0][1]}{more}", line=int(errors[0][0]))
