"""Training on hosts that are stopped, lost, or connected by a bad network.

Hosts are network namespaces; this process forwards, delays or drops their frames.
"""

import fcntl
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress

import pytest
import torch
from hosts import steps

import sbnref

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29500"]
ENV = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", "TP_SOCKET_IFNAME": "eth0"}
ENV["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # otherwise a restart finds the first start's addresses


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Host:
    """A namespace and a TAP device: this process reads the frames of ``eth0`` from ``tap``."""

    def __init__(self, i, stack):
        self.name, self.address, self.delay, self.loss = f"sbn{os.getpid()}-{i}", f"10.77.0.{i + 1}", 0.0, 0.0
        try:
            self.tap = os.open("/dev/net/tun", os.O_RDWR)
            stack.callback(os.close, self.tap)
            fcntl.ioctl(self.tap, 0x400454CA, struct.pack("16sH22x", self.name.encode(), 0x1002))  # TAP, no header
            ip("netns", "add", self.name)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"hosts need Linux, root, TAP devices and the command ip of the package iproute2: {error}")
        stack.callback(ip, "netns", "del", self.name)
        stack.callback(self.signal, signal.SIGKILL)
        ip("link", "set", self.name, "netns", self.name, "name", "eth0")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", link, "up")

    def signal(self, number):
        """Send a signal to all processes of the host, and return their number."""
        pids = ip("netns", "pids", self.name).split()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)
        return len(pids)

    def torchrun(self, count, job, *options):
        """Start the host's rank. The hosts share a name, so an option tells each whether it is the head."""
        here = [f"--nnodes={count}", f"--local-addr={self.address}", f"--rdzv-conf=is_host={int(self.name[-1] == '0')}"]
        command = ["ip", "netns", "exec", self.name, *TORCHRUN, *here, *options, steps.__file__, json.dumps(job)]
        return subprocess.Popen(command, env=os.environ | ENV)


def forward(hosts, closed):
    """Forward frames between the hosts, like a switch."""
    drawn, waiting, senders = random.Random(0), deque(), {host.tap: host for host in hosts}
    while not closed.is_set():
        for tap in select.select(list(senders), [], [], 0.005)[0]:
            waiting.append((time.monotonic() + senders[tap].delay, senders[tap], os.read(tap, 65536)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, sender, frame = waiting.popleft()
            for host in hosts:
                if host is not sender and drawn.random() >= max(host.loss, sender.loss):
                    os.write(host.tap, frame)


@pytest.fixture
def hosts():
    with ExitStack() as stack:
        hosts, closed = [Host(i, stack) for i in range(3)], threading.Event()
        thread = threading.Thread(target=forward, args=(hosts, closed))
        thread.start()
        stack.callback(thread.join)
        stack.callback(closed.set)
        yield hosts
        end = time.monotonic() + 30
        while any(host.signal(0) for host in hosts):
            assert time.monotonic() < end, "processes are left behind"
            time.sleep(0.1)


def wait_for(folder, name, ranks):
    """Wait for each rank's file, and return the contents."""
    files, end = [folder / f"{name}-{rank}" for rank in range(ranks)], time.monotonic() + 300
    while not all(file.exists() and file.stat().st_size for file in files):
        assert time.monotonic() < end, f"some of {files} are missing"
        time.sleep(0.02)
    return [file.read_text() for file in files]


@pytest.mark.parametrize(("lost", "where", "impl"), [("link", "backward", "cpu"), ("host", "forward", "reference")])
def test_a_lost_link_or_host_is_an_error_on_every_rank(hosts, tmp_path, lost, where, impl, record):
    job = {"folder": str(tmp_path), "impl": impl, "steps": 4, "faults": {"2": [where, "waits"]}, "timeout": 5}
    started = [host.torchrun(3, job) for host in hosts]
    wait_for(tmp_path, "reached", 3)
    hosts[2].loss = 1
    if lost == "host":
        hosts[2].signal(signal.SIGKILL)
    before = time.time()
    (tmp_path / "go").touch()
    errors = [text.split(maxsplit=1) for text in wait_for(tmp_path, "raised", 3 if lost == "link" else 2)]
    seconds = round(max(float(when) for when, _ in errors) - before, 2)
    assert seconds < 60
    fault = f"a {lost} is lost in the {where} pass"
    record(launcher="torchrun, 3 hosts", impl=impl, fault=fault, seen=errors[0][1], seconds=seconds)
    for host, process in zip(hosts, started, strict=True):
        host.signal(signal.SIGKILL)  # on a host without a link torchrun takes a minute more
        process.wait()
    assert not list(tmp_path.glob("result-*"))


@pytest.mark.parametrize(("fault", "impl"), [("a rank stops, then dies once", "cpu"), ("a bad network", "reference")])
def test_the_numbers_are_those_of_an_undisturbed_run(hosts, tmp_path, fault, impl, record):
    bad = fault == "a bad network"
    faults = {} if bad else {"2": ["forward", "waits"], "3": ["backward", "is killed"]}
    job = {"folder": str(tmp_path), "impl": impl, "steps": 5, "faults": faults, "timeout": 60}
    for host in hosts:
        host.delay, host.loss = (0.05, 0.05) if bad else (0, 0)
    started = [host.torchrun(2, job, "--max-restarts=1") for host in hosts[:2]]
    if not bad:
        wait_for(tmp_path, "reached", 2)
        hosts[1].signal(signal.SIGSTOP)
        (tmp_path / "go").touch()
        time.sleep(3)
        hosts[1].signal(signal.SIGCONT)
    assert [process.wait(timeout=400) for process in started] == [0, 0]
    assert wait_for(tmp_path, "resumed", 2) == ["0" if bad else "3"] * 2
    (tmp_path / "checkpoint.pt").unlink()
    expected = sbnref.launch(steps.train, 2, job | {"faults": {}})
    torch.testing.assert_close([torch.load(tmp_path / f"result-{r}") for r in (0, 1)], [expected] * 2, rtol=0, atol=0)
    seen = "the numbers of an undisturbed run, to the bit"
    record(launcher="torchrun, 2 hosts", impl=impl, fault=fault, seen=seen, seconds=None)
