"""Compile a CUDA file for the simulation, as a job for a separate process."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ....impls.compiling import DoesNotCompile
from ....impls.simulation.rewrite import NotSupported
from ....impls.user_module import OURS
from ...sandbox.process import Job
from ...task_call import compiled
from ...tasks import Task
from .report import Fault
from .source import why_rejected

_MODULE = """import sys

sys.path.insert(0, {package!r})
from sbnref.lab.task_call import TaskCall

call = TaskCall({built!r}, {signature!r})
run, writer = call.run, call.writer
"""


class RejectedFile(Exception):
    """The file cannot run; the arguments are the fault in its text, and the status of the grade."""


@contextmanager
def job_of(
    file: Path,  # with the task's function
    target: str,  # the file's name for its author
    task: Task,
    **limits: Any,  # of the job: memory, seconds, hide and user
) -> Iterator[tuple[Job, Path, Path]]:
    """Yield the job, the compiled copy of the source, and its library, and delete them at the end.

    Raises:
        RejectedFile: the file contains forbidden code, or does not compile.
        RuntimeError: there is no compiler.
    """
    text = file.read_text(errors="replace")
    if (reason := why_rejected(text)) is not None:
        raise RejectedFile(Fault(reason[1], line=reason[0]), "failed")
    with tempfile.TemporaryDirectory(prefix="sbnref-check-", ignore_cleanup_errors=True) as place:
        place = os.path.realpath(place)  # the path in the compiler's debug information
        # Compile the text that was checked, in an empty folder, so that no file beside it can replace a header.
        alone = Path(place, "alone", "mine.cu")
        alone.parent.mkdir()
        alone.write_text(text)
        built, module = Path(place, "mine.so"), Path(place, "served.py")
        try:
            shutil.copyfile(compiled(alone, [task]), built)
        except DoesNotCompile as error:
            raise RejectedFile(_complaint(alone, str(error), target, task), "failed") from None
        except NotSupported as error:
            raise RejectedFile(Fault(str(error).replace(str(alone), target)), "not graded") from None
        module.write_text(_MODULE.format(package=str(OURS.parent), built=str(built), signature=task.signature))
        yield Job(str(module), place, forbidden=(), place=place, functions=("run", "writer"), **limits), alone, built


def _complaint(file: Path, message: str, target: str, task: Task) -> Fault:
    """Turn the compiler's message into a fault of the file, with the name ``target``."""
    if re.search(rf"error: (?:.{task.name}. was not declared|use of undeclared identifier '{task.name}')", message):
        return Fault(f"expected {target} to define {task.signature}, found no such function")
    errors = re.findall(rf"^{re.escape(str(file))}:(\d+)(?::\d+)?: (?:fatal )?error: (.*)$", message, re.MULTILINE)
    if not errors and "unit.cu:" in message:  # the call of the function
        return Fault(f"expected {target} to define {task.signature}, found other parameters")
    if not errors:
        return Fault(message.replace(str(file), target)[:2000])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    note = re.search(r"^If CUDA has .*", message, re.MULTILINE)
    return Fault(f"it does not compile: {errors[0][1]}{more}", line=int(errors[0][0]), hint=note and note.group())
