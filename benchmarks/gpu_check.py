"""Everything that only a CUDA GPU can tell, in one command: ``make gpu-check``, or ``python benchmarks/gpu_check.py``.

It needs no network and installs nothing: PyTorch with CUDA, nvcc, ninja, pybind11 and pytest are enough. Every part
runs in a process of its own under a time limit, so that one that fails, hangs or crashes the GPU's context does not
stop the others. The whole takes at most eight minutes, whatever the parts do, and no process outlives it. Results go to
``benchmarks/results/<gpu>-<date>-<time>.json``; the exit code is 0 where every part passed, or cannot run here and says
so. A part for which no time was left did not pass.
"""

from __future__ import annotations

import argparse
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

from sbnref.impls.build import simulated

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / folder) for folder in ("tests", "tests/cuda")]
# A single part also runs simulated, with SBNREF_CUDASIM=1.
DEVICE = "cpu" if simulated() else "cuda"
SKIPPED = 77  # the exit code of a part that cannot run here, by the convention of automake and meson
KEPT = 6000  # characters of what a part printed


@dataclass(frozen=True)
class Outcome:
    """How a part went."""

    part: str
    status: str  # 'passed', 'failed', 'timed out', 'skipped' (it cannot run here) or 'left out' (for want of time)
    seconds: float
    printed: str


# ---- the parts ----


def build() -> None:
    """The kernels are compiled for this GPU, or found where they were."""
    from sbnref.impls import cuda

    print(cuda.operators().build_info())


def conformance() -> None:
    """The suite on CUDA tensors: one rank over NCCL, more over gloo where they share a GPU."""
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
    """Every stage beside its twin in plain PyTorch: layouts, dtypes, precision, gradients."""
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
    """``torch.library.opcheck`` on every operator."""
    import operator_checks as checks

    from sbnref.impls import cuda

    torch.set_default_device(DEVICE)
    assert cuda.why_not(torch.device(DEVICE)) is None
    for kind in checks.INPUTS:
        checks.check_operators(torch.ops.sbnref, kind)
        checks.check_strides(torch.ops.sbnref, kind)


def determinism() -> None:
    """Twenty runs of every stage agree bit for bit."""
    import stage_checks as checks

    from sbnref.impls import cuda

    torch.set_default_device(DEVICE)
    assert cuda.why_not(torch.device(DEVICE)) is None
    for shape in ((2, 8, 200, 304), (64, 512, 7, 7), (4096, 96), (1, 2, 64, 64, 64)):
        for dtype in checks.DTYPES:
            for layout in (torch.Tensor.contiguous, checks.channels_last):
                x, dy = layout(checks.tensor(shape, dtype)), layout(checks.tensor(shape, dtype, 1))
                first = checks.run(cuda, x, dy, torch.float32, None)
                for _ in range(19):
                    for name, value in checks.run(cuda, x, dy, torch.float32, None).items():
                        assert torch.equal(value, first[name]), f"{name} of {shape}, {dtype}, {layout.__name__}"


def graphs() -> None:
    """A training step is captured in a CUDA graph and replayed, with data and without."""
    import test_capture

    for batch_size in (4, 0):
        test_capture.test_a_captured_step_is_replayed("cuda", batch_size)


def reduce_overhead() -> None:
    """Training steps compiled with ``mode="reduce-overhead"``, with data and without."""
    import test_capture

    test_capture.check_reduce_overhead(DEVICE)


class FromTheHost:
    """The kernels on copies of CPU tensors: nothing runs on the GPU but them and copying, which a tool can look at."""

    def __getattr__(self, stage: str) -> Callable[..., Any]:
        from sbnref.impls import cuda

        return lambda *args: getattr(cuda, stage)(*map(on_device, args))


def on_device(value: Any) -> Any:
    """A copy on the device that lies there as it does here, with what is around it; all else as it is."""
    if isinstance(value, tuple):
        return type(value)(*map(on_device, value))
    if not isinstance(value, torch.Tensor):
        return value
    around = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).to(DEVICE)
    return around.as_strided(value.shape, value.stride(), value.storage_offset())


def small_step() -> None:
    """A step in each layout and dtype, split over blocks and unaligned: for compute-sanitizer."""
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


