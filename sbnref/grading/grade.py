"""Grades somebody else's four functions in a process of its own, which `sbnref check` starts and may have to end.

Each result is written to a file at once, a line of JSON, so that what was graded survives whatever the code does to the
process. What the code prints goes elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import torch

from ..conformance import cases
from ..impls import Implementation, reference, register_impl
from ..impls.files import NotAnImplementation, load_functions
from ..launch import RankError, Ranks
from .apart import death_in_words
from .search import Failure, Step, examine, features_of, search

SURVIVED = 77  # the exit code of a fork that has come to its end


class _Grader:
    def __init__(self, impl: Implementation, job: dict[str, Any], results: TextIO) -> None:
        self.impl, self.job, self.results = impl, job, results
        self.trying = Path(job["trying"])

    def write(self, **line: Any) -> None:
        self.results.write(json.dumps(line) + "\n")
        self.results.flush()

    def grade(self, stage: str) -> None:
        """Write the stage's result, and ``forward_apply``'s anew if it is what that saves that is wrong."""
        self.write(starting=stage)
        isolated = stage in self.job["died"]
        try:
            failure, tried = self.search(stage, reference, self.dies if isolated else examine)
        except NotImplementedError as error:
            return self.write(stage=stage, status="not written", failure=asdict(Failure("", str(error))), tried=0)
        if stage.startswith("backward") and not isolated and "forward_apply" not in self.job["died"]:
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

    def search(
        self, stage: str, saved_by: Implementation, trial: Callable[..., Failure | None] = examine
    ) -> tuple[Failure | None, int]:
        """So much of the time that what a stage needs, two searches or one with forks, ends before it is ended."""
        return search(
            stage,
            self.impl,
            saved_by=saved_by,
            examples=self.job["examples"],
            seconds=self.job["timeout"] * (0.8 if trial == self.dies else 0.3),
            tell=self.tell,
            trial=trial,
        )

    def dies(self, stage: str, impl: Implementation, step: Step, saved_by: Implementation) -> Failure | None:
        """Try a step in a fork of this process, and see only whether that survives."""
        limit = max(1.0, self.job["timeout"] / 20)
        if (pid := os.fork()) == 0:
            with suppress(BaseException):
                examine(stage, impl, step, saved_by)
            os._exit(SURVIVED)
        end = time.monotonic() + limit
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                what = f"was still running after {limit:g} s and was ended"
                return Failure(str(step), what, features=features_of(step))
            time.sleep(0.001)
        code = os.waitstatus_to_exitcode(ended[1])
        return None if code == SURVIVED else Failure(str(step), death_in_words(code), features=features_of(step))

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
