"""Check and measure the CUDA kernels on a GPU: ``make gpu-check``, or ``python benchmarks/gpu_check.py``.

It installs nothing and needs no network, only PyTorch with CUDA, nvcc, pybind11 and pytest. Every part runs in its own
process under a time limit, so that a part that fails, hangs or crashes the GPU's context does not stop the others. The
parts form three calls of at most ten minutes each: ``--only correctness``, ``--only half``, ``--only wide``. Outcomes
go to ``benchmarks/results/<gpu>-<date>-checks.json``, or to ``--output``, and a later call adds its parts. Results of
benchmarks go to files beside it. The exit code is 0 if every part passed; a part that was skipped or left out did not.
``--device cpu`` runs the parts on the simulation, and may skip parts that need a GPU.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.extend(f"{sys.path[0]}/{folder}" for folder in ("benchmarks", "tests", "tests/cuda"))

import runtime_checks

from sbnref.impls.build import simulated

HERE = Path(__file__).resolve().parent
DEVICE = "cpu" if simulated() else "cuda"  # --device cpu sets SBNREF_CUDASIM=1 for the processes of the parts
SKIPPED = 77  # the exit code of a part that cannot run here, by the convention of automake and meson
KEPT = 6000  # characters of a part's output


@dataclass(frozen=True)
class Outcome:
    """The outcome of a part."""

    part: str
    status: str  # 'passed', 'failed', 'timed out', 'skipped' (cannot run here) or 'left out' (no time)
    seconds: float
    printed: str


# ---- the parts ----


def build() -> None:
    """Compile the kernels for this GPU, or find an earlier build."""
    from sbnref.impls import cuda

    print(cuda.operators().build_info())


def conformance() -> None:
    """Run the conformance suite on CUDA tensors: one rank over NCCL, several over gloo if they share a GPU."""
    import sbnref
    from sbnref.conformance import cases

    failed = []
    for world_size in (1, 2, 3, 4):
        with sbnref.Ranks(world_size, timeout=100) as ranks:
            for case in cases():
                if case.world_size != world_size:
                    continue
                try:
                    ranks.run(case.check, "cuda", DEVICE)
                except sbnref.RankError as error:
                    failed.append(case.name)
                    print(f"{case.name}: {error}")
    if failed:
        sys.exit(f"{len(failed)} cases failed: {failed}")


def stages() -> None:
    """Compare every stage with its plain PyTorch version: layouts, dtypes, precision, gradients."""
    import stage_checks as checks

    from sbnref.impls import cuda

    torch.set_default_device(DEVICE)
    for dtype in checks.DTYPES:
        checks.check_stages(cuda, dtype)
    checks.check_different_layouts(cuda)
    checks.check_parameter_dtypes(cuda)
    checks.check_not_finite("cuda")
    checks.check_many_channels(cuda)
    checks.check_precision(cuda)
    checks.check_gradients("cuda")


def operators() -> None:
    """Run ``torch.library.opcheck`` on every operator."""
    import operator_checks as checks

    from sbnref.impls import cuda

    torch.set_default_device(DEVICE)
    assert cuda.why_not(torch.device(DEVICE)) is None
    for kind in checks.INPUTS.keys() - ({"not aligned"} if DEVICE == "cuda" else set()):  # no GPU can read these
        checks.check_operators(torch.ops.sbnref, kind)
        checks.check_strides(torch.ops.sbnref, kind)


def determinism() -> None:
    """Require twenty runs of every stage to agree bit for bit."""
    import stage_checks as checks

    from sbnref.impls import cuda

    torch.set_default_device(DEVICE)
    assert cuda.why_not(torch.device(DEVICE)) is None
    shapes = ((2, 8, 200, 304), (64, 512, 7, 7), (4096, 96), (1, 2, 64, 64, 64))
    for shape in shapes if DEVICE == "cuda" else ((2, 3, 7, 7), (40, 9)):
        for dtype in checks.DTYPES:
            for layout in (torch.Tensor.contiguous, checks.channels_last):
                x, dy = layout(checks.tensor(shape, dtype)), layout(checks.tensor(shape, dtype, 1))
                first = checks.run(cuda, x, dy, torch.float32, None)
                for _ in range(19):
                    for name, value in checks.run(cuda, x, dy, torch.float32, None).items():
                        assert torch.equal(value, first[name]), f"{name} of {shape}, {dtype}, {layout.__name__}"


def graphs() -> None:
    """Capture a training step in a CUDA graph and replay it, with data and without."""
    import test_capture

    for batch_size in (4, 0):
        test_capture.test_a_captured_step_is_replayed("cuda", batch_size)


def reduce_overhead() -> None:
    """Run training steps compiled with ``mode="reduce-overhead"``, with data and without."""
    import test_capture

    test_capture.check_reduce_overhead(DEVICE)


class FromTheHost:
    """The kernels on copies of CPU tensors, so that a tool sees only kernels and copies on the GPU."""

    def __getattr__(self, stage: str) -> Callable[..., Any]:
        from sbnref.impls import cuda

        return lambda *args: getattr(cuda, stage)(*map(on_device, args))


def on_device(value: Any) -> Any:
    """Copy a tensor with its whole storage and its strides to the device; return any other value unchanged."""
    if isinstance(value, tuple):
        return type(value)(*map(on_device, value))
    if not isinstance(value, torch.Tensor):
        return value
    around = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).to(DEVICE)
    return around.as_strided(value.shape, value.stride(), value.storage_offset())


def small_step() -> None:
    """Run a step in each layout and dtype, split over blocks and unaligned, for compute-sanitizer."""
    import stage_checks as checks

    from sbnref.impls import cuda

    assert cuda.why_not(torch.device(DEVICE)) is None
    for shape in ((0, 3, 4), (8, 3, 7, 7), (2, 2, 5000), (3000, 24), (5, 33)):
        for dtype in (torch.float16, torch.float64):
            for layout in (torch.Tensor.contiguous, checks.channels_last, checks.misaligned):
                x, dy = layout(checks.tensor(shape, dtype)), layout(checks.tensor(shape, dtype, 1))
                checks.run(FromTheHost(), x, dy, torch.float32, None)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def large() -> None:
    """Compare each kernel with the exact answer on more elements than 32 bits count, in each memory layout."""
    from sbnref.impls import cuda

    need = 3 * 2 * LARGE + 2 * 2**30  # x, dy and an output in float16, and the pieces
    if DEVICE == "cuda" and (free := torch.cuda.mem_get_info()[0]) < need:
        print(f"{LARGE} elements take {need / 2**30:.0f} GiB of the GPU's memory, and {free / 2**30:.0f} are free")
        sys.exit(SKIPPED)
    assert cuda.why_not(torch.device(DEVICE)) is None
    x, dy = (torch.empty(LARGE, dtype=torch.float16, device=DEVICE).normal_(1) for _ in range(2))
    x[-8:], dy[-8:] = 3e4, 1e3  # a kernel that drops or replaces these is far off
    rows = LARGE // 8
    for shape, along in (((rows, 8), 0), ((1, 8, rows), 2), ((rows // 17, 17, 8), 0)):
        large_step(x.view(shape), dy.view(shape), along)
        print(f"{shape}: agrees with exact arithmetic", flush=True)


def large_step(x: torch.Tensor, dy: torch.Tensor, along: int) -> None:
    """Compare a step with the exact answer, without a second tensor of that size.

    Pieces of the input act as ranks of a group: the reference's float64 payloads of the pieces add up. From the sum,
    the reference computes each piece of the output.
    """
    from sbnref.impls import cuda, reference

    channels = x.shape[1]
    count = x.numel() // channels
    gamma, beta = torch.linspace(0.5, 1.5, channels, device=DEVICE), torch.linspace(-1, 1, channels, device=DEVICE)
    size = max(2**24 * x.shape[along] // x.numel(), 1)
    starts = range(0, x.shape[along], size)

    def piece(tensor: torch.Tensor, start: int) -> torch.Tensor:
        return tensor.narrow(along, start, min(size, x.shape[along] - start)).double()

    parts = (piece(x, at) for at in starts)
    exact = torch.stack([reference.forward_stats(part, part.numel() // channels) for part in parts]).sum(0)
    torch.testing.assert_close(cuda.forward_stats(x, count), exact, rtol=1e-5, atol=0)
    y, saved = cuda.forward_apply(x, exact, None, gamma, beta, 1e-5, None, None)
    for at in (starts[0], starts[len(starts) // 2], starts[-1]):
        want, _ = reference.forward_apply(piece(x, at), exact, None, gamma, beta, 1e-5, None, None)
        torch.testing.assert_close(piece(y, at), want, rtol=1e-3, atol=1e-3)
    del y
    exact = torch.stack([reference.backward_stats(piece(dy, at), piece(x, at), saved) for at in starts]).sum(0)
    # Terms of both signs cancel: the rounding error grows with the sum of their magnitudes, not with the result.
    torch.testing.assert_close(cuda.backward_stats(dy, x, saved), exact, rtol=1e-5, atol=1e-6 * count)
    dx = cuda.backward_apply(dy, x, exact, saved, gamma, 1.0)
    for at in (starts[0], starts[len(starts) // 2], starts[-1]):
        want = reference.backward_apply(piece(dy, at), piece(x, at), exact, saved, gamma, 1.0)
        torch.testing.assert_close(piece(dx, at), want, rtol=1e-3, atol=1e-3)


def student() -> None:
    """Compare the stages in a CUDA file, as students write them, with the reference."""
    import sbnref
    from sbnref.lab.implementation import StageKernels

    sbnref.register_impl("tasks.cu", StageKernels(HERE.parent / "tests" / "cuda" / "tasks.cu"))
    for shape in ((4, 8, 9, 9), (0, 5, 4, 4), (300, 40)):
        for last in (False, len(shape) == 4):
            x = torch.randn(shape, device=DEVICE) + 1
            x = x.contiguous(memory_format=torch.channels_last) if last else x
            layer = sbnref.SyncBatchNorm(shape[1], device=DEVICE)
            report = sbnref.compare(layer, x, ("reference", "tasks.cu"))
            print(f"{shape}: {report.verdict()}", flush=True)
            assert report.agrees


def profiled() -> None:
    """Run the kernels of a step in each case, for ncu: four that prepare inputs, then the four to count."""
    from gpu_layers import kernel_works
    from stage_checks import channels_last

    from sbnref.impls import cuda

    assert cuda.why_not(torch.device(DEVICE)) is None
    for shape, last in profiled_cases():
        x, dy = (torch.randn(shape, dtype=torch.float16, device=DEVICE) for _ in range(2))
        works = kernel_works(*([channels_last(t) if last else t] for t in (x, dy)))
        works["forward"](0), works["backward"](0)


def profiled_cases() -> list[tuple[tuple[int, ...], bool]]:
    """Return six shapes, each with the channels first and last."""
    from gpu import SHAPES

    shapes = [*SHAPES["detection"], *SHAPES["ResNet-50"][::2]] if DEVICE == "cuda" else [(2, 3, 4, 4)]
    return list(itertools.product(shapes, (False, True)))


def ncu(output: Path) -> None:
    """Read the GPU's counters for each kernel, with the cache as the previous kernel left it."""
    table = output.with_name(f"{output.stem}-ncu.csv")
    # Counters that do not fit into one run need a second run of the whole process: a kernel replayed alone would find
    # its own data in the cache.
    options = ["--replay-mode", "application", "--cache-control", "none", "--print-units", "base", "--csv"]
    options += ["--log-file", str(table), "--kernel-name", "regex:(forward|backward)_(stats|apply)_kernel"]
    command = [nvidia_tool("ncu"), *options, "--metrics", ",".join(METRICS), *command_of("profiled", 0, output)[0]]
    subprocess.run(command, check=True)
    print(*counters(table.read_text()), sep="\n")


