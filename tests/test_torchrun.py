"""The training script as one process and under torchrun. tests/hosts runs torchrun on several hosts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).parents[1] / "tutorials" / "train.py")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}


def figures(*command: str) -> list[float]:
    """Run the script, and return the numbers in the report, which one process alone prints."""
    command = (sys.executable, *command, "--steps", "20")
    run = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("accuracy") == 1
    return [float(figure) for figure in re.findall(r"(?:loss|digits:) ([\d.]+)", run.stdout)]


def test_four_ranks_train_as_one_process(tmp_path):
    alone = figures(SCRIPT, "--output", str(tmp_path / "model.pt"))
    assert alone[1] > 80, alone
    state = torch.load(tmp_path / "model.pt")
    nn.BatchNorm2d(16).load_state_dict({k[2:]: v for k, v in state.items() if k.startswith("1.")})
    four = figures("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", SCRIPT)
    assert four == pytest.approx(alone, rel=0.02)
