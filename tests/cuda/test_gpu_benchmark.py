"""What benchmarks/gpu.py and gpu_check.py do without a GPU: the peer's kernels, the parts, simulated; the reports."""

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

import sbnref
from sbnref.impls.build import CSRC, SIMULATION_FLAGS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str):
    """One of the scripts, as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu():
    return benchmark("gpu")


@pytest.fixture
def simulated_peer(gpu, tmp_path, monkeypatch):
    """``gpu.MMCV`` on CPU tensors, alone."""
    library = tmp_path / "mmcv.so"
    flags = ["-std=c++17", "-shared", "-fPIC", *SIMULATION_FLAGS, f"-I{CSRC}"]
    includes = [argument for folder in include_paths() for argument in ("-isystem", folder)]
    sources = [str(CSRC / "sim" / "cudasim.cpp"), "-x", "c++", str(BENCHMARKS / "mmcv_passes.cu")]
    subprocess.run(["c++", *flags, *includes, *sources, "-o", str(library)], check=True)
    monkeypatch.setattr(gpu.MMCV, "library", ctypes.CDLL(str(library)))
    monkeypatch.setattr("torch.cuda.current_stream", lambda: type("Stream", (), {"cuda_stream": 0}))
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor)
    return gpu.MMCV.apply


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_peer_computes_a_batch_norm(simulated_peer, dtype):
    torch.manual_seed(0)
    x, dy = torch.randn(2, 5, 3, 7, 7, dtype=dtype)
    weight, bias = torch.rand(2, 3)
    results = []
    for layer in (
        lambda x, w, b, *running: simulated_peer(x, w, b, *running),
        lambda x, w, b, *running: sbnref.functional.sync_batch_norm(x, *running, w, b, training=True),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        running = torch.zeros(3), torch.ones(3)
        y = layer(*leaves, *running)
        results.append((y, *torch.autograd.grad(y, leaves, dy), *running))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-2 if dtype != torch.float32 else 1e-4, atol=1e-2)


def test_the_report_names_the_worst_case(gpu):
    rows = [
        {
            "layer": layer,
            "median": median,
            "shape": shape,
            "dtype": "float32",
            "layout": "contiguous",
            "what": "forward",
        }
        | {"over_floor": median, "floor": 1.0, "beyond_cache": shape == (2, 3)}
        for shape, medians in (((2, 3), (1.1, 3.3)), ((1, 3), (0.5, 0.4)))
        for layer, median in zip(("sbnref", "torch sync"), medians, strict=True)
    ]
    answers = gpu.verdicts(rows)
    assert answers["times as fast as torch sync"]["worst_case"][0] == "(1, 3)"
    assert not answers["times as fast as torch sync"]["met"]
    assert answers["over the floor, beyond the cache"]["met"]
    assert answers["over the floor, in cache"]["worst"] == 0.5
    table = list(gpu.lines(rows))
    assert len(table) == 4
    assert "3300000.0 ( 3.30)" in table[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("script", "message"), [("gpu", "needs the kernels on a GPU"), ("gpu_check", "needs a CUDA GPU")]
)
def test_without_a_gpu_it_says_so(script, message):
    run = subprocess.run((sys.executable, BENCHMARKS / f"{script}.py"), capture_output=True, text=True)
    assert run.returncode == 2
    assert message in run.stdout + run.stderr


@pytest.mark.parametrize("part", ["build", "operators", "reduce_overhead", "small_step"])
def test_a_part_of_the_check_simulated(part):
    command = (sys.executable, BENCHMARKS / "gpu_check.py", "--part", part)
    subprocess.run(command, check=True, env={**os.environ, "SBNREF_CUDASIM": "1"})


def test_a_part_that_fails_or_hangs_is_told_from_one_that_passes(capsys):
    check = benchmark("gpu_check")
    python = [sys.executable, "-c"]
    assert check.run("a", [*python, "print('fine')"], 30).status == "passed"
    failed = check.run("b", [*python, "raise SystemExit('broken')"], 30)
    assert (failed.status, failed.printed) == ("failed", "broken\n")
    assert check.run("c", [*python, "import time; time.sleep(30)"], 1).status == "timed out"
    assert "broken" in capsys.readouterr().out