def counters(report: str) -> list[str]:
    """Return a line for each kernel in a report of ncu; fail if a kernel or a counter is missing."""
    kernels: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(line for line in report.splitlines() if line.startswith('"')):
        counted = kernels.setdefault(row["ID"], {"name": row["Kernel Name"]})
        counted[row["Metric Name"]] = row["Metric Value"].replace(",", "")
    launches = [counted for i, counted in enumerate(kernels.values()) if i % 8 >= 4]
    wanted = itertools.product(profiled_cases(), ("forward_stats", "forward_apply", "backward_stats", "backward_apply"))
    table = [" " * 43 + "".join(f"{heading:>10}" for heading in METRICS.values())]
    for ((shape, last), stage), counted in zip(wanted, launches, strict=True):
        assert stage in counted["name"], f"expected {stage}, got {counted}"
        values = "".join(f"{float(counted[metric]):10.4g}" for metric in METRICS)
        table.append(f"{shape!s:19} {'last' if last else 'first':7}{stage:16}{values}")
    return table


# ---- running the parts ----

PARTS: dict[str, Callable[..., None]] = {
    part.__name__: part
    for part in (
        build,
        stages,
        conformance,
        determinism,
        graphs,
        reduce_overhead,
        operators,
        large,
        student,
        runtime_checks.two_streams,
        runtime_checks.other_capture,
        runtime_checks.no_memory,
        small_step,
        profiled,
        ncu,
    )
}
# The tools of compute-sanitizer, on our kernels alone. NVIDIA's manual of Compute Sanitizer, "Specifying Filters",
# explains --kernel-name: kns is a substring of the mangled name, which contains our namespace. Padding separates
# tensors, so that memcheck sees an access past the end of one. PyTorch itself handles the API's errors. initcheck sees
# partial results that are read before they are written; the simulation does not check this.
SANITIZERS = {
    "memcheck": ["--padding", "1024", "--report-api-errors", "no"],
    "racecheck": [],
    "synccheck": [],
    "initcheck": [],
}
SANITIZE = ["--kernel-name", "kns=sbnref", "--error-exitcode", "9"]
BENCHMARKS = ("float16", "float32", "bfloat16")
# ncu's metrics, and our headings.
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "read",
    "dram__bytes_write.sum": "written",
    "lts__t_sector_hit_rate.pct": "L2 hit %",
    "sm__inst_executed.avg.per_cycle_active": "per cycle",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "launch__registers_per_thread": "registers",
}
#: The parts of each call, the most important first, with their time limits in seconds.
CALLS = {
    "correctness": {
        "build": 200,
        "stages": 90,
        "conformance": 150,
        "determinism": 40,
        "graphs": 40,
        "reduce_overhead": 90,
        "operators": 90,
        "large": 60,
        "student": 120,
        "two_streams": 40,
        "other_capture": 40,
        "no_memory": 40,
    },
    "half": {"build": 200, "memcheck": 90, "racecheck": 90, "synccheck": 60, "initcheck": 60, "float16": 400},
    "wide": {"build": 200, "ncu": 180, "float32": 300, "bfloat16": 300},
}
NEED_GPU = ("graphs", "two_streams", "other_capture", "no_memory", "ncu", *SANITIZERS, *BENCHMARKS)
LIMITS = {part: seconds for parts in CALLS.values() for part, seconds in parts.items()}
SECONDS = 560  # of a ten-minute call; the rest is for its start and its end
LEAST_SECONDS = 10  # a part takes these to start
SLOWER = 10  # factor of the limits on the simulation
LARGE = 2**31 + 8 if DEVICE == "cuda" else 2**15 + 8  # elements; 8 * 17 times an odd number


