"""The layer on a GPU beside its peers: device time, forward, backward and together.

    python benchmarks/gpu.py [--seconds 240] [--output results.json]

Needs PyTorch and a CUDA GPU. Times are taken by events, after a pause on the device that lets the host get ahead, and
on inputs that are rotated so that the cache does not hold them. The floor of a shape is what its memory traffic takes
at the bandwidth that copying has in the same run: three times the input's size forward, five times backward.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sbnref
from sbnref.autograd import SyncBatchNormFunction
from sbnref.bench.results import Results
from sbnref.bench.timing import spread
from sbnref.impls import build, cuda

Shape = tuple[int, ...]

SHAPES: dict[str, list[Shape]] = {
    "detection": [(2, 256, 200, 304)],
    "ResNet-50": [
        (32, 64, 112, 112),
        (32, 64, 56, 56),
        (32, 256, 56, 56),
        (32, 128, 28, 28),
        (32, 512, 28, 28),
        (32, 256, 14, 14),
        (32, 1024, 14, 14),
        (32, 512, 7, 7),
        (32, 2048, 7, 7),
    ],
    "box heads": [(512, 256, 7, 7), (512, 1024)],
    "volume": [(1, 32, 192, 192, 192)],
}
DTYPES = [torch.float16, torch.float32, torch.bfloat16]
SAMPLES = 11
LADDER_SHAPES: list[Shape] = [(2, 256, 200, 304), (32, 256, 14, 14)]
LADDER_SECONDS = 25  # kept for compiling and timing the ladder


# ---- the layers, as functions of the input and the parameters; all on a group of one rank over NCCL ----


class Parameters:
    """What a batch norm keeps per channel, in float32."""

    def __init__(self, channels: int) -> None:
        self.weight = torch.rand(channels, device="cuda", requires_grad=True)
        self.bias = torch.rand(channels, device="cuda", requires_grad=True)
        self.mean, self.var = torch.zeros(channels, device="cuda"), torch.ones(channels, device="cuda")
        self.steps = torch.zeros((), dtype=torch.int64, device="cuda")


def sbnref_kernels(x: Tensor, p: Parameters) -> Tensor:
    """Ours, collectives included."""
    running = sbnref.running.RunningStats(p.mean, p.var, p.steps)
    return SyncBatchNormFunction.apply(x, p.weight, p.bias, running, 0.1, 1e-5, "exact", dist.group.WORLD, cuda)


def torch_sync(x: Tensor, p: Parameters) -> Tensor:
    """What ``torch.nn.SyncBatchNorm`` runs in a group; it takes a matrix as (N, C)."""
    function = torch.nn.modules._functions.SyncBatchNorm
    return function.apply(x, p.weight, p.bias, p.mean, p.var, 1e-5, 0.1, dist.group.WORLD, 1)


def cudnn(x: Tensor, p: Parameters) -> Tensor:
    """``F.batch_norm``: no synchronization."""
    return F.batch_norm(x, p.mean, p.var, p.weight, p.bias, training=True)


def mmcv(x: Tensor, p: Parameters) -> Tensor:
    """mmcv's published algorithm. It knows channels-first only."""
    return MMCV.apply(x.contiguous(), p.weight, p.bias, p.mean, p.var)


