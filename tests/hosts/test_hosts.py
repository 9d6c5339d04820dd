"""Training on several hosts over TCP: one process's numbers; and what becomes of a lost rank, link or host."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from hosts.conftest import connected, slow_switch

pytestmark = pytest.mark.slow

STEPS = str(Path(__file__).with_name("steps.py"))
TRAIN = str(Path(__file__).parents[2] / "tutorials" / "train.py")
TIMEOUT = 8  # seconds, of the process groups
HOSTS = "torchrun, 3 hosts"
UNDISTURBED = "the numbers of an undisturbed run, to the bit"


def start(hosts, job, *options):
    """One rank on every host."""
    return [host.torchrun(len(hosts), 1, hosts[0].address, *options, STEPS, json.dumps(job)) for host in hosts]


def outputs(processes):
    """What each host printed. An agent of torchrun waits for one that was too slow to answer for 300 s."""
    return [process.communicate(timeout=450)[0] for process in processes]


def digest(texts, steps=6):
    """What the model is after the last of so many steps: the same on all ranks."""
    found = re.findall(rf"rank \d after step {steps}: (.*)", "".join(texts))
    assert len(found) == 3, "\n".join(texts)
    assert len(set(found)) == 1, found
    return found[0]


def job(folder, **options):
    """What the ranks are to do: steps.py says what that can be."""
    folder.mkdir(exist_ok=True)
    return {"steps": 6, "timeout": TIMEOUT, "folder": str(folder)} | options


def wait_for(folder, names):
    end = time.monotonic() + 300
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < end, f"{names} are not all in {folder}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, namespaces):
    """``undisturbed(impl)`` is what three hosts print when nothing happens to them."""

    @cache
    def run(impl):
        with connected() as hosts:
            return outputs(start(hosts, job(tmp_path_factory.mktemp("undisturbed"), impl=impl)))

    return run


def test_two_hosts_of_two_ranks_train_as_one_process(hosts):
    def figures(text):
        return [float(figure) for figure in re.findall(r"(?:loss|digits:) ([\d.]+)", text)]

    alone = subprocess.run([sys.executable, TRAIN, "--steps", "20"], capture_output=True, text=True, check=True).stdout
    two = [host.torchrun(2, 2, hosts[0].address, TRAIN, "--steps", "20") for host in hosts[:2]]
    texts = outputs(two)
    assert [process.returncode for process in two] == [0, 0], "\n".join(texts)
    assert figures("".join(texts)) == pytest.approx(figures(alone), rel=0.02)


@pytest.mark.parametrize("lost", ["link", "host"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_is_lost_is_an_error_on_every_rank(hosts, tmp_path, lost, where, some_impl, record):
    """Three ranks stand in a pass when the last one's host loses its link, or all that runs on it."""
    folder = tmp_path / "shared"
    processes = start(hosts, job(folder, at=3, what=where, impl=some_impl))
    wait_for(folder, [f"paused-{rank}" for rank in range(3)])
    hosts[2].pull_the_cable()
    if lost == "host":
        hosts[2].signal(signal.SIGKILL)
    (folder / "lost").touch()
    (folder / "go").touch()
    there = range(3 if lost == "link" else 2)
    wait_for(folder, [f"raised-{rank}" for rank in there])
    told = [(folder / f"raised-{rank}").read_text() for rank in there]
    delays = [float(re.search(r"after ([\d.]+) s", text)[1]) for text in told]
    assert max(delays) <= TIMEOUT + 5, told
    fault = f"a {lost} is lost in the {where} pass"
    record(launcher=HOSTS, impl=some_impl, fault=fault, told=told[0], seconds=max(delays))
    for host in hosts:  # torchrun itself, on a host without a link, goes on for a minute more
        host.signal(signal.SIGKILL)
    assert "after step 6" not in "".join(outputs(processes))


def test_a_rank_that_stops_for_a_while_is_waited_for(hosts, tmp_path, undisturbed, some_impl, record):
    folder = tmp_path / "shared"
    processes = start(hosts, job(folder, at=3, what="forward", impl=some_impl))
    wait_for(folder, [f"paused-{rank}" for rank in range(3)])
    hosts[1].signal(signal.SIGSTOP)
    (folder / "go").touch()
    time.sleep(TIMEOUT / 2)
    hosts[1].signal(signal.SIGCONT)
    assert digest(outputs(processes)) == digest(undisturbed(some_impl))
    fault = f"a rank stops for {TIMEOUT / 2:.0f} s"
    record(launcher=HOSTS, impl=some_impl, fault=fault, told=UNDISTURBED, seconds=None)


def test_a_slow_network_that_loses_packets_changes_no_number(hosts, tmp_path, undisturbed, record):
    with slow_switch(hosts, delay=0.1, loss=0.05):
        texts = outputs(start(hosts, job(tmp_path / "shared", impl="reference", steps=2, timeout=60)))
    assert digest(texts, 2) == digest(undisturbed("reference"), 2)
    fault = "packets take 0.1 s, and 5 % are lost"
    record(launcher=HOSTS, impl="reference", fault=fault, told=UNDISTURBED, seconds=None)


def test_after_a_restart_the_numbers_are_those_of_an_undisturbed_run(hosts, tmp_path, undisturbed, some_impl, record):
    disturbed = job(tmp_path / "shared", at=3, what="kill", impl=some_impl)
    texts = outputs(start(hosts, disturbed, "--max-restarts=1"))
    assert [len(re.findall(f"rank {rank} resumes after step 3", "".join(texts))) for rank in range(3)] == [1, 1, 1]
    assert digest(texts) == digest(undisturbed(some_impl))
    fault = "a rank is killed, and all start again"
    record(launcher=HOSTS, impl=some_impl, fault=fault, told=UNDISTURBED, seconds=None)
