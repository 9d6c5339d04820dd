"""benchmarks/gpu.py and gpu_check.py without a GPU: the peer's kernels, simulated parts, time limits and reports."""

import contextlib
import ctypes
import importlib
import io
import os
import sys
import time
from datetime import datetime
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock, patch

import pytest
import sass
import torch
from kernels import ladder
from nvcc import FLAGS, compiled, needs_nvcc
from shared import gone, python
from torch.utils.cpp_extension import include_paths

import sbnref
from benchmarks import load
from benchmarks.results import tabulate
from sbnref.impls.build import CSRC
from sbnref.impls.simulation import compile_library

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str):
    """Import a benchmark script as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def gpu():
    return benchmark("gpu")


@pytest.fixture(scope="module")
def check():
    return benchmark("gpu_check")


# ---- the peer ----


@pytest.fixture
def simulated_peer(monkeypatch):
    """Run ``MMCV`` on CPU tensors in one process."""
    layers = benchmark("gpu_layers")
    flags = ["-DSBNREF_CUDASIM", *(f"-isystem{folder}" for folder in include_paths())]
    library = ctypes.CDLL(str(compile_library(BENCHMARKS / "mmcv_passes.cu", [CSRC], flags)))
    on_gpu = layers.MMCV.run

    def run(number, *tensors, **numbers):
        for tensor in tensors:
            library.cudasim_register(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.nbytes))
        on_gpu(number, *tensors, **numbers)
        library.cudasim_unregister()

    monkeypatch.setattr(layers.MMCV, "library", library)
    monkeypatch.setattr(layers.MMCV, "run", run)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: type("Stream", (), {"cuda_stream": 0}))
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor)
    return layers.MMCV.apply


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_peer_computes_a_batch_norm(simulated_peer, dtype):
    torch.manual_seed(0)
    x, dy = torch.randn(2, 5, 3, 7, 7, dtype=dtype)
    weight, bias = torch.rand(2, 3)
    results = []
    for layer in (
        simulated_peer,
        lambda x, w, b, *running: sbnref.functional.sync_batch_norm(x, *running, w, b, training=True),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        running = torch.zeros(3), torch.ones(3)
        y = layer(*leaves, *running)
        results.append((y, *torch.autograd.grad(y, leaves, dy), *running))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-2 if dtype != torch.float32 else 1e-4, atol=1e-2)


@needs_nvcc
def test_the_peers_loops_are_as_short_as_mmcvs(tmp_path, includes):
    """Compare with the instructions per float32 element of mmcv's kernels, compiled by nvcc 13.0 for an H100.

    The code after the loop differs from mmcv's and may cost one more instruction.
    """
    command = ["nvcc", *FLAGS, "-gencode=arch=compute_90,code=sm_90", *includes]
    compiled([*command, "-c", str(BENCHMARKS / "mmcv_passes.cu"), "-o", str(tmp_path / "peer.o")])
    codes = sass.kernels(tmp_path / "peer.o", "sm_90")
    for kernel, most in {"mean": 24, "var": 25, "output": 49, "param": 27, "data": 86}.items():
        (code,) = (code for name, code in codes.items() if f"{kernel}_kernelIfE" in name)
        assert sass.streaming_loop(code, narrowest=4).instructions <= most + 1, kernel


def test_the_peer_gets_contiguous_inputs(simulated_peer, monkeypatch):
    """mmcv supports no other layout, so inputs are copied before timing."""
    layers = benchmark("gpu_layers")
    x, dy = torch.randn(2, 2, 3, 4, 4).unbind()
    works = layers.mmcv_works([x.to(memory_format=torch.channels_last)], [dy.to(memory_format=torch.channels_last)])
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    y = works["forward"](0)
    torch.testing.assert_close(y, layers.cudnn(x, layers.Parameters(3, x.device)), rtol=1e-4, atol=1e-4)
    works["both"](0)


# ---- the parts ----

# Packages that a machine with a GPU may lack: it needs only PyTorch, pytest, ninja and pybind11.
ABSENT = ("typer", "rich", "covertable", "cloudpickle", "hypothesis", "sklearn", "matplotlib", "fairscale", "mmcv")
PARTS = ("build", "stages", "conformance", "determinism", "reduce_overhead", "operators", "large", "student")


@pytest.fixture
def bare(tmp_path):
    """Return an environment with simulated kernels and without the packages in ABSENT."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))")
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "SBNREF_CUDASIM": "1", "PYTHONPATH": os.pathsep.join(path)}