class MMCV(torch.autograd.Function):
    """Five passes in ``mmcv_passes.cu``, two collectives forward and two backward."""

    library: Any = None

    @classmethod
    def run(cls, number: int, x: Tensor, *tensors: Tensor, eps: float = 1e-5, momentum: float = 0.1) -> None:
        if cls.library is None:
            cls.library = build_mmcv()
        channels = x.shape[1]
        spatial = x.numel() // (x.shape[0] * channels)
        dtype = [torch.float16, torch.bfloat16, torch.float32].index(x.dtype)
        pointers = (ctypes.c_void_p * 12)(*(t.data_ptr() for t in (x, *tensors)))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        sizes = (ctypes.c_int64(n) for n in (x.shape[0], channels, spatial))
        cls.library.mmcv_pass(
            number, dtype, *sizes, ctypes.c_float(eps), ctypes.c_float(momentum), ctypes.byref(pointers), stream
        )

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        mean_and_weight = torch.ones(x.shape[1] + 1, device=x.device)
        mean, var, std = mean_and_weight[:-1], torch.empty_like(weight), torch.empty_like(weight)
        MMCV.run(0, x, mean)
        dist.all_reduce(mean_and_weight)
        MMCV.run(1, x, mean, var)
        dist.all_reduce(var)
        xhat, y = torch.empty_like(x, dtype=torch.float32), torch.empty_like(x)
        MMCV.run(2, x, mean, var, weight, bias, running_mean, running_var, std, xhat, y)
        ctx.save_for_backward(xhat, std, weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        xhat, std, weight = ctx.saved_tensors
        dy, dweight, dbias = dy.contiguous(), torch.empty_like(weight), torch.empty_like(weight)
        MMCV.run(3, dy, xhat, dweight, dbias)
        dist.all_reduce(dweight)
        dist.all_reduce(dbias)
        dx = torch.empty_like(dy)
        MMCV.run(4, dy, xhat, weight, std, dweight, dbias, dx)
        return dx, dweight, dbias, None, None


def build_mmcv() -> ctypes.CDLL:
    """The peer's kernels, compiled beside ours."""
    from torch.utils import cpp_extension

    folder = Path(tempfile.mkdtemp(prefix="sbnref-mmcv-"))
    source = Path(__file__).with_name("mmcv_passes.cu")
    cpp_extension.load(
        "mmcv_passes",
        [str(source)],
        extra_include_paths=[str(build.CSRC)],
        extra_cuda_cflags=list(build.NVCC_FLAGS),
        build_directory=str(folder),
        is_python_module=False,
    )
    return ctypes.CDLL(str(folder / "mmcv_passes.so"))


LAYERS: dict[str, Callable[[Tensor, Parameters], Tensor]] = {
    "sbnref": sbnref_kernels,
    "torch sync": torch_sync,
    "F.batch_norm": cudnn,
    "mmcv's algorithm": mmcv,
}


# ---- time on the device ----


def device_seconds(work: Callable[[int], object], repetitions: int) -> list[float]:
    """Seconds of ``work(i)`` on the device, one number for each of several samples of ``repetitions`` calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin = time.perf_counter()
    for i in range(3):
        work(i)
    torch.cuda.synchronize()
    host_seconds = (time.perf_counter() - begin) / 3
    # Twice the time that the host takes to ask for everything, at 2 GHz; not more than a sample is worth.
    pause = int(min(2 * host_seconds * repetitions, 0.02) * 2e9)
    samples = []
    for _ in range(SAMPLES):
        torch.cuda._sleep(pause)
        start.record()
        for i in range(repetitions):
            work(i)
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3 / repetitions)
    return samples


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of copying a gigabyte on the device."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    seconds = statistics.median(device_seconds(lambda _: target.copy_(source), 5))
    return 2 * source.numel() / seconds


def measure(shape: Shape, dtype: torch.dtype, channels_last: bool, bandwidth: float) -> list[dict[str, Any]]:
    """A row for each layer and for each of forward, backward and both."""
    size = math.prod(shape) * dtype.itemsize
    cache = torch.cuda.get_device_properties("cuda").L2_cache_size
    copies = min(max(math.ceil(3 * cache / size), 1), 32)  # more than the cache holds
    xs = [tensor(shape, dtype, channels_last).requires_grad_() for _ in range(copies)]
    dys = [tensor(shape, dtype, channels_last) for _ in range(copies)]
    repetitions = max(2, min(20, int(2e-3 / (8 * size / bandwidth))))
    rows = []
    for name, layer in LAYERS.items():
        parameters = Parameters(shape[1])
        try:
            ys = [layer(x, parameters) for x in xs]
        except (RuntimeError, ValueError) as error:
            print(f"  {name}: {error}", file=sys.stderr)
            continue
        inputs = [(x, parameters.weight, parameters.bias) for x in xs]

        def forward(i: int, layer: Any = layer, parameters: Parameters = parameters) -> Tensor:
            return layer(xs[i % copies], parameters)

        def backward(i: int, ys: list[Tensor] = ys, inputs: Any = inputs) -> None:
            i %= copies
            torch.autograd.grad(ys[i], inputs[i], dys[i], retain_graph=True)

        def both(i: int, forward: Any = forward, inputs: Any = inputs) -> None:
            torch.autograd.grad(forward(i), inputs[i % copies], dys[i % copies])

        for what, work, passes in (("forward", forward, 3), ("backward", backward, 5), ("both", both, 8)):
            times = spread(device_seconds(work, repetitions))
            moved = passes * size
            rows.append({**row("gpu", name, what, xs[0], times, moved, bandwidth), "beyond_cache": 2 * size > cache})
        del ys
    return rows


def measure_ladder(bandwidth: float) -> list[dict[str, Any]]:
    """A row for each rung of the ladder of kernels in the tutorials, forward, float32."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tutorials"))
    from kernels import ladder

    gpu = torch.cuda.get_device_properties("cuda")
    resident = gpu.multi_processor_count * (gpu.max_threads_per_multi_processor // ladder.THREADS)
    rows = []
    for shape, rung in itertools.product(LADDER_SHAPES, ladder.RUNGS):
        size = math.prod(shape) * torch.float32.itemsize
        copies = min(max(math.ceil(3 * gpu.L2_cache_size / size), 1), 32)  # more than the cache holds
        xs = [tensor(shape, torch.float32, rung == "7 channels-last") for _ in range(copies)]
        calls = [ladder.Call(rung, x, blocks=resident) for x in xs]
        want = F.batch_norm(xs[0], None, None, training=True)
        torch.testing.assert_close(calls[0].run(), want, rtol=1e-4, atol=1e-4)

        def forward(i: int, calls: list[Any] = calls) -> Tensor:
            return calls[i % len(calls)].run()

        times = spread(device_seconds(forward, max(2, min(20, int(2e-3 / (8 * size / bandwidth))))))
        rows.append(row("ladder", rung, "forward", xs[0], times, 3 * size, bandwidth))
    return rows


def row(
    suite: str, layer: str, what: str, x: Tensor, times: dict[str, float], moved: int, bandwidth: float
) -> dict[str, Any]:
    """A measurement, beside what its traffic takes."""
    floor = moved / bandwidth
    return {
        "suite": suite,
        "layer": layer,
        "what": what,
        "shape": tuple(x.shape),
        "layout": "contiguous" if x.is_contiguous() else "channels_last",
        "dtype": str(x.dtype).removeprefix("torch."),
        "world_size": 1,
        **times,
        "floor": floor,
        "over_floor": times["median"] / floor,
        "bytes_moved": moved,
    }


def tensor(shape: Shape, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Random numbers with mean 1."""
    x = (torch.randn(shape, device="cuda") + 1).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


# ---- the report ----


def verdicts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the project asks of these numbers: each answer with the worst case."""
    by_case: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        case = (str(row["shape"]), row["dtype"], row["layout"], row["what"])
        by_case.setdefault(case, {})[row["layer"]] = row

    def speedups(peer: str) -> dict[tuple[Any, ...], float]:
        return {
            case: layers[peer]["median"] / layers["sbnref"]["median"]
            for case, layers in by_case.items()
            if peer in layers and "sbnref" in layers
        }

    result: dict[str, Any] = {}
    for peer, each, mean in (("torch sync", 1.0, 2.0), ("mmcv's algorithm", 0.0, 4.0), ("F.batch_norm", 0.0, 0.0)):
        ratios = speedups(peer)
        if ratios:
            worst = min(ratios, key=ratios.__getitem__)
            geometric = math.exp(statistics.fmean(map(math.log, ratios.values())))
            result[f"times as fast as {peer}"] = {
                "geometric_mean": geometric,
                "worst": ratios[worst],
                "worst_case": worst,
                "met": geometric >= mean and ratios[worst] >= each,
            }
    for name, beyond, limit in (
        ("over the floor, beyond the cache", True, 1.15),
        ("over the floor, in cache", False, 1),
    ):
        ours = {
            case: layers["sbnref"]["over_floor"]
            for case, layers in by_case.items()
            if "sbnref" in layers and layers["sbnref"]["beyond_cache"] == beyond and case[-1] != "both"
        }
        if ours:
            worst = max(ours, key=ours.__getitem__)
            met = ours[worst] <= limit
            result[name] = {"worst": ours[worst], "worst_case": worst, "met": met}
    return result


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table."""
    layers = list(LAYERS)
    yield f"{'shape':24} {'dtype':9} {'layout':14} {'what':9} {'floor':>8} " + " ".join(f"{n:>17}" for n in layers)
    keys = ("shape", "dtype", "layout", "what")
    for case, group in itertools.groupby(
        sorted(rows, key=lambda r: [str(r[k]) for k in keys]), lambda r: [r[k] for k in keys]
    ):
        by_layer = {row["layer"]: row for row in group}
        cells = (
            f"{1e6 * by_layer[n]['median']:9.1f} ({by_layer[n]['over_floor']:5.2f})" if n in by_layer else ""
            for n in layers
        )
        floor = 1e6 * next(iter(by_layer.values()))["floor"]
        shape, dtype, layout, what = case
        yield f"{shape!s:24} {dtype:9} {layout:14} {what:9} {floor:8.1f} " + " ".join(f"{cell:>17}" for cell in cells)
    yield "Microseconds; in parentheses over the floor."


def main() -> int:
    """Measure as much as there is time for, the larger tensors first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long, leaving out what is left")
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    if (reason := cuda.why_not(torch.device("cuda"))) is not None:
        print(f"benchmarks/gpu.py needs the kernels on a GPU: {reason}", file=sys.stderr)
        return 2

    start = time.perf_counter()
    dist.init_process_group("nccl", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copying moves {bandwidth / 1e12:.2f} TB/s", flush=True)
    with_ladder = options.seconds > 4 * LADDER_SECONDS
    deadline = start + options.seconds - (LADDER_SECONDS if with_ladder else 0)
    rows, left_out = [], []
    for dtype, channels_last, shape in itertools.product(DTYPES, (False, True), itertools.chain(*SHAPES.values())):
        if channels_last and len(shape) == 2:
            continue
        if time.perf_counter() > deadline:
            left_out.append((shape, str(dtype), channels_last))
            continue
        rows += measure(shape, dtype, channels_last, bandwidth)
    for line in lines(rows):
        print(line)
    answers = verdicts(rows)
    for what, answer in answers.items():
        print(f"{what}: {answer}")
    if left_out:
        print(f"left out for want of time: {left_out}")
    results = Results(rows=rows, notes={"bandwidth": bandwidth, "verdicts": answers, "left_out": left_out})
    if options.output:
        results.save(options.output)
    if with_ladder:  # last, and with the rest saved: a kernel that fails takes the GPU's context with it
        try:
            results.rows += measure_ladder(bandwidth)
        except Exception as error:
            print(f"the ladder failed: {error}")
            return 1
        if options.output:
            results.save(options.output)
    dist.destroy_process_group()
    return 0 if all(answer["met"] for answer in answers.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
