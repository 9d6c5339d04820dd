"""The training script as one process, under torchrun, and as two nodes: two agents on this machine over loopback."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).parents[1] / "tutorials" / "train.py")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}


def start(*command: str) -> subprocess.Popen[str]:
    command = (sys.executable, *command, SCRIPT, "--steps", "20")
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV)


def finish(*processes: subprocess.Popen[str]) -> str:
    """The report that one of the processes prints."""
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    assert sum("accuracy" in output for output in outputs) == 1, "rank 0 reports, and no other"
    return "".join(outputs)


def figures(output: str) -> list[float]:
    return [float(figure) for figure in re.findall(r"(?:loss|digits:) ([\d.]+)", output)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    saved = tmp_path_factory.mktemp("train") / "model.pt"
    command = (sys.executable, SCRIPT, "--steps", "20", "--output", str(saved))
    output = subprocess.run(command, capture_output=True, text=True, env=ENV, check=True).stdout
    nn.BatchNorm2d(16).load_state_dict({k[2:]: v for k, v in torch.load(saved).items() if k.startswith("1.")})
    assert figures(output)[1] > 80, output
    return figures(output)


def test_four_ranks_train_as_one_process(alone):
    output = finish(start("-m", "torch.distributed.run", "--nproc-per-node=4"))
    assert figures(output) == pytest.approx(alone, rel=0.02)


def test_two_nodes_train_as_one_process(alone):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1")
    nodes = [start("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *rendezvous) for _ in range(2)]
    assert figures(finish(*nodes)) == pytest.approx(alone, rel=0.02)