FEW = f"""
import pickle, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu_check, operator_checks, sbnref.conformance, stage_checks

stage_checks.SHAPES = [(9, 24, 14, 14)]
operator_checks.INPUTS = {{"matrix": operator_checks.INPUTS["matrix"]}}
cases = sbnref.conformance.cases()
pickle.dumps([case.check for case in cases])  # to send them to ranks without cloudpickle
sbnref.conformance.cases = {{case.world_size: case for case in cases}}.values
for part in sys.argv[1:]:
    gpu_check.PARTS[part]()
"""


def test_parts_run_on_the_simulation_without_more_packages(bare):
    """Run each part on fewer inputs than the other tests in this folder, which run the same checks."""
    python("-c", FEW, *PARTS, "small_step", "profiled", env=bare)


def report(check):
    """Return a report like ncu's: eight kernels per case, and a line per counter."""
    names = ("forward_stats", "forward_apply", "forward_stats", "backward_stats")
    names += ("forward_stats", "forward_apply", "backward_stats", "backward_apply")
    lines = ["==PROF== Connected to process 1", '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    for i in range(8 * len(check.profiled_cases())):
        name = f"void {names[i % 8]}_kernel<Half>(Plan)"
        lines += [f'"{i}","{name}","{metric}","","1,000.5"' for metric in check.METRICS]
    return "\n".join(lines)


def test_ncu_prints_each_kernels_counters_and_leaves_the_cache_as_it_finds_it(check, tmp_path, monkeypatch, capsys):
    def run(command, check):
        called.extend(command)
        (tmp_path / "out-ncu.csv").write_text(text)

    called, text = [], report(check)
    monkeypatch.setattr(check, "nvidia_tool", lambda name: f"/bin/{name}")
    monkeypatch.setattr(check.subprocess, "run", run)
    check.ncu(tmp_path / "out.json")
    assert called[:5] == ["/bin/ncu", "--replay-mode", "application", "--cache-control", "none"]
    assert called[-2:] == ["--part", "profiled"]
    printed = capsys.readouterr().out
    assert len(printed) < check.KEPT
    heading, *lines = printed.splitlines()
    assert "L2 hit %" in heading
    assert len(lines) == 4 * 6 * 2
    assert lines[0].split()[:6] == ["(2,", "256,", "200,", "304)", "first", "forward_stats"]
    assert lines[-1].split()[-9:] == ["last", "backward_apply", *["1000"] * len(check.METRICS)]


def test_a_report_without_all_counters_is_no_success(check):
    text = report(check)
    without_a_counter, without_a_kernel = text.replace("dram__bytes_read.sum", ""), text.partition('"95"')[0]
    for damaged in (without_a_counter, without_a_kernel, "==ERROR== ERR_NVGPUCTRPERM"):
        with pytest.raises((KeyError, ValueError)):
            check.counters(damaged)


def test_what_does_not_fit_is_skipped(check, monkeypatch, capsys):
    monkeypatch.setattr(check, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**30))
    with pytest.raises(SystemExit) as ended:
        check.large()
    assert ended.value.code == check.SKIPPED
    assert capsys.readouterr().out == "2147483656 elements take 14 GiB of the GPU's memory, and 1 are free\n"