def run(part: str, command: list[str], limit: float, environment: dict[str, str] | None = None) -> Outcome:
    """Run a command, print and return its outcome, and kill every process that it started."""
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    with tempfile.TemporaryFile() as said:  # not a pipe: a process that it started could keep one open
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=HERE.parent,
            env=environment,
            start_new_session=True,
        )
        try:
            status = {0: "passed", SKIPPED: "skipped"}.get(child.wait(limit), "failed")
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:  # also when a signal ends this process
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        said.seek(0)
        printed = said.read().decode(errors="replace")[-KEPT:]
    return tell(Outcome(part, status, time.monotonic() - begin, printed))


def tell(outcome: Outcome) -> Outcome:
    """Print the outcome of a part, and its output if it did not pass or is a benchmark."""
    print(f"{outcome.part:24} {outcome.status:10} {outcome.seconds:6.1f} s", flush=True)
    if outcome.status != "passed" or outcome.part in (*BENCHMARKS, "ncu"):
        print("    " + outcome.printed.rstrip().replace("\n", "\n    "), flush=True)
    return outcome


def nvidia_tool(name: str) -> str | None:
    """Return the path of a tool of the CUDA toolkit, or None if it is missing."""
    from sbnref.impls import build

    beside_nvcc = [str(build.find_cuda().home / "bin")] if torch.version.cuda else []
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *beside_nvcc]))


