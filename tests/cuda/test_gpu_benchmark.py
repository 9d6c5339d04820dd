"""benchmarks/gpu.py and gpu_check.py without a GPU: the peer's kernels, simulated parts, time limits and reports."""

import contextlib
import ctypes
import importlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import sass
import torch
from nvcc import FLAGS, compiled, needs_nvcc
from torch.utils.cpp_extension import include_paths

import sbnref
from benchmarks import load
from sbnref.conformance import cases
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
            library.cudasim_lend(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.nbytes))
        on_gpu(number, *tensors, **numbers)
        library.cudasim_take_back()

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
        lambda x, w, b, *running: simulated_peer(x, w, b, *running),
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
    limits = {"mean": 24, "var": 25, "output": 49, "param": 27, "data": 86}
    command = ["nvcc", *FLAGS, "-gencode=arch=compute_90,code=sm_90", *includes]
    compiled([*command, "-c", str(BENCHMARKS / "mmcv_passes.cu"), "-o", str(tmp_path / "peer.o")])
    codes = sass.kernels(tmp_path / "peer.o", "sm_90")
    for kernel, most in limits.items():
        (code,) = (code for name, code in codes.items() if f"{kernel}_kernelIfE" in name)
        loop = sass.streaming_loop(code, narrowest=4)
        assert loop.instructions <= most + 1, f"{kernel}: {loop}"


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


@pytest.fixture
def bare(tmp_path):
    """Return an environment with simulated kernels and without the packages in ABSENT."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))")
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "SBNREF_CUDASIM": "1", "PYTHONPATH": os.pathsep.join(path)}


@pytest.mark.parametrize(
    "part",
    [
        "build",
        "stages",
        "conformance",
        "determinism",
        "operators",
        "reduce_overhead",
        "small_step",
        "large",
        "student",
        "profiled",
    ],
)
def test_a_part_of_the_check_simulated(part, bare):
    subprocess.run((sys.executable, BENCHMARKS / "gpu_check.py", "--part", part), check=True, env=bare)


def test_the_parts_that_are_not_simulated_are_skipped_for_want_of_a_gpu(check, parts, monkeypatch, capsys):
    monkeypatch.setenv("SBNREF_CUDASIM", "1")
    simulated = {"build", "stages", "conformance", "determinism", "operators", "reduce_overhead", "large", "student"}
    outcomes, runs = parts(1, ",".join(check.CALLS))
    assert {part for part, *_ in runs} == simulated
    assert {outcome.status for part, outcome in outcomes.items() if part not in simulated} == {"skipped"}
    assert {outcome.printed for part, outcome in outcomes.items() if part not in simulated} == {"a GPU is not here"}


def checked_without_a_gpu() -> None:
    """Run the GPU-only checks on CPU tensors and simulated kernels, with stand-ins for CUDA's features."""
    import runtime_checks as checks

    class Graph:
        capture_begin = capture_end = replay = lambda self, **options: None

    class Driver:
        given = iter([0, 0, 2] * 22)  # two pieces of each size
        freed = 0

        def cuMemAlloc_v2(self, address, size):
            return next(self.given)

        def cuMemFree_v2(self, address):
            self.freed += 1

    def fails_once(x, weight, calls=[]):  # noqa: B006
        calls.append(x)
        if len(calls) == 1:
            raise RuntimeError("forward_stats: CUDA error: out of memory")
        return forward_stats(x, weight)

    def on_cpu(make):
        return lambda *args, device, **options: make(*args, **options)

    driver, forward_stats = Driver(), checks.cuda.forward_stats
    here = {
        torch: {name: on_cpu(getattr(torch, name)) for name in ("randn", "empty", "zeros")},
        torch.cuda: {
            **dict.fromkeys(("Stream", "set_stream", "synchronize", "_sleep"), lambda *args: None),
            "stream": contextlib.nullcontext,
            "CUDAGraph": Graph,
        },
        checks: {"SHAPE": (4, 3, 5, 5), "SyncBatchNorm": on_cpu(checks.SyncBatchNorm)},
        checks.cuda: {"forward_stats": fails_once},
        ctypes: {"CDLL": lambda name: driver},
    }
    with pytest.MonkeyPatch.context() as patch:
        for module, attributes in here.items():
            for name, value in attributes.items():
                patch.setattr(module, name, value)
        checks.no_memory()
        assert driver.freed == 44
        checks.two_streams()
        checks.other_capture()