def checked_without_a_gpu() -> None:
    """Run the GPU-only checks on CPU tensors and simulated kernels, with stand-ins for CUDA's features."""
    import runtime_checks as checks

    def on_cpu(make):
        return lambda *args, device, **options: make(*args, **options)

    driver = MagicMock()
    driver.cuMemAlloc_v2.side_effect = [0, 0, 2] * 22  # two pieces of each size
    here = {
        torch: {name: on_cpu(getattr(torch, name)) for name in ("randn", "empty", "zeros")},
        torch.cuda: {
            **dict.fromkeys(("Stream", "set_stream", "synchronize", "_sleep"), lambda *args: None),
            "stream": contextlib.nullcontext,
            "CUDAGraph": MagicMock,
        },
        checks: {"SHAPE": (4, 3, 5, 5), "SyncBatchNorm": on_cpu(checks.SyncBatchNorm)},
        ctypes: {"CDLL": lambda name: driver},
    }
    with contextlib.ExitStack() as patches:
        for module, attributes in here.items():
            patches.enter_context(patch.multiple(module, **attributes))
        for run in (checks.no_memory, checks.two_streams, checks.other_capture):
            run()
    assert driver.cuMemFree_v2.call_count == 44


def test_what_only_a_gpu_has_is_checked_by_code_that_runs(simulation):
    simulation(checked_without_a_gpu)


# ---- running them ----


def test_how_a_part_went(check, capsys):
    shell = ["sh", "-c"]
    assert check.run("a", [*shell, "echo fine"], 30).status == "passed"
    failed = check.run("b", [*shell, "echo broken; exit 3"], 30)
    assert (failed.status, failed.printed) == ("failed", "broken\n")
    assert check.run("c", [*shell, "echo too small; exit 77"], 30).status == "skipped"
    assert check.run("d", [*shell, 'test "$ONE" = 1'], 30, {"ONE": "1"}).status == "passed"
    said = capsys.readouterr().out
    assert "broken" in said
    assert "too small" in said
    assert "fine" not in said


@pytest.mark.parametrize("end", ["", "; wait"])
def test_what_a_part_leaves_running_is_ended(check, tmp_path, end):
    """The part exits or times out while its child process holds the output open."""
    command = ["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/pid{end}"]
    outcome = check.run("part", command, 2)
    assert outcome.status == ("timed out" if end else "passed")
    assert outcome.seconds < 20
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.fixture
def parts(check, monkeypatch):
    """Return ``parts(takes, call)``: run a call on a fake clock; each part takes ``takes`` seconds, up to its limit."""

    def all_of(takes, call="correctness", **statuses):
        now, runs, outcomes = 0.0, [], {}

        def run(part, command, limit, environment):
            nonlocal now
            seconds = min(takes, limit)
            now += seconds
            runs.append((part, command, limit, environment))
            status = "passed" if seconds == takes else "timed out"
            return check.Outcome(part, statuses.get(part, status), seconds, "")

        monkeypatch.setattr(check, "run", run)
        monkeypatch.setattr(check, "nvidia_tool", lambda name: f"/bin/{name}")
        monkeypatch.setattr(check.time, "monotonic", lambda: now)
        check.check_all(check.parts_of(call), check.SECONDS, outcomes, Path("out.json"))
        monkeypatch.undo()
        return outcomes, runs

    return all_of


@pytest.mark.parametrize("call", ["correctness", "half", "wide"])
@pytest.mark.parametrize("takes", [1, 60, 1000])
def test_a_call_takes_ten_minutes_at_most(check, parts, takes, call):
    outcomes, runs = parts(takes, call)
    assert list(outcomes) == list(check.CALLS[call])
    assert sum(outcome.seconds for outcome in outcomes.values()) <= check.SECONDS < 600
    for part, _, limit, _ in runs:
        assert check.LEAST_SECONDS <= limit <= check.LIMITS[part]
    if takes == 1:
        assert {outcome.status for outcome in outcomes.values()} == {"passed"}


