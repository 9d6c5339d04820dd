"""The report of ``sbnref info``."""

import json

import pytest
import torch
from shared import ROOT, cli, refused

from sbnref.debugging.launch_plan import launch_plan
from sbnref.impls import build
from sbnref.impls.environment import VARIABLES


def test_every_variable_is_documented():
    page = (ROOT / "docs" / "api.md").read_text()
    for name, effect in VARIABLES.items():
        assert f"| `{name}` | {effect} |" in page


def test_as_a_table(monkeypatch):
    monkeypatch.setenv("SBNREF_IMPL", "reference")
    monkeypatch.delenv("SBNREF_CUDASIM", raising=False)
    run = cli("info")
    for part in ("PyTorch", "device cpu", "gloo", "impl='reference'", "runs on cpu", "build cache", "default on"):
        assert part in run.stdout
    assert "not on cpu:" in run.stdout, "the kernels without simulation"
    assert "the default implementation, used when `impl` is not given" in " ".join(run.stdout.split())
    monkeypatch.setenv("SBNREF_IMPL", "gpu")
    assert "got 'gpu'" in " ".join(cli("info").stdout.split())


def test_a_missing_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for version, shown in (("13.0", True), (None, False)):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert ("PyTorch sees no CUDA GPU" in " ".join(cli("info").stdout.split())) == shown


@pytest.mark.parametrize(("value", "on"), [("1", True), ("true", True), ("0", False), ("", False), ("Off", False)])
def test_flags_have_words_for_no(value, on, monkeypatch):
    monkeypatch.setenv("SBNREF_CUDASIM", value)
    assert build.simulated() == on


@pytest.mark.parametrize("shape", ["4", "x", "4,0", "-1,2", "4,"])
@pytest.mark.parametrize("command", [["info", "--shape"], ["lab", "traffic", "--"]])
def test_shapes_are_refused_in_a_sentence(command, shape, monkeypatch):
    monkeypatch.setenv("SBNREF_CUDASIM", "0")  # the command traffic sets this variable
    said = "expected a shape N,C,* such as 4,8,16,16, where only N may be 0, got"
    assert refused(*command, shape) == f"sbnref: {said} {shape!r}"


def test_as_json(monkeypatch, tmp_path):
    (tmp_path / "sbnref_library").mkdir()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("SBNREF_CUDASIM", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    data = json.loads(cli("info", "--json").stdout)
    assert data["impls"]["reference"]["cpu"] is None
    assert "SBNREF_CUDASIM=1" in data["impls"]["cuda"]["cpu"]
    assert data["toolkit"].startswith(f"none: PyTorch {torch.__version__} was built without CUDA")
    assert data["build_cache"] == str(tmp_path)
    assert data["built"] == ["sbnref_library"]
    assert data["variables"]["TORCH_EXTENSIONS_DIR"] == str(tmp_path)


@pytest.mark.slow
@pytest.mark.ranks(2, "simulated")
def test_launch_plans_and_traffic_of_a_shape():
    plans = json.loads(cli("info", "--shape", "8,4,5,5", "--json").stdout)["plans"]
    assert plans["forward"]["layout"] == "short runs"
    assert "(8, 4, 5, 5) float32: 1 block of" in " ".join(cli("info", "--shape", "8,4,5,5").stdout.split())
    with pytest.raises(ValueError, match=r"at least one channel, got shape \(4, 0\)"):
        launch_plan(torch.empty(4, 0))
    message = "launch_plan: expected less than 16 GiB per channel and sample"
    assert message in cli("info", "--shape", "1,2,99999999999", code=2).stderr
    stages = json.loads(cli("lab", "traffic", "8,4,16,16", "--json").stdout)["stages"]
    assert [stage["launches"] for stage in stages] == [1, 1, 1, 1]
    shown = cli("lab", "traffic", "8,4,16,16", "--dtype", "float16", "--channels-last").stdout
    assert "float16, channels-last" in shown
    assert "backward_apply" in shown
