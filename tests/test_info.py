"""What sbnref info tells."""

import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from sbnref.cli import app


def test_as_a_table(monkeypatch):
    monkeypatch.setenv("SBNREF_IMPL", "reference")
    monkeypatch.delenv("SBNREF_CUDASIM", raising=False)
    run = CliRunner().invoke(app, ["info"])
    assert run.exit_code == 0
    for part in ("sbnref", "PyTorch", "device cpu", "gloo", "impl='reference'", "runs on cpu", "build cache"):
        assert part in run.stdout
    assert "not on cpu:" in run.stdout, "the kernels without simulation"
    assert "the implementation where none is asked for" in " ".join(run.stdout.split())


def test_as_json(monkeypatch, tmp_path):
    (tmp_path / "sbnref_library").mkdir()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("SBNREF_CUDASIM", raising=False)
    run = CliRunner().invoke(app, ["info", "--json"])
    data = json.loads(run.stdout)
    assert data["impls"]["reference"]["cpu"] is None
    assert "SBNREF_CUDASIM=1" in data["impls"]["cuda"]["cpu"]
    assert data["build_cache"] == str(tmp_path)
    assert data["built"] == ["sbnref_library"]
    assert data["variables"]["TORCH_EXTENSIONS_DIR"] == str(tmp_path)


def simulated(*words):
    """The command in a process of its own, because a process holds one library of kernels."""
    command = [sys.executable, "-c", "from sbnref.cli import app; app()", *words]
    environment = {**os.environ, "SBNREF_CUDASIM": "1", "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_launch_plans_for_a_shape():
    plans = json.loads(simulated("info", "--shape", "8,4,5,5", "--json"))["plans"]
    assert plans["forward"]["layout"] == "channels-first"
    assert plans["forward"]["tiles"] == 4
    assert "(8, 4, 5, 5) float32: 4 blocks" in " ".join(simulated("info", "--shape", "8,4,5,5").split())


def test_traffic_of_a_shape():
    stages = json.loads(simulated("traffic", "8,4,16,16", "--json"))["stages"]
    assert [stage["launches"] for stage in stages] == [1, 1, 1, 1]
    shown = simulated("traffic", "8,4,16,16", "--dtype", "float16", "--channels-last")
    assert "float16, channels-last" in shown
    assert "backward_apply" in shown
