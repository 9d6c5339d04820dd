"""Failing ranks: a timely error names the rank, and no process or folder remains."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time

import pytest
from hosts import steps
from shared import gone

import sbnref

pytestmark = pytest.mark.slow
RAISES, KILLED = "rank 1 failed(?s:.*)ValueError: expected", "rank 1 failed:\n\nits process was ended by signal 9"
CASES = [
    ("sbnref.launch", "raises", "reference", RAISES),
    ("sbnref.launch", "raises", "cpu", RAISES),
    ("sbnref.launch", "is killed", "reference", KILLED),
    ("sbnref.launch", "is killed", "cpu", KILLED),
    ("sbnref.launch", "hangs", "reference", r"ranks \[.*1\] of 2 had not returned"),
    ("torchrun", "raises", "cpu", r"\[rank1\]: ValueError: expected"),
    ("torchrun", "is killed", "reference", r"Signal 9 \(SIGKILL\) received by PID {pid}"),
    ("torchrun", "hangs", "cpu", r"\[rank0\]: RuntimeError: .*Timed out waiting 4000ms for recv"),
]


def run(launcher, job, timeout):
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", steps.__file__]
        done = subprocess.run([*command, json.dumps(job)], capture_output=True, text=True, timeout=300)
        assert done.returncode != 0
        return done.stdout + done.stderr
    with sbnref.Ranks(2) as ranks:
        ranks.run(os.getpid)
        ranks.timeout = timeout
        with pytest.raises((TimeoutError, sbnref.RankError)) as caught:
            ranks.run(steps.train, job | {"timeout": 300})
    return f"{caught.type.__name__}: {caught.value}"


@pytest.mark.parametrize(("launcher", "what", "impl", "message"), CASES)
def test_an_error_in_time_names_the_rank(launcher, what, impl, message, tmp_path, monkeypatch, record):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    job = {"folder": str(tmp_path), "impl": impl, "steps": 3, "faults": {"2": ["backward", what]}, "timeout": 4}
    for timeout in (5, 20, 80) if what == "hangs" else (300,):  # a busy machine may be slow to reach the fault
        (tmp_path / "checkpoint.pt").unlink(missing_ok=True)
        output = run(launcher, job, timeout)
        if (tmp_path / "reached-1").exists():
            break
    seconds = round(time.time() - float((tmp_path / "reached-1").read_text()), 2)
    assert seconds < 60
    pids = [(tmp_path / f"pid-{rank}").read_text() for rank in (0, 1)]
    seen = re.search(message.format(pid=pids[1]), output)
    assert seen, output
    assert all(gone(int(pid)) for pid in pids)
    assert not list(tmp_path.glob("sbnref-*"))
    seen = seen[0] if launcher == "torchrun" else output.split(":")[0]
    record(launcher=launcher, impl=impl, fault=f"a rank {what}", seen=seen, seconds=seconds)
