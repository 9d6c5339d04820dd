"""The launcher: results, failures, timeouts, no process left, and the same code under torchrun."""

import os
import pickle
import re
import signal
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process

import pytest
import torch
import torch.distributed as dist
from shared import ROOT, gone, python

import sbnref


def fail() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the reason")
    dist.barrier()  # the others would wait forever


def die_late() -> None:
    """Rank 1 dies; rank 0's report of the lost connection comes first."""
    if dist.get_rank() == 1:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")


def die_sending() -> None:
    if dist.get_rank() == 1:  # dies when it has sent a part of its result
        frame = sys._getframe()
        while "result_queue" not in frame.f_locals:
            frame = frame.f_back
        os.write(frame.f_locals["result_queue"]._writer.fileno(), b"\0\0\1\0a part of 256 bytes")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "a b#%41ü"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_ranks_are_reused_and_sent_functions_by_value(world):
    ranks, factor = world(2), 3.0

    def total() -> float:
        tensor = torch.tensor([factor * (dist.get_rank() + 1)])
        dist.all_reduce(tensor)
        return tensor.item()

    assert ranks.run(total) == [9.0, 9.0]
    assert ranks.run(os.getpid) == ranks.run(os.getpid)


def test_a_failure_is_told_with_the_ranks_own_traceback_and_ends_all(folder):
    with sbnref.Ranks(2) as ranks:
        for function, message in (
            (fail, r"(?s)rank 1 failed:.*in fail.*ValueError: the reason"),
            (die_sending, "rank 1 failed:\n\nits process was ended by signal 9"),
            (die_late, "rank 1 failed:\n\nits process was ended by signal 9"),
            (lambda: dist.get_rank() and os._exit(3), "rank 1 failed:\n\nits process ended with exit code 3"),
        ):
            pids = ranks.run(os.getpid)  # fresh ones
            assert len(list(folder.glob("sbnref-*"))) == 1
            with pytest.raises(sbnref.RankError, match=message) as caught:
                ranks.run(function)
            assert caught.value.rank == pickle.loads(pickle.dumps(caught.value)).rank == 1
            assert all(map(gone, pids))
            assert list(folder.glob("sbnref-*")) == []

        pids = ranks.run(os.getpid)
        os.kill(pids[1], signal.SIGKILL)  # between two runs
        assert gone(pids[1])
        with pytest.raises(sbnref.RankError, match=r"rank 1 failed:\n\nits process was ended by signal 9 \("):
            ranks.run(os.getpid)

        pids = ranks.run(os.getpid)
        ranks.timeout = 1
        with pytest.raises(TimeoutError, match=r"ranks \[0\] of 2 had not returned after 1 s.*SBNREF_DEBUG=1"):
            ranks.run(lambda: time.sleep(60 if dist.get_rank() == 0 else 0))
        assert all(map(gone, pids))

        ranks.timeout = 60
        ranks.run(os.getpid)
    assert list(folder.glob("sbnref-*")) == []


def interrupt(by: int) -> None:
    """Send the parent a signal from rank 0 while both ranks work; no rank returns by itself."""
    dist.barrier()
    if dist.get_rank() == 0:
        os.kill(parent_process().pid, by)
        dist.barrier()
    while True:
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ranks_end_with_a_program_that_a_signal_ends(number, tmp_path):
    script = f"""
        import os, signal, sbnref
        from test_launch import interrupt
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ranks = sbnref.Ranks(2)
        print(*ranks.run(os.getpid), flush=True)
        ranks.run(interrupt, {number:d})
    """
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = python("-c", textwrap.dedent(script), code=-number, timeout=120, env=env)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert all(map(gone, pids))
    assert list(tmp_path.glob("sbnref-*")) == []


def test_an_exception_from_a_signal_ends_the_ranks_and_new_ones_start(folder, request):
    """Only the parent gets the signal, like in a notebook."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    ranks = sbnref.Ranks(2)
    pids = ranks.run(os.getpid)
    with pytest.raises(SystemExit):
        ranks.run(interrupt, signal.SIGTERM)
    assert all(map(gone, pids))
    with pytest.raises(SystemExit):
        sbnref.launch(interrupt, 2, signal.SIGTERM)
    assert list(folder.glob("sbnref-*")) == []
    with ranks:
        assert ranks.run(dist.get_rank) == [0, 1]


def test_a_long_text_of_an_exception_is_cut_to_its_ends():
    def shout() -> None:
        raise ValueError("begin" + "x" * 50_000_000 + "end")

    with pytest.raises(sbnref.RankError) as caught:
        sbnref.launch(shout, 2)
    text = str(caught.value)
    assert len(text) < 21_000
    assert "ValueError: begin" in text
    assert re.search(r"\[\.\.\. 49,\d{3},\d{3} characters \.\.\.\]", text)
    assert text.rstrip().endswith("end")


@pytest.mark.parametrize("world_size", [0, "2", 2.5, True])
def test_a_world_has_a_rank(world_size):
    with pytest.raises(ValueError, match=f"expected world_size to be an integer of at least 1, got {world_size!r}"):
        sbnref.Ranks(world_size)
    with pytest.raises(ValueError, match="expected timeout to be a positive and finite number of seconds, got inf"):
        sbnref.Ranks(2, timeout=float("inf"))


def test_launches_in_two_threads_do_not_disturb_each_other():
    main = sys.modules["__main__"]
    with ThreadPoolExecutor() as threads:
        slow, failing = (threads.submit(sbnref.launch, *work) for work in ((time.sleep, 2, 3), (fail, 2)))
        assert slow.result() == [None, None]
        assert isinstance(failing.exception(), sbnref.RankError)
    assert sys.modules["__main__"] is main


@pytest.mark.slow
def test_the_same_script_runs_under_torchrun(tmp_path):
    script = """
        import ends_well, os, sys, torch, sbnref
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel
        def main():
            DistributedDataParallel(sbnref.SyncBatchNorm(3))(torch.randn(4, 3)).sum().backward()
            timeout = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout
            return dist.get_rank(), dist.get_world_size(), timeout.total_seconds() >= 7777
        results = sbnref.launch(main, 2, timeout=7777)
        assert all(enough for *_, enough in results), "a collective does not end before the launch"
        sys.stdout.write(f"results {[where for *where, _ in results]}\\n")  # in one piece
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    for options, expected in (((), "[[0, 2], [1, 2]]"), (torchrun, "[[0, 3], [1, 3], [2, 3]]")):
        lines = python(*options, tmp_path / "script.py", env=env, timeout=120).stdout.splitlines()
        assert lines == [f"results {expected}"] * (3 if options else 1)