def test_what_only_a_gpu_has_is_checked_by_code_that_runs(check, simulation):
    simulation(checked_without_a_gpu)


def report(check, skip=""):
    """Return a report like ncu's: eight kernels per case, and a line per counter."""
    names = ("forward_stats", "forward_apply", "forward_stats", "backward_stats")
    names += ("forward_stats", "forward_apply", "backward_stats", "backward_apply")
    lines = ["==PROF== Connected to process 1", '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    for i in range(8 * len(check.profiled_cases())):
        name = f"void {names[i % 8]}_kernel<Half>(Plan)"
        lines += [f'"{i}","{name}","{metric}","","1,000.5"' for metric in check.METRICS if metric != skip]
    return "\n".join(lines)


def test_each_kernel_has_a_line_of_counters(check):
    heading, *lines = check.counters(report(check))
    assert "L2 hit %" in heading
    assert len(lines) == 4 * 6 * 2
    assert lines[0].split()[:6] == ["(2,", "256,", "200,", "304)", "first", "forward_stats"]
    assert lines[-1].split()[-9:] == ["last", "backward_apply", *["1000"] * len(check.METRICS)]
    assert len("\n".join([heading, *lines])) < check.KEPT


@pytest.mark.parametrize("damage", ["one counter", "one kernel", "no permission"])
def test_a_report_without_all_counters_is_no_success(check, damage):
    text = report(check, skip="dram__bytes_read.sum" if damage == "one counter" else "")
    if damage == "one kernel":
        text = text[: text.rindex('"95"')]
        text = "\n".join(line for line in text.splitlines() if not line.startswith('"95"'))
    if damage == "no permission":
        text = "==ERROR== ERR_NVGPUCTRPERM"
    with pytest.raises((KeyError, ValueError)):
        check.counters(text)


def test_the_profiler_leaves_the_cache_as_it_finds_it(check, tmp_path, monkeypatch, capsys):
    called = []

    def run(command, check):
        called.extend(command)
        (tmp_path / "out-ncu.csv").write_text(text)

    text = report(check)
    monkeypatch.setattr(check, "nvidia_tool", lambda name: f"/bin/{name}")
    monkeypatch.setattr(check.subprocess, "run", run)
    check.ncu(tmp_path / "out.json")
    assert called[:5] == ["/bin/ncu", "--replay-mode", "application", "--cache-control", "none"]
    assert called[-2:] == ["--part", "profiled"]
    assert "backward_apply" in capsys.readouterr().out


def test_the_suite_and_the_benchmark_do_without_what_is_absent(bare):
    for case in cases():
        pickle.dumps(case.check)  # carries the check to the ranks without cloudpickle
    script = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu, sbnref.conformance"
    subprocess.run((sys.executable, "-c", script), check=True, env=bare)


def test_what_does_not_fit_is_skipped(check, monkeypatch, capsys):
    monkeypatch.setattr(check, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**30))
    with pytest.raises(SystemExit) as ended:
        check.large()
    assert ended.value.code == check.SKIPPED
    assert capsys.readouterr().out == "2147483656 elements take 14 GiB of the GPU's memory, and 1 are free\n"


# ---- running them ----


