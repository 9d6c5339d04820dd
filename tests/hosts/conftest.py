"""Hosts: network namespaces with an address each, on one switch."""

from __future__ import annotations

import fcntl
import os
import random
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class Host:
    """A host with the address ``address``, whose cable can be pulled."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.started: list[subprocess.Popen[str]] = []

    def torchrun(self, hosts: int, ranks: int, head: str, *arguments: str) -> subprocess.Popen[str]:
        """Start torchrun on this host; ``arguments`` are more of its options, a script, and the script's own."""
        rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint={head}:29500", f"--local-addr={self.address}")
        # All hosts have this machine's name, from which each would tell whether it is the head.
        rendezvous += (f"--rdzv-conf=is_host={int(self.address == head)}",)
        counts = (f"--nnodes={hosts}", f"--nproc-per-node={ranks}")
        command = ("ip", "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run")
        process = subprocess.Popen(
            [*command, *counts, *rendezvous, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "eth0",
                "TP_SOCKET_IFNAME": "eth0",
                "SBNREF_CUDASIM": "1",  # impl='cuda' is the simulated kernels
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # or a restart finds the first start's addresses
            },
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def processes(self) -> list[int]:
        """All that run on this host."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False).stdout
        return [int(pid) for pid in listed.split()]

    def signal(self, number: int) -> None:
        """Send a signal to all of them."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def pull_the_cable(self) -> None:
        """Nothing reaches this host any more, and nothing leaves it."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        """Give the link its address, and turn it on."""
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", self.name, "link", "set", link, "up")


@contextmanager
def slow_switch(hosts: list[Host], delay: float, loss: float) -> Iterator[None]:
    """Connect the hosts by another switch: every frame comes ``delay`` seconds late, and a part ``loss`` of them never.

    Not by the kernel's netem, which few kernels of small machines have.
    """
    taps = [_tap(host, i) for i, host in enumerate(hosts)]
    drawn, on_the_way = random.Random(0), deque[tuple[float, int, bytes]]()
    stop = threading.Event()

    def forward() -> None:
        while not stop.is_set():
            for tap in select.select(taps, [], [], 0.005)[0]:
                on_the_way.append((time.monotonic() + delay, tap, os.read(tap, 65536)))
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                _, sender, frame = on_the_way.popleft()
                for tap in taps:
                    if tap != sender and drawn.random() >= loss:
                        with suppress(OSError):  # a link that is down
                            os.write(tap, frame)

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for tap in taps:
            os.close(tap)


def _tap(host: Host, i: int) -> int:
    """Replace the host's link by one whose frames this process reads and writes."""
    tun_set_interface, tap_without_header, name = 0x400454CA, 0x1002, f"tap{os.getpid()}-{i}"
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tap, tun_set_interface, struct.pack("16sH22x", name.encode(), tap_without_header))
    except OSError as error:
        pytest.skip(f"no slow network: this system makes no TAP devices: {error}")
    _ip("-n", host.name, "link", "del", "eth0")
    _ip("link", "set", name, "netns", host.name, "name", "eth0")
    host.plug_in()
    return tap


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips, in a sentence, where no hosts can be made."""
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("no hosts: namespaces take Linux, root, and the command ip (Debian's package iproute2)")
    made = subprocess.run(["ip", "netns", "add", f"sbnref-{os.getpid()}"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no hosts: this system makes no network namespaces: {made.stderr.strip()}")
    _ip("netns", "del", f"sbnref-{os.getpid()}")


@contextmanager
def connected() -> Iterator[list[Host]]:
    """Three hosts on a switch. Afterwards they are gone, and so is all that ran there."""
    before = f"sbnref-{os.getpid()}-{secrets.token_hex(4)}"
    switch = f"{before}-switch"
    made: list[Host] = []
    _ip("netns", "add", switch)
    try:
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for i in range(3):
            host = Host(f"{before}-{i}", f"10.77.0.{i + 1}")
            _ip("netns", "add", host.name)
            made.append(host)
            _ip("-n", switch, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("-n", switch, "link", "set", f"port{i}", "master", "bridge", "up")
            host.plug_in()
        yield made
        left = [pid for host in made for pid in host.processes()]
        assert not left, f"left behind: {[Path(f'/proc/{pid}/cmdline').read_bytes() for pid in left]}"
    finally:
        for host in made:
            host.signal(signal.SIGCONT)
            host.signal(signal.SIGKILL)
            for process in host.started:
                process.wait()
            _ip("netns", "del", host.name)
        time.sleep(0.1)
        _ip("netns", "del", switch)


@pytest.fixture
def hosts(namespaces: None) -> Iterator[list[Host]]:
    """Three of them, on a switch."""
    with connected() as made:
        yield made