def test_the_commands_of_benchmarks_and_tools(check, parts):
    """The tools look at our kernels alone, without PyTorch's cache, which hides the ends of tensors."""
    _, runs = parts(1, "half,wide")
    calls = {part: (command, environment) for part, command, _, environment in runs}
    assert calls["float32"][0][-6:-2] == ["--dtypes", "float32", "--output", "out-float32.json"]
    assert calls["ncu"][0][-4:] == ["--part", "ncu", "--output", "out.json"]
    for tool in check.SANITIZERS:
        command, environment = calls[tool]
        assert command[:3] == ["/bin/compute-sanitizer", "--tool", tool]
        assert "kns=sbnref" in command
        assert command[-2:] == ["--part", "small_step"]
        assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def test_without_the_kernels_nothing_else_is_tried(parts):
    outcomes, runs = parts(1, build="failed")
    assert [part for part, *_ in runs] == ["build"]
    assert {outcome.status for part, outcome in outcomes.items() if part != "build"} == {"left out"}


def test_on_the_simulation_only_parts_that_need_a_gpu_are_skipped(check, parts, monkeypatch):
    monkeypatch.setenv("SBNREF_CUDASIM", "1")
    outcomes, runs = parts(1, ",".join(check.CALLS))
    assert {part for part, *_ in runs} == set(PARTS)
    skipped = {(outcome.status, outcome.printed) for part, outcome in outcomes.items() if part not in PARTS}
    assert skipped == {("skipped", "a GPU is not here")}


def test_a_later_call_replaces_its_parts_in_the_file(tmp_path, bare):
    command = (BENCHMARKS / "gpu_check.py", "--device", "cpu", "--output", tmp_path / "out.json", "--only")
    for only in ("build,memcheck", "memcheck"):
        python(*command, only, env=bare)
    rows = load(tmp_path / "out.json").notes["checks"]
    assert [(row["part"], row["status"]) for row in rows] == [("build", "passed"), ("memcheck", "skipped")]
    assert "got 'buid'" in python(*command, "buid", code=2).stderr


