"""Grades somebody else's four functions in a process of its own, which `sbnref check` starts and may have to end.

Each result is written to a file at once, a line of JSON, so that what was graded survives whatever the code does to the
process. What the code prints goes elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import torch

from ..impls import Implementation, reference, register_impl
from ..launch import RankError, Ranks
from .cases import cases
from .functions import NotAnImplementation, load_functions
from .search import Failure, search


class _Grader:
    def __init__(self, impl: Implementation, job: dict[str, Any], results: TextIO) -> None:
        self.impl, self.job, self.results = impl, job, results
        self.trying = Path(job["trying"])

    def write(self, **line: Any) -> None:
        self.results.write(json.dumps(line) + "\n")
        self.results.flush()

    def grade(self, stage: str) -> None:
        """Write the stage's result; for what ``forward_apply`` saves wrongly, its result anew."""
        self.write(starting=stage)
        try:
            failure, tried = self.search(stage, reference)
        except NotImplementedError as error:
            return self.write(stage=stage, status="not written", failure=asdict(Failure("", str(error))), tried=0)
        if stage.startswith("backward") and "forward_apply" not in self.job["died"]:
            # saved is laid out as the file's own forward_apply likes, or as the reference does
            with suppress(NotImplementedError):
                by_own, again = self.search(stage, self.impl)
                tried += again
                if by_own is not None and failure is None:
                    what = f"what it saves leads {stage} astray, right with what the reference saves: {by_own.what}"
                    blame = replace(by_own, what=what)
                    self.write(stage="forward_apply", status="failed", failure=asdict(blame), tried=again)
                failure = failure and by_own
        self.write(
            stage=stage, status="failed" if failure else "passed", failure=failure and asdict(failure), tried=tried
        )

    def search(self, stage: str, saved_by: Implementation) -> tuple[Failure | None, int]:
        """Half of the time for the search, so that it ends by itself before it is ended."""
        return search(
            stage,
            self.impl,
            saved_by=saved_by,
            examples=self.job["examples"],
            seconds=self.job["timeout"] / 3,
            tell=self.tell,
        )

    def tell(self, step: str) -> None:
        """Note what is tried: if the process ends, it ended on this."""
        self.trying.write_text(step, encoding="utf-8")

    def run_suite(self) -> None:
        """The whole layer, on real process groups."""
        self.write(starting="layer")
        broken: list[Failure] = []
        todo = cases()
        for world_size in sorted({case.world_size for case in todo}):
            with Ranks(world_size, timeout=self.job["timeout"]) as ranks:
                for case in todo:
                    if case.world_size != world_size:
                        continue
                    self.tell(case.name)
                    self.write(starting="layer")  # restarts the clock
                    try:
                        ranks.run(_run_case, self.job["target"], case.check)
                    except (RankError, TimeoutError) as error:
                        broken.append(Failure(case.name, str(error).strip().splitlines()[-1]))
        self.write(
            stage="layer",
            status="failed" if broken else "passed",
            failure=asdict(replace(broken[0], step=", ".join(f.step for f in broken))) if broken else None,
            tried=len(todo),
        )


def _run_case(target: str, check: Callable[[str, str], Any]) -> None:
    with suppress(ValueError):  # registered by an earlier case
        register_impl(target, load_functions(target))
    check(target, "cpu")


def _limit_resources(gigabytes: float, seconds: float) -> None:
    """Refuse memory beyond what is in use now and ``gigabytes``, where the system can (Linux)."""
    try:
        import resource

        status = Path("/proc/self/status").read_text()
        in_use = int(status.split("VmData:")[1].split()[0]) * 1024
    except (ImportError, OSError, IndexError):
        return
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + int(gigabytes * 2**30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1,) * 2)  # ends it where nobody is left to
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Do the job that stands in the file named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    sys.path.append(job["folder"])
    os.chdir(job["folder"])
    search("forward_stats", reference, examples=2)  # what is loaded on first use takes nobody's time
    _limit_resources(job["memory"], (len(job["stages"]) + 2) * job["timeout"] * (os.cpu_count() or 1))
    with Path(job["results"]).open("a", encoding="utf-8") as results:
        grader = _Grader(SimpleNamespace(), job, results)
        grader.write(starting="import")
        grader.tell("importing it")
        try:
            grader.impl = load_functions(job["target"])
        except NotAnImplementation as error:
            grader.write(refused=str(error))
        else:
            for stage in job["stages"]:
                if stage == "layer":
                    grader.run_suite()
                else:
                    grader.grade(stage)
        grader.write(done=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # whatever threads and exit handlers the code has left


if __name__ == "__main__":
    main()