def command_of(part: str, limit: float, output: Path) -> tuple[list[str] | str, dict[str, str]]:
    """Return a part's command and environment variables, or the name of a missing requirement."""
    if simulated() and part in NEED_GPU:
        return "a GPU", {}
    inner = "small_step" if part in SANITIZERS else part
    command = [sys.executable, str(HERE / "gpu_check.py"), "--part", inner]
    if part in BENCHMARKS:
        results = output.with_name(f"{output.stem}-{part}.json")
        command = [sys.executable, str(HERE / "gpu.py"), "--dtypes", part, "--output", str(results)]
        return [*command, "--seconds", str(limit - 25)], {}
    if part in SANITIZERS:
        if (tool := nvidia_tool("compute-sanitizer")) is None:
            return "compute-sanitizer", {}
        # PyTorch's caching allocator hides the ends of tensors, and uninitialized memory.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return [tool, "--tool", part, *SANITIZE, *SANITIZERS[part], *command], environment
    if part == "ncu":
        return ("ncu" if nvidia_tool("ncu") is None else [*command, "--output", str(output)]), {}
    return command, {}


def check_all(parts: list[str], seconds: float, outcomes: dict[str, Outcome], output: Path) -> None:
    """Run parts in turn while time is left, and add each outcome as it comes."""
    deadline = time.monotonic() + seconds
    for part in parts:
        limit = min(LIMITS.get(part, SECONDS) * (SLOWER if simulated() else 1), deadline - time.monotonic())
        if "build" in outcomes and outcomes["build"].status != "passed":
            outcomes[part] = tell(Outcome(part, "left out", 0, "the kernels are not built"))
        elif limit < LEAST_SECONDS:
            outcomes[part] = tell(Outcome(part, "left out", 0, "no time was left"))
        else:
            command, environment = command_of(part, limit, output)
            if isinstance(command, str):
                outcomes[part] = tell(Outcome(part, "skipped", 0, f"{command} is not here"))
            else:
                outcomes[part] = run(part, command, limit, environment)