def gone(pid: int) -> bool:
    """Return whether a process ends within a few seconds; a zombie counts as ended."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


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

    def all_of(takes, call="correctness", tools=True, **statuses):
        now, runs, outcomes = 0.0, [], {}

        def run(part, command, limit, environment):
            nonlocal now
            seconds = min(takes, limit)
            now += seconds
            runs.append((part, command, limit, environment))
            status = "passed" if seconds == takes else "timed out"
            return check.Outcome(part, statuses.get(part, status), seconds, "")

        monkeypatch.setattr(check, "run", run)
        monkeypatch.setattr(check, "nvidia_tool", lambda name: f"/bin/{name}" if tools else None)
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


def test_each_benchmark_has_a_file_of_its_own(parts):
    _, runs = parts(1, "half,wide")
    commands = {part: command for part, command, *_ in runs}
    assert commands["float32"][-6:-2] == ["--dtypes", "float32", "--output", "out-float32.json"]
    assert commands["ncu"][-4:] == ["--part", "ncu", "--output", "out.json"]


def test_the_tools_look_at_our_kernels_where_no_cache_hides_the_ends_of_tensors(check, parts):
    _, runs = parts(1, ",".join(check.SANITIZERS))
    for part, command, _, environment in runs:
        assert command[:3] == ["/bin/compute-sanitizer", "--tool", part]
        assert "kns=sbnref" in command
        assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        assert command[-2:] == ["--part", "small_step"]
    assert len(runs) == 4


@pytest.mark.parametrize("status", ["failed", "timed out"])
def test_without_the_kernels_nothing_else_is_tried(parts, status):
    outcomes, runs = parts(1, "correctness", build=status)
    assert [part for part, *_ in runs] == ["build"]
    assert {outcome.status for part, outcome in outcomes.items() if part != "build"} == {"left out"}


def test_a_part_whose_tool_is_missing_is_skipped_and_does_not_count_as_passed(parts):
    outcomes, _ = parts(1, "memcheck,ncu", tools=False)
    assert {outcome.status for outcome in outcomes.values()} == {"skipped"}


def test_a_later_call_replaces_its_parts_in_the_file(tmp_path, bare):
    output = tmp_path / "out.json"
    command = (sys.executable, BENCHMARKS / "gpu_check.py", "--device", "cpu", "--output", output, "--only")
    for only in ("build,profiled", "memcheck,build"):
        subprocess.run((*command, only), check=True, env=bare)
    found = {row["part"]: row["status"] for row in load(output).notes["checks"]}
    assert found == {"build": "passed", "profiled": "passed", "memcheck": "skipped"}
    wrong = subprocess.run((*command, "buid"), capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "got 'buid'" in wrong.stderr


def test_on_a_gpu_skipped_is_not_passed(check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(check, "nvidia_tool", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--only", "memcheck", "--output", str(tmp_path / "out.json")])
    assert check.main() == 1
    assert "compute-sanitizer is not here" in capsys.readouterr().out


def test_the_calls_of_a_day_share_a_file(check, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(check, "nvidia_tool", lambda name: None)
    monkeypatch.setattr(check, "HERE", tmp_path)
    for hour, part in enumerate(("memcheck", "racecheck")):
        now = datetime(2030, 1, 2, hour)
        monkeypatch.setattr(check, "datetime", SimpleNamespace(now=lambda now=now: now))
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--only", part])
        check.main()
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == "a-gpu-2030-01-02-checks.json"
    assert {row["part"] for row in load(file).notes["checks"]} == {"memcheck", "racecheck"}


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
sys.path.insert(0, {benchmarks!r})
import gpu_check, torch
from pathlib import Path
torch.cuda.is_available, torch.cuda.get_device_name = lambda: True, lambda: "A GPU"
gpu_check.HERE = Path({folder!r}) / "benchmarks"
gpu_check.sys.executable = {folder!r} + "/part"
sys.argv = ["gpu_check.py"]
sys.exit(gpu_check.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_is_ended_leaves_results_and_no_process(tmp_path, number):
    part, pid = tmp_path / "part", tmp_path / "pid"
    part.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {pid}.new; mv {pid}.new {pid}; wait\n")
    part.chmod(0o755)
    script = INTERRUPTED.format(benchmarks=str(BENCHMARKS), folder=str(tmp_path))
    process = subprocess.Popen((sys.executable, "-c", script), stdout=-1, stderr=-1, text=True)
    try:
        while not pid.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "written to" in out
    assert gone(int(pid.read_text()))
    (file,) = (tmp_path / "benchmarks" / "results").iterdir()
    checks = load(file).notes["checks"]
    assert {outcome["status"] for outcome in checks} == {"left out"}
    assert file.name.startswith("a-gpu-")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("script", "message"), [("gpu", "needs the kernels on a GPU"), ("gpu_check", "needs a CUDA GPU")]
)
def test_without_a_gpu_it_says_so(script, message):
    run = subprocess.run((sys.executable, BENCHMARKS / f"{script}.py"), capture_output=True, text=True)
    assert run.returncode == 2
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
    calls, replays = [], []

    class Graph:
        def replay(self):
            replays.append(len(calls))

    class Capture:
        def __init__(self, graph, stream, capture_error_mode):
            assert (stream, capture_error_mode) == ("stream", "thread_local")

        def __enter__(self):
            assert not calls

        def __exit__(self, *_):
            assert calls == [0, 1, 2, 3]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
    monkeypatch.setattr(gpu, "eager_seconds", lambda work, n: [work(i) or 8.0 for i in range(n)])
    assert gpu.graph_seconds(calls.append, 4) == [2.0]
    assert replays == [4]


def measured_here(folder: Path) -> tuple[int, str]:
    """Run ``gpu.py`` on CPU tensors with simulated kernels; only the host is timed, and no graph is captured."""
    gpu = benchmark("gpu")
    why_not, tensor, host_seconds, compile = gpu.cuda.why_not, gpu.tensor, gpu.host_seconds, torch.compile

    def captured(work, repetitions):
        if "step_works" in getattr(work, "__qualname__", "") and isinstance(work(0), torch.Tensor):
            raise RuntimeError("not permitted when stream is capturing\nmore")
        return [1.0, 2.0, 3.0]

    floor = made_up_floor(gpu, eager=1e-6, graph=1e-6)
    floor._collective = lambda channels, timing: floor.collectives.setdefault((channels, timing), 1e-5)

    def no_peer():
        raise RuntimeError("no nvcc")

    def eager(work, repetitions):
        return [float(work(i) is None) + 1 for i in range(repetitions)]

    here = {
        gpu: {
            "Floor": lambda: floor,
            "build_mmcv": no_peer,
            "tensor": lambda *case: tensor(*case, device="cpu"),
            "SECONDS": {"eager": eager, "graph": captured},
            "LADDER_SHAPES": ((4, 6, 5, 5),),
            "cases_of": lambda dtypes: [((4, 6, 5, 5), torch.float32, True)],
            "host_seconds": lambda work, repetitions: host_seconds(work, 1),
        },
        gpu.dist: dict.fromkeys(("init_process_group", "destroy_process_group"), lambda *args, **options: None),
        gpu.cuda: {"why_not": lambda device: why_not(torch.device("cpu"))},
        torch: {"compile": lambda function, **options: compile(function, backend="aot_eager", **options)},
        torch.cuda: {
            "Stream": lambda: None,
            "synchronize": lambda: None,
            "stream": contextlib.nullcontext,
            "get_device_name": lambda: "A GPU",
            "get_device_properties": lambda _: type("GPU", (), {"L2_cache_size": 1000}),
        },
        sys: {"argv": ["gpu.py", "--seconds", "99", "--output", str(folder / "gpu.json")]},
    }
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        for module, attributes in here.items():
            for name, value in attributes.items():
                patch.setattr(module, name, value)
        return gpu.main(), said.getvalue()


@pytest.fixture(scope="module")
def measured(simulation, tmp_path_factory):
    """Return the output, the rows and the notes of ``gpu.py``."""
    folder = tmp_path_factory.mktemp("gpu")
    status, said = simulation(measured_here, folder)
    assert status == 1, "a layer was not captured"
    results = load(folder / "gpu.json")
    return said, results.rows, results.notes


def test_a_shape_is_measured_and_what_cannot_be_is_told(measured):
    _, rows, notes = measured
    failures, answers = notes["failures"], notes["verdicts"]
    of = {(row["layer"], row["what"]): row for row in rows if row["suite"] == "gpu"}
    single = [f"{way} {stage}" for way in ("forward", "backward") for stage in ("stats", "apply")]
    assert {what for layer, what in of if layer == "sbnref's kernels"} == {
        f"{what}, {timing}" for what in ("forward", "backward", *single) for timing in ("eager", "graph")
    }
    assert {what for layer, what in of if layer == "sbnref"} == {
        "forward, eager",
        "backward, eager",
        "both, eager",
    }, "captured no more after the first failure"
    assert of["sbnref", "both, eager"]["layout"] == "channels_last"
    traffic = 4 * 6 * 25 * 4 / 1e12
    assert of["sbnref's kernels", "forward, eager"]["floor"] == pytest.approx(3 * traffic + 2e-6)
    assert of["sbnref's kernels", "backward apply, eager"]["floor"] == pytest.approx(3 * traffic + 1e-6)
    assert of["sbnref", "both, eager"]["floor"] == pytest.approx(8 * traffic + 4e-6 + 2e-5)
    assert of["F.batch_norm", "both, eager"]["floor"] == pytest.approx(8 * traffic + 4e-6)
    assert of["sbnref", "both, eager"]["beyond_cache"]
    assert {"torch sync", "mmcv's algorithm", "sbnref"} <= {failure["layer"] for failure in failures}
    assert "not permitted when stream is capturing" in [failure["error"] for failure in failures]
    assert answers["times as fast as torch sync, eager"]["missing"] == "no case was measured with both"
    assert not answers["everything was measured"]["met"]


def test_layers_with_the_relu_that_follows_are_measured_forward_and_in_a_step(measured):
    _, rows, _ = measured
    whats = {row["what"] for row in rows if row["layer"] == "compiled BN, ReLU"}
    assert whats == {"forward, eager", "both, eager"}, "it is not captured here"
    assert {row["what"] for row in rows if row["layer"] == "sbnref, ReLU"} == {*whats, "backward, eager"}


def test_the_hosts_time_is_measured_apart(measured):
    said, rows, _ = measured
    hosts = {(row["layer"], row["what"]) for row in rows if row["suite"] == "host"}
    assert {("sbnref in one process", "both"), ("F.batch_norm", "forward"), ("sbnref", "both")} <= hosts
    assert "host's time: sbnref in one process, both: " in said
    assert all("floor" not in row for row in rows if row["suite"] == "host")


def rows_of(*measured: tuple[str, str, float, float, tuple[int, ...]]) -> list[dict]:
    """Return rows made from tuples (layer, what, median, over the floor, shape)."""
    return [
        {
            "suite": "gpu",
            "layer": layer,
            "what": what,
            "median": median,
            "over_floor": over,
            "shape": shape,
            "dtype": "float32",
            "layout": "contiguous",
            "traffic": 1.0,
            "beyond_cache": shape == (2, 3),
        }
        for layer, what, median, over, shape in measured
    ]


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
    answers = gpu.verdicts(rows_of(*ours, ("torch sync", "forward, eager", 9.0, 9.0, (2, 3))), [], [])
    assert answers["times as fast as torch sync, eager"]["met"]
    assert answers["times as fast as torch sync, graph"]["missing"] == "no case was measured with both"

    fast = ("torch sync", "forward, eager", 9.0, 9.0, (2, 3))
    partly = gpu.verdicts(rows_of(*ours, ("sbnref", "forward, eager", 1.0, 1.0, (1, 3)), fast), [], [])
    assert not partly["times as fast as torch sync, eager"]["met"]
    assert partly["times as fast as torch sync, eager"]["missing"] == [
        ("(1, 3)", "float32", "contiguous", "forward, eager")
    ]
    for failures, left_out in (([{"layer": "x"}], []), ([], [(1, 3)])):
        assert not gpu.verdicts(rows_of(*ours), failures, left_out)["everything was measured"]["met"]
    assert gpu.verdicts(rows_of(*ours), [], [])["everything was measured"]["met"]


def test_a_kill_loses_one_shape(gpu, tmp_path, monkeypatch):
    shapes = [(2, 3), (1, 3), (4, 3)]
    run = gpu.Benchmark(
        made_up_floor(gpu, eager=1e-6), [(shape, torch.float32, False) for shape in shapes], tmp_path / "r.json"
    )

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


def test_what_there_is_no_time_for_is_left_out(gpu, tmp_path):
    every = gpu.cases_of(["float16"])
    run = gpu.Benchmark(made_up_floor(gpu, eager=1e-6), list(every), tmp_path / "r.json")
    run.run(time.perf_counter() - 1)
    assert len(json.loads((tmp_path / "r.json").read_text())["notes"]["left_out"]) == len(every) == 29
    assert every[-1] == ((64, 144, 56, 56), torch.float16, True)
    assert len(gpu.cases_of(["float32"])) == 25