def large(elements: int) -> None:
    """Each kernel once on more elements than 32 bits count, in each way to lie in memory, beside the exact answer."""
    from sbnref.impls import cuda

    need = 3 * 2 * elements + 2 * 2**30  # x, dy and an output in float16, and what the pieces take
    if DEVICE == "cuda" and (free := torch.cuda.mem_get_info()[0]) < need:
        print(f"{elements} elements take {need / 2**30:.0f} GiB of the GPU's memory, and {free / 2**30:.0f} are free")
        sys.exit(SKIPPED)
    assert cuda.why_not(torch.device(DEVICE)) is None
    assert elements % (8 * 17) == 0
    assert elements // 8 % 2 == 1
    x, dy = (torch.empty(elements, dtype=torch.float16, device=DEVICE).normal_(1) for _ in range(2))
    x[-8:], dy[-8:] = 3e4, 1e3  # a kernel that drops or replaces the last ones is far off
    rows = elements // 8
    for shape, along in (((rows, 8), 0), ((1, 8, rows), 2), ((rows // 17, 17, 8), 0)):
        large_step(x.view(shape), dy.view(shape), along)
        print(f"{shape}: as exact arithmetic has it", flush=True)


def large_step(x: torch.Tensor, dy: torch.Tensor, along: int) -> None:
    """A step beside the exact answer, which takes no second tensor of that size.

    Pieces of the input are to the whole what ranks are to a group: the reference's payloads of the pieces, in float64,
    add up. What the reference makes of a piece, given those, is that piece of the output.
    """
    from sbnref.impls import cuda, reference

    channels = x.shape[1]
    count = x.numel() // channels
    gamma, beta = torch.linspace(0.5, 1.5, channels, device=DEVICE), torch.linspace(-1, 1, channels, device=DEVICE)
    size = max(2**24 * x.shape[along] // x.numel(), 1)
    starts = range(0, x.shape[along], size)

    def piece(tensor: torch.Tensor, start: int) -> torch.Tensor:
        return tensor.narrow(along, start, min(size, x.shape[along] - start)).double()

    exact = sum(reference.forward_stats(part, part.numel() // channels) for part in (piece(x, at) for at in starts))
    torch.testing.assert_close(cuda.forward_stats(x, count), exact, rtol=1e-5, atol=0)
    y, saved = cuda.forward_apply(x, exact, None, gamma, beta, 1e-5, None, None)
    for at in (starts[0], starts[len(starts) // 2], starts[-1]):
        want, _ = reference.forward_apply(piece(x, at), exact, None, gamma, beta, 1e-5, None, None)
        torch.testing.assert_close(piece(y, at), want, rtol=1e-3, atol=1e-3)
    del y
    exact = sum(reference.backward_stats(piece(dy, at), piece(x, at), saved) for at in starts)
    # Terms of either sign: off by the accumulator's rounding of all that was added up, not of what is left of it.
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


# ---- running them ----

# What matters most comes first: a limit is cut to what is left of the eight minutes, and who finds nothing is left out.
LIMITS = {
    "build": 200,
    "stages": 60,
    "conformance": 150,
    "determinism": 40,
    "graphs": 40,
    "memcheck": 60,
    "racecheck": 60,
    "large": 60,
    "reduce_overhead": 60,
    "operators": 60,
    "synccheck": 40,
    "initcheck": 40,
    "student": 120,
}
TOTAL_SECONDS = 465  # of eight minutes; the rest is for starting and for ending
BENCHMARK_SECONDS = 190  # of these, kept for the benchmark, which gets what the parts leave besides
LEAST_SECONDS = 10  # what a part takes to start
LARGE = 2**31 + 8  # elements

PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part
    for part in (
        build,
        stages,
        conformance,
        determinism,
        graphs,
        large,
        reduce_overhead,
        operators,
        small_step,
        student,
    )
}
# Of compute-sanitizer, on our kernels alone. The option and its keys are from NVIDIA's manual of Compute Sanitizer,
# "Specifying Filters": kns is a substring of the mangled name, in which our namespace is. Padding keeps tensors apart,
# so that memcheck sees an access that runs over the end of one; of the API's errors PyTorch takes care itself.
# initcheck sees partial results that are read before they are written, which the simulation does not look for.
SANITIZERS = {
    "memcheck": ["--padding", "1024", "--report-api-errors", "no"],
    "racecheck": [],
    "synccheck": [],
    "initcheck": [],
}
SANITIZE = ["--kernel-name", "kns=sbnref", "--error-exitcode", "9"]


def run(part: str, command: list[str], limit: float, environment: dict[str, str] | None = None) -> Outcome:
    """Run a command, say how it went, and keep the end of what it printed. Nothing that it started outlives it."""
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    with tempfile.TemporaryFile() as said:  # no pipe, which one of its own children could hold open
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
        finally:  # where this process is told to end, too
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        said.seek(0)
        printed = said.read().decode(errors="replace")[-KEPT:]
    return tell(Outcome(part, status, time.monotonic() - begin, printed))


def tell(outcome: Outcome) -> Outcome:
    """Print how a part went, and what it printed where that is of interest."""
    print(f"{outcome.part:24} {outcome.status:10} {outcome.seconds:6.1f} s", flush=True)
    if outcome.status != "passed" or outcome.part == "benchmark":
        print("    " + outcome.printed.rstrip().replace("\n", "\n    "), flush=True)
    return outcome


def compute_sanitizer() -> str | None:
    """Where NVIDIA's memory checker is, if it is here."""
    from sbnref.impls import build

    beside_nvcc = [str(build.find_cuda().home / "bin")] if torch.version.cuda else []
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *beside_nvcc]))


def check_all(outcomes: list[Outcome], output: Path) -> None:
    """Every part in turn while there is time, then the benchmark; the outcomes are added to as they come."""
    deadline = time.monotonic() + TOTAL_SECONDS
    sanitizer = compute_sanitizer()
    for part, most in {**LIMITS, "benchmark": TOTAL_SECONDS}.items():
        kept = 0 if part == "benchmark" else BENCHMARK_SECONDS
        limit = min(most, deadline - kept - time.monotonic())
        environment = {}
        command = [sys.executable, str(HERE / "gpu_check.py"), "--part", "small_step" if part in SANITIZERS else part]
        if part in SANITIZERS:
            command = [str(sanitizer), "--tool", part, *SANITIZE, *SANITIZERS[part], *command]
            # Its caching allocator hides the ends of tensors, and uninitialized memory.
            environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        if part == "benchmark":
            command = [sys.executable, str(HERE / "gpu.py"), "--output", str(output)]
            command += ["--seconds", str(limit - 25), "--dtypes", "float16", "float32"]
        if outcomes and outcomes[0].status == "failed":
            outcome = tell(Outcome(part, "left out", 0, "the kernels are not built"))
        elif part in SANITIZERS and sanitizer is None:
            outcome = tell(Outcome(part, "skipped", 0, "compute-sanitizer is not here"))
        elif limit < LEAST_SECONDS:
            outcome = tell(Outcome(part, "left out", 0, "no time was left"))
        else:
            outcome = run(part, command, limit, environment)
        outcomes.append(outcome)


def ended(number: int, frame: object) -> None:
    """A signal ends this process in order: the part that runs is ended, and what is known is written."""
    sys.exit(f"ended by {signal.Signals(number).name}")


def main() -> int:
    """Run one part, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="this one only, in this process")
    parser.add_argument("--elements", type=int, default=LARGE, help="of the part 'large', 8 * 17 times an odd number")
    options = parser.parse_args()
    if options.part:
        PARTS[options.part](*[options.elements] if options.part == "large" else [])
        return 0
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA GPU, and PyTorch sees none; without one, make test-cuda simulates the kernels")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, ended)
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower()
    output = HERE / "results" / f"{gpu}-{datetime.now():%Y-%m-%d-%H%M}.json"
    outcomes: list[Outcome] = []
    try:
        check_all(outcomes, output)
    finally:
        keep(outcomes, output)
    return 0 if all(outcome.status in ("passed", "skipped") for outcome in outcomes) else 1


def keep(outcomes: list[Outcome], output: Path) -> None:
    """Write how the parts went beside what the benchmark has measured."""
    from benchmarks.results import Results, load

    for part in [part for part in (*LIMITS, "benchmark") if part not in {outcome.part for outcome in outcomes}]:
        outcomes.append(Outcome(part, "left out", 0, "ended before"))
    results = load(output) if output.exists() else Results()
    results.notes["checks"] = [asdict(outcome) for outcome in outcomes]
    results.save(output)
    print(f"written to {output}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
