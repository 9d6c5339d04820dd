"""What sbnref info tells."""

import json

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