def ended(number: int, frame: object) -> None:
    """Exit in order after a signal: kill the running part, and write the known outcomes."""
    sys.exit(f"ended by {signal.Signals(number).name}")


def parts_of(text: str) -> list[str]:
    """Return the parts in a comma-separated list of parts and calls."""
    parts: dict[str, None] = {}
    for name in text.split(","):
        if name not in CALLS and name not in {**LIMITS, **PARTS}:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join([*CALLS, *LIMITS])}, got {name!r}")
        parts |= dict.fromkeys(CALLS.get(name, [name]))
    return list(parts)


def main() -> int:
    """Run one part, or several."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=parts_of, default=list(LIMITS), metavar="A,B", help="the calls or parts to run")
    parser.add_argument("--seconds", type=float, help=f"time limit; {SECONDS}, or three times as long for all parts")
    parser.add_argument("--output", type=Path, help="a JSON file for the outcomes; new outcomes replace old ones")
    parser.add_argument("--device", choices=["cuda", "cpu"], default=DEVICE, help="cpu: the simulation")
    parser.add_argument("--part", choices=PARTS, help="run one part in this process")
    options = parser.parse_args()
    if options.part:
        PARTS[options.part](*[options.output] if options.part == "ncu" else [])
        return 0
    if options.device == "cpu":
        os.environ["SBNREF_CUDASIM"] = "1"
    elif not torch.cuda.is_available():
        print("gpu-check needs a CUDA GPU, and PyTorch sees none; without one, --device cpu runs it on the simulation")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, ended)
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else "simulation"
    name = f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower())}-{datetime.now():%Y-%m-%d}-checks.json"  # of the day's calls
    output = (options.output or HERE / "results" / name).absolute()
    seconds = options.seconds or (3 * SECONDS if options.only == list(LIMITS) else SECONDS)
    seconds *= SLOWER if simulated() and not options.seconds else 1
    outcomes: dict[str, Outcome] = {}
    try:
        check_all(options.only, seconds, outcomes, output)
    finally:
        keep(
            {part: outcomes.get(part, Outcome(part, "left out", 0, "stopped before")) for part in options.only}, output
        )
    fine = ("passed", "skipped") if simulated() else ("passed",)
    return 0 if all(outcome.status in fine for outcome in outcomes.values()) else 1


def keep(outcomes: dict[str, Outcome], output: Path) -> None:
    """Write the outcomes, in place of the parts' earlier outcomes."""
    from benchmarks.results import Results, load

    before = {row["part"]: row for row in load(output).notes["checks"]} if output.exists() else {}
    checks = {**before, **{part: asdict(outcome) for part, outcome in outcomes.items()}}
    Results(notes={"checks": list(checks.values())}).save(output)
    print(f"written to {output}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
