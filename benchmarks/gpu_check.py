"""Everything that only a CUDA GPU can tell, in one command: ``make gpu-check``, or ``python benchmarks/gpu_check.py``.

It needs no network and installs nothing: PyTorch with CUDA, nvcc, ninja and pytest are enough. Every part runs in a
process of its own under a time limit, so that one that fails, hangs or crashes the GPU's context does not stop the
others. The whole takes at most eight minutes. Results go to ``benchmarks/results/<gpu>-<date>.json``; the exit code is
0 where every part passed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sbnref.impls.build import simulated

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / folder) for folder in ("tests", "tests/cuda")]
# A single part also runs simulated, with SBNREF_CUDASIM=1.
DEVICE = "cpu" if simulated() else "cuda"
TOTAL_SECONDS = 470
KEPT = 3000  # characters of what a part printed


@dataclass(frozen=True)
class Outcome:
    """How a part went."""

    part: str
    status: str  # 'passed', 'failed', 'timed out' or 'skipped'
    seconds: float
    printed: str


# ---- the parts ----


def build() -> None:
    """The kernels are compiled for this GPU, or found where they were."""
    from sbnref.impls import cuda

    print(cuda.library().build_info())


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


def small_step() -> None:
    """A step in each layout and dtype, split over blocks and unaligned: for compute-sanitizer."""
    import stage_checks as checks

    from sbnref.impls import cuda

    torch.set_default_device(DEVICE)
    assert cuda.why_not(torch.device(DEVICE)) is None
    for shape in ((0, 3, 4), (8, 3, 7, 7), (2, 2, 5000), (3000, 24), (5, 33)):
        for dtype in (torch.float16, torch.float64):
            for layout in (torch.Tensor.contiguous, checks.channels_last, checks.misaligned):
                x, dy = layout(checks.tensor(shape, dtype)), layout(checks.tensor(shape, dtype, 1))
                checks.run(cuda, x, dy, torch.float32, None)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part
    for part in (build, conformance, stages, operators, determinism, graphs, reduce_overhead, small_step)
}
LIMITS = {
    "build": 240,
    "conformance": 150,
    "stages": 60,
    "operators": 60,
    "determinism": 40,
    "graphs": 40,
    "reduce_overhead": 60,
}
SANITIZERS = ("memcheck", "racecheck")


# ---- running them ----


def run(part: str, command: list[str], limit: float) -> Outcome:
    """Run a command, say how it went, and keep the end of what it printed."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=limit, cwd=HERE.parent)
        status, printed = "passed" if done.returncode == 0 else "failed", done.stdout
    except subprocess.TimeoutExpired as error:
        status, printed = "timed out", error.stdout.decode(errors="replace") if error.stdout else ""
    outcome = Outcome(part, status, time.perf_counter() - begin, printed[-KEPT:])
    print(f"{part:24} {status:10} {outcome.seconds:6.1f} s", flush=True)
    if status != "passed":
        print("    " + outcome.printed.replace("\n", "\n    "), flush=True)
    return outcome


def compute_sanitizer() -> str | None:
    """Where NVIDIA's memory checker is, if it is here."""
    from torch.utils.cpp_extension import CUDA_HOME

    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], f"{CUDA_HOME}/bin"]))


def check_all(output: Path) -> list[Outcome]:
    """Every part in turn, then the benchmark with the time that is left."""
    start = time.perf_counter()
    outcomes = [run(part, [sys.executable, __file__, "--part", part], limit) for part, limit in LIMITS.items()]
    sanitizer = compute_sanitizer()
    for tool in SANITIZERS:
        if sanitizer is None:
            outcomes.append(Outcome(tool, "skipped", 0, "compute-sanitizer is not here"))
            print(f"{tool:24} skipped: compute-sanitizer is not here")
            continue
        step = [sys.executable, __file__, "--part", "small_step"]
        outcomes.append(run(tool, [sanitizer, "--tool", tool, "--error-exitcode", "9", *step], 60))
    left = max(TOTAL_SECONDS - (time.perf_counter() - start), 30)
    benchmark = [sys.executable, str(HERE / "gpu.py"), "--seconds", str(left - 25), "--output", str(output)]
    outcomes.append(run("benchmark", benchmark, left))
    print(outcomes[-1].printed)
    return outcomes


def main() -> int:
    """Run one part, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="this one only, in this process")
    options = parser.parse_args()
    if options.part:
        PARTS[options.part]()
        return 0
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA GPU, and PyTorch sees none; without one, make test-cuda simulates the kernels")
        return 2
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower()
    output = HERE / "results" / f"{gpu}-{date.today()}.json"
    outcomes = check_all(output)
    from sbnref.bench.results import Results, load

    results = load(output) if output.exists() else Results()
    results.notes["checks"] = [asdict(outcome) for outcome in outcomes]
    results.save(output)
    print(f"written to {output}")
    return 0 if all(outcome.status in ("passed", "skipped") for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
