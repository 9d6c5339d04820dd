"""Unchanged scripts: the README's example, the exercises' solutions, the training script under torchrun."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from shared import ROOT, blocks, python
from torch import nn

TRAIN = ROOT / "tutorials" / "train.py"


def test_the_example_of_the_readme(tmp_path):
    script = tmp_path / "first.py"
    (example,) = [block for block in blocks("README.md", "python") if "sbnref.launch" in block]
    (output,) = blocks("README.md", "text")
    script.write_text(example)
    assert python(script, timeout=120).stdout == output


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "tutorials" / "solutions").glob("*.py")), ids=lambda path: path.stem)
def test_solution(script):
    python(script, timeout=300)


def figures(folder: Path, *command: object) -> list[float]:
    """Run the training script, and return the numbers in its report, which only one process prints."""
    (folder / "sitecustomize.py").write_text("import ends_well\n")
    env = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    env["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    run = python(*command, "--steps", "20", env=env, timeout=300)
    assert run.stdout.count("accuracy") == 1
    return [float(figure) for figure in re.findall(r"(?:loss|digits:) ([\d.]+)", run.stdout)]


@pytest.mark.slow
def test_four_ranks_train_as_one_process(tmp_path):
    """Run on one host; tests/hosts runs torchrun on several."""
    alone = figures(tmp_path, TRAIN, "--output", tmp_path / "model.pt")
    assert alone[1] > 80, alone
    state = torch.load(tmp_path / "model.pt")
    nn.BatchNorm2d(16).load_state_dict({k[2:]: v for k, v in state.items() if k.startswith("1.")})
    four = figures(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", TRAIN)
    assert four == pytest.approx(alone, rel=0.02)