def test_on_a_gpu_skipped_is_not_passed_and_the_calls_of_a_day_share_a_file(check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(check, "nvidia_tool", lambda name: None)
    monkeypatch.setattr(check, "HERE", tmp_path)
    for hour, part in enumerate(("memcheck", "racecheck")):
        now = datetime(2030, 1, 2, hour)
        monkeypatch.setattr(check, "datetime", SimpleNamespace(now=lambda now=now: now))
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--only", part])
        assert check.main() == 1
        assert "compute-sanitizer is not here" in capsys.readouterr().out
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == "a-gpu-2030-01-02-checks.json"
    assert {row["part"] for row in load(file).notes["checks"]} == {"memcheck", "racecheck"}


TERMINATED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import gpu_check
sys.executable = sys.argv.pop(1)
sys.exit(gpu_check.main())
"""


def test_a_terminated_check_writes_outcomes_and_leaves_no_process(tmp_path):
    part, pid, output = tmp_path / "part", tmp_path / "pid", tmp_path / "out.json"
    part.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {pid}\nsleep 1\nkill $PPID\nwait\n")
    part.chmod(0o755)
    options = ("--device", "cpu", "--only", "build,stages", "--output", output)
    done = python("-c", TERMINATED, BENCHMARKS, part, *options, code=1)
    assert "ended by SIGTERM" in done.stderr
    assert gone(int(pid.read_text()))
    found = [(row["part"], row["status"]) for row in load(output).notes["checks"]]
    assert found == [("build", "left out"), ("stages", "left out")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("script", "message"), [("gpu", "needs the kernels on a GPU"), ("gpu_check", "needs a CUDA GPU")]
)
def test_without_a_gpu_it_says_so(script, message):
    run = python(BENCHMARKS / f"{script}.py", code=2)
    assert message in run.stdout + run.stderr


# ---- the benchmark ----


def made_up_floor(gpu, **launch: float):
    """Return a floor of 1 TB/s and the given seconds per launch, without measuring a GPU."""
    floor = gpu.Floor.__new__(gpu.Floor)
    floor.bandwidth, floor.launch, floor.collectives = 1e12, launch, {}
    return floor


def test_a_floor_is_traffic_and_launches_and_for_a_step_its_collective(gpu):
    floor = made_up_floor(gpu, eager=2e-6, graph=1e-6)
    floor.collectives = {(8, "eager"): 1e-5, (8, "graph"): 5e-6}
    assert floor(3_000_000, 2, "graph") == pytest.approx(3e-6 + 2e-6)
    assert floor(3_000_000, 2, "eager", 1, 8) == pytest.approx(3e-6 + 4e-6 + 1e-5)
    assert floor(8_000_000, 4, "graph", 2, 8) == pytest.approx(8e-6 + 4e-6 + 1e-5)
    assert floor.notes()["collectives"][0] == {"channels": 8, "timing": "eager", "seconds": 1e-5}


def test_every_input_is_in_a_sample_and_the_cache_does_not_hold_them(gpu):
    for size in (1e4, 1e6, 1e8, 1e10):
        copies, repetitions = gpu.counts(int(size), 50_000_000, 3e12)
        assert copies == 32 or copies * size >= 3 * 50_000_000
        assert repetitions >= copies


def test_a_replay_is_divided_among_the_calls_that_it_holds(gpu, monkeypatch):
    graph, capture, work = Mock(), MagicMock(), Mock()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
    monkeypatch.setattr(gpu, "eager_seconds", lambda work, repetitions: [8.0 for _ in range(repetitions) if work(0)])
    assert gpu.graph_seconds(work, 4) == [2.0]
    capture.assert_called_once_with(graph, stream="stream", capture_error_mode="thread_local")
    assert work.call_args_list == [((i,),) for i in range(4)]
    graph.replay.assert_called_once_with()


def measured_here(folder: Path) -> tuple[int, str]:
    """Run ``gpu.py`` on CPU tensors with simulated kernels; only the host is timed, and no graph is captured."""
    gpu = benchmark("gpu")
    why_not, tensor, host_seconds = gpu.cuda.why_not, gpu.tensor, gpu.host_seconds
    floor = made_up_floor(gpu, eager=1e-6, graph=1e-6)
    floor.collectives = {(6, "eager"): 1e-5, (6, "graph"): 1e-5}
    chip = SimpleNamespace(L2_cache_size=1000, multi_processor_count=4, max_threads_per_multi_processor=2048)
    failure = RuntimeError("not permitted when stream is capturing\nmore")

    def eager(work, repetitions):
        return [float(work(i) is None) + 1 for i in range(repetitions)]

    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        patch.multiple(
            gpu,
            Floor=lambda: floor,
            build_mmcv=Mock(side_effect=RuntimeError("no nvcc")),
            tensor=lambda *case: tensor(*case, device="cpu"),
            SECONDS={"eager": eager, "graph": Mock(side_effect=chain([failure], repeat([1.0, 2.0, 3.0])))},
            eager_seconds=eager,
            LADDER_SHAPES=((4, 6, 5, 5),),
            cases_of=lambda dtypes: [((4, 6, 5, 5), torch.float32, True)],
            host_seconds=lambda work, repetitions: host_seconds(work, 1),
        ),
        patch.multiple(gpu.dist, init_process_group=Mock(), destroy_process_group=Mock()),
        patch.object(gpu.cuda, "why_not", lambda device: why_not(torch.device("cpu"))),
        patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")),
        patch.multiple(torch.cuda, Stream=Mock(), stream=MagicMock(), synchronize=Mock()),
        patch.multiple(torch.cuda, get_device_name=lambda: "A GPU", get_device_properties=lambda device: chip),
        patch.object(sys, "argv", ["gpu.py", "--seconds", "101", "--output", str(folder / "gpu.json")]),
    ):
        return gpu.main(), printed.getvalue()


def test_the_benchmark_measures_every_layer_on_a_shape(gpu, simulation, tmp_path):
    status, printed = simulation(measured_here, tmp_path)
    assert status == 1, "a layer was not captured"
    rows, notes = (results := load(tmp_path / "gpu.json")).rows, results.notes
    of = {(row["layer"], row["what"]): row for row in rows if row["suite"] == "gpu"}
    assert {what for layer, what in of if layer == "sbnref's kernels"} == {
        f"{what}, {timing}" for what in gpu.PASSES.keys() - {"both"} for timing in ("eager", "graph")
    }
    eager = {"forward, eager", "backward, eager", "both, eager"}
    assert {what for layer, what in of if layer == "sbnref"} == eager, "captured no more after the first failure"
    assert {what for layer, what in of if layer == "sbnref, ReLU"} > eager
    assert {what for layer, what in of if layer == "compiled BN, ReLU"} > {"forward, eager", "both, eager"}
    assert of["sbnref", "both, eager"]["layout"] == "channels_last"
    assert of["sbnref", "both, eager"]["beyond_cache"]
    traffic = 4 * 6 * 25 * 4 / 1e12
    assert of["sbnref's kernels", "forward, eager"]["floor"] == pytest.approx(3 * traffic + 2e-6)
    assert of["sbnref's kernels", "backward apply, eager"]["floor"] == pytest.approx(3 * traffic + 1e-6)
    assert of["sbnref", "both, eager"]["floor"] == pytest.approx(8 * traffic + 4e-6 + 2e-5)
    assert of["F.batch_norm", "both, eager"]["floor"] == pytest.approx(8 * traffic + 4e-6)
    errors = {(failure["layer"], failure["error"]) for failure in notes["failures"]}
    assert errors >= {("mmcv's algorithm", "no nvcc"), ("sbnref", "not permitted when stream is capturing")}
    assert not notes["verdicts"]["everything was measured"]["met"]

    hosts = {(row["layer"], row["what"]) for row in rows if row["suite"] == "host"}
    assert hosts >= {("sbnref in one process", "both"), ("F.batch_norm", "forward"), ("sbnref", "both")}
    assert "host's time: sbnref in one process, both: " in printed
    assert all("floor" not in row for row in rows if row["suite"] == "host")

    rungs = [row for row in rows if row["suite"] == "ladder"]
    assert [row["layer"] for row in rungs] == list(ladder.RUNGS)
    assert [row["layout"] for row in rungs] == ["contiguous"] * 6 + ["channels_last"] + ["contiguous"] * 2
    _, inputs = tabulate(rungs)
    assert sum(map(len, inputs.values())) == len(rungs)


def rows_of(*measured: tuple[str, str, float, float, tuple[int, ...]]) -> list[dict]:
    """Return rows made from tuples (layer, what, median, over the floor, shape)."""
    about = {"suite": "gpu", "dtype": "float32", "layout": "contiguous", "traffic": 1.0}
    names = ("layer", "what", "median", "over_floor", "shape")
    return [{**about, **dict(zip(names, row, strict=True)), "beyond_cache": row[-1] == (2, 3)} for row in measured]


def test_the_report_names_the_worst_case(gpu):
    rows = rows_of(
        ("sbnref", "forward, eager", 1.1, 1.1, (2, 3)),
        ("torch sync", "forward, eager", 3.3, 3.3, (2, 3)),
        ("sbnref", "forward, eager", 0.5, 0.5, (1, 3)),
        ("torch sync", "forward, eager", 0.4, 0.4, (1, 3)),
        ("sbnref", "forward, graph", 0.1, 1.2, (2, 3)),
        ("sbnref's kernels", "forward, graph", 0.1, 0.9, (1, 3)),
        ("sbnref's kernels", "forward stats, graph", 0.1, 9.0, (1, 3)),
        ("F.batch_norm", "forward, graph", 0.2, 1.0, (1, 3)),
    )
    answers = gpu.verdicts(rows, [], [])
    eager = answers["times as fast as torch sync, eager"]
    assert eager["worst_case"][0] == "(1, 3)"
    assert eager["worst"] == pytest.approx(0.8)
    assert eager["geometric_mean"] == pytest.approx((3 * 0.8) ** 0.5)
    assert not eager["met"]
    assert answers["sbnref over its floor, beyond the cache, eager"]["met"]
    assert not answers["sbnref over its floor, beyond the cache, graph"]["met"]
    within = answers["sbnref's kernels in cache, times as fast as F.batch_norm, graph"]
    assert within["worst"] == 2.0, "of a pass, not of one kernel"
    assert within["met"]
    assert not answers["sbnref's kernels in cache, times as fast as F.batch_norm, eager"]["met"]
    table = list(gpu.lines(rows))
    assert "3300000.0 ( 3.30)" in next(line for line in table if line.startswith("(2, 3)"))
    assert any(line.startswith("graph: captured in a CUDA graph") for line in table)


def test_like_is_compared_with_like_and_what_is_missing_is_no_success(gpu):
    nothing = gpu.verdicts([], [], [])
    assert nothing
    assert not any(answer["met"] for answer in nothing.values())
    assert all(answer["missing"] for answer in nothing.values())

    ours = [("sbnref", f"forward, {timing}", 1.0, 1.0, (2, 3)) for timing in ("eager", "graph")]
    slower = ("torch sync", "forward, eager", 9.0, 9.0, (2, 3))
    answers = gpu.verdicts(rows_of(*ours, slower), [], [])
    assert answers["times as fast as torch sync, eager"]["met"]
    assert answers["times as fast as torch sync, graph"]["missing"] == "no case was measured with both"

    answers = gpu.verdicts(rows_of(*ours, ("sbnref", "forward, eager", 1.0, 1.0, (1, 3)), slower), [], [])
    partly = answers["times as fast as torch sync, eager"]
    assert not partly["met"]
    assert partly["missing"] == [("(1, 3)", "float32", "contiguous", "forward, eager")]
    for failures, left_out in (([{"layer": "x"}], []), ([], [(1, 3)])):
        assert not gpu.verdicts(rows_of(*ours), failures, left_out)["everything was measured"]["met"]
    assert gpu.verdicts(rows_of(*ours), [], [])["everything was measured"]["met"]


def test_an_interruption_loses_one_shape_and_the_deadline_none(gpu, tmp_path, monkeypatch):
    shapes = [(2, 3), (1, 3), (4, 3)]
    cases = [(shape, torch.float32, False) for shape in shapes]
    run = gpu.Benchmark(made_up_floor(gpu, eager=1e-6), cases, tmp_path / "r.json")
    run.run(time.perf_counter() - 1)
    assert len(load(tmp_path / "r.json").notes["left_out"]) == 3

    def measure(shape, dtype, channels_last):
        if shape == (4, 3):
            raise KeyboardInterrupt
        yield from rows_of(("sbnref", "forward, eager", 1.0, 1.0, shape))

    monkeypatch.setattr(run, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run.run(time.perf_counter() + 100)
    kept = load(tmp_path / "r.json")
    assert [tuple(row["shape"]) for row in kept.rows] == shapes[:2]
    assert kept.notes["left_out"] == [[[4, 3], "torch.float32", False]]
    assert not kept.notes["verdicts"]["everything was measured"]["met"]
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_matrices_have_one_layout_and_narrow_shapes_are_measured_in_float16(gpu):
    assert [len(gpu.cases_of([dtype])) for dtype in ("float16", "float32")] == [25 + len(gpu.NARROW), 25]
