"""Time the layer and its peers on a GPU: forward, backward and both.

    python benchmarks/gpu.py [--seconds 240] [--output results.json]

Needs PyTorch and a CUDA GPU. CUDA events take the times, after a pause on the device that lets the host get ahead.
Inputs rotate, so that the cache does not hold them. Each pass is timed twice: called from Python, where the time of a
layer that waits for the GPU includes the host's time, and as the replay of a CUDA graph, which excludes it. The script
saves its results after every shape. It also times the host per call, layers with a ReLU, and the tutorials' ladder.

The floor of a pass is the least time it can take. Its parts are measured in the same run: the memory traffic (three
times the input's size forward, five times backward) at the bandwidth of copying, two launches of an empty kernel, and
for a layer that synchronizes the all-reduce of its payload on a group of one. Our kernels are timed beside the whole
step, in pairs and one by one; their floor has no collective.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_layers import ALONE, LAYERS, MMCV, RELU, Work, build_mmcv, sbnref_alone, step_works
from gpu_report import EAGER, GRAPH, Row, lines, verdicts

from benchmarks.results import Results
from benchmarks.timing import spread
from sbnref.collectives import sum_payloads
from sbnref.impls import cuda

Shape = tuple[int, ...]
Case = tuple[Shape, torch.dtype, bool]  # with whether channels come last

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
# From mobile networks, in float16 and channels-last: a row is no power of two of lanes.
NARROW: list[Shape] = [(64, 24, 56, 56), (64, 40, 28, 28), (64, 72, 56, 56), (64, 144, 56, 56)]
DTYPES = ["float16", "float32", "bfloat16"]
PASSES = {  # traffic in multiples of the input's size, and kernels
    "forward": (3, 2),
    "backward": (5, 2),
    "both": (8, 4),
    "forward stats": (1, 1),
    "forward apply": (2, 1),
    "backward stats": (2, 1),
    "backward apply": (3, 1),
}
LADDER_SHAPES = ((2, 256, 200, 304), (32, 256, 14, 14))  # beyond and within the cache; also timed with a ReLU
SMALL: Shape = (2, 64, 7, 7)  # the GPU computes it faster than the host launches it
SAMPLES = 11
LADDER_SECONDS = 25  # reserved for compiling and timing the ladder


# ---- time on the device ----


def eager_seconds(work: Callable[[int], Any], repetitions: int) -> list[float]:
    """Return the device's seconds per call of ``work``, one number for each sample of ``repetitions`` calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin = time.perf_counter()
    for i in range(3):
        work(i)
    torch.cuda.synchronize()
    host_seconds = (time.perf_counter() - begin) / 3
    # At 2 GHz, longer than the host takes to launch everything, but at most 20 ms.
    pause = int(min(1.5 * host_seconds * repetitions, 0.02) * 2e9)
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


def copying() -> float:
    """Return the bytes per second, read and written, of a copy on the GPU."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(eager_seconds(lambda _: target.copy_(source), 5))


def counts(size: int, cache: int, bandwidth: float) -> tuple[int, int]:
    """Return the number of inputs that the cache cannot hold, and the calls per sample, at least one for each input."""
    copies = min(max(math.ceil(3 * cache / size), 1), 32)
    return copies, max(2, copies, min(20, int(2e-3 / (8 * size / bandwidth))))


def graph_seconds(work: Work, repetitions: int) -> list[float]:
    """Like ``eager_seconds``, for a CUDA graph of the calls. Call ``work`` once before, on the current stream."""
    graph = torch.cuda.CUDAGraph()
    # NCCL's thread queries its events meanwhile, which the stricter default mode forbids.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        for i in range(repetitions):
            work(i)
    return [seconds / repetitions for seconds in eager_seconds(lambda _: graph.replay(), 1)]


SECONDS = {EAGER: eager_seconds, GRAPH: graph_seconds}


def host_seconds(work: Work, repetitions: int) -> list[float]:
    """Return the host's seconds per call, in samples as in ``eager_seconds`` but without pauses."""
    samples = []
    for _ in range(SAMPLES + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for i in range(repetitions):
            work(i)
        samples.append((time.perf_counter() - begin) / repetitions)
    return samples[1:]


def seconds_each(work: Work, timing: str) -> float:
    """Return the median seconds of a call."""
    return statistics.median(SECONDS[timing](work, 20))


class Floor:
    """The least time that a pass can take, in seconds."""

    def __init__(self) -> None:
        self.bandwidth = copying()
        # Seconds per empty kernel, in a series.
        self.launch = {timing: seconds_each(lambda _: torch.cuda._sleep(0), timing) for timing in SECONDS}
        self.collectives: dict[tuple[int, str], float] = {}  # by channels and timing, measured on demand

    def __call__(self, moved: int, launches: int, timing: str, payloads: int = 0, channels: int = 0) -> float:
        seconds = moved / self.bandwidth + launches * self.launch[timing]
        return seconds + payloads * self._collective(channels, timing) if payloads else seconds

    def _collective(self, channels: int, timing: str) -> float:
        if (channels, timing) not in self.collectives:
            payload = torch.zeros(3 * channels + 2, dtype=torch.float64, device="cuda")
            reduce = torch.no_grad()(partial(sum_payloads, payload, dist.group.WORLD))  # as the layer does
            self.collectives[channels, timing] = seconds_each(lambda _: reduce(), timing)
        return self.collectives[channels, timing]

    def notes(self) -> dict[str, Any]:
        """Return the measured parts for the result file."""
        collectives = [{"channels": c, "timing": t, "seconds": s} for (c, t), s in self.collectives.items()]
        return {"bandwidth": self.bandwidth, "launch": self.launch, "collectives": collectives}


# ---- measurements ----


class Benchmark:
    """A run: its floor, its results, and its failures.

    Attributes:
        results: a row for each layer, pass and timing.
        failures: the failed measurements, with the error.
        left: the remaining cases.
    """

    def __init__(self, floor: Floor, cases: list[Case], output: Path | None) -> None:
        self.floor, self.left, self.output = floor, cases, output
        self.results = Results()
        self.failures: list[Row] = []
        self.layers = dict(LAYERS)
        self.given_up: set[tuple[str, str]] = set()  # failed captures, which are not tried again

    def run(self, deadline: float) -> None:
        """Measure cases until the deadline, and save after every shape."""
        self.save()
        while self.left and time.perf_counter() < deadline:
            self.results.rows += self.measure(*self.left[0])
            del self.left[0]
            self.save()

    def save(self) -> None:
        """Write the results so far, so that a killed process loses only one shape."""
        left_out = [(shape, str(dtype), channels_last) for shape, dtype, channels_last in self.left]
        rows = [row for row in self.results.rows if row["suite"] == "gpu"]
        self.results.notes = {
            **self.floor.notes(),
            "verdicts": verdicts(rows, self.failures, left_out),
            "failures": self.failures,
            "left_out": left_out,
        }
        if self.output:
            self.results.save(self.output)

    def failed(self, layer: str, where: Any, error: Exception) -> None:
        """Record a failed measurement, and print its error."""
        said = (str(error).splitlines() or [repr(error)])[0]
        self.failures.append({"layer": layer, "where": str(where), "error": said})
        print(f"  {layer}, {where}: {said}", file=sys.stderr, flush=True)

    def measure(self, shape: Shape, dtype: torch.dtype, channels_last: bool) -> Iterator[Row]:
        """Yield a row for each layer, pass and timing."""
        size = math.prod(shape) * dtype.itemsize
        cache = torch.cuda.get_device_properties("cuda").L2_cache_size
        copies, repetitions = counts(size, cache, self.floor.bandwidth)
        xs = [tensor(shape, dtype, channels_last).requires_grad_() for _ in range(copies)]
        dys = [tensor(shape, dtype, channels_last) for _ in range(copies)]
        for name, make in {**self.layers, **(RELU if shape in LADDER_SHAPES else {})}.items():
            try:
                works = make(xs, dys)
            except Exception as error:
                self.failed(name, (shape, dtype), error)
                continue
            for (what, work), timing in itertools.product(works.items(), SECONDS):
                if (name, timing) in self.given_up:
                    continue
                times_size, launches = PASSES[what]
                moved, payloads = times_size * size, 0 if name in ALONE else launches // 2
                try:
                    times = spread(SECONDS[timing](work, repetitions))
                    floor = self.floor(moved, launches, timing, payloads, shape[1])
                except Exception as error:
                    self.failed(name, (what, timing, shape, dtype), error)
                    if timing == GRAPH:
                        self.given_up.add((name, timing))
                    continue
                made = row("gpu", name, f"{what}, {timing}", xs[0], times, moved, floor)
                yield {**made, "traffic": moved / self.floor.bandwidth, "beyond_cache": 2 * size > cache}

    def measure_host(self) -> Iterator[Row]:
        """Yield a row for each layer: the host's time per call."""
        x, dy = tensor(SMALL, torch.float32, False).requires_grad_(), tensor(SMALL, torch.float32, False)
        for name, make in {**self.layers, "sbnref in one process": partial(step_works, sbnref_alone)}.items():
            try:
                for what, work in make([x], [dy]).items():
                    yield row("host", name, what, x, spread(host_seconds(work, 50)))
            except Exception as error:
                self.failed(name, "the host's time", error)

    def measure_ladder(self) -> Iterator[Row]:
        """Yield a row for each rung of the tutorials' ladder of kernels, forward."""
        sys.path.append(str(Path(__file__).resolve().parent.parent / "tutorials"))
        from kernels import ladder

        gpu = torch.cuda.get_device_properties("cuda")
        resident = gpu.multi_processor_count * (gpu.max_threads_per_multi_processor // ladder.THREADS)
        for shape, (name, rung) in itertools.product(LADDER_SHAPES, ladder.RUNGS.items()):
            size = math.prod(shape) * rung.dtype.itemsize
            copies, repetitions = counts(size, gpu.L2_cache_size, self.floor.bandwidth)
            xs = [tensor(shape, rung.dtype, name == "7 channels-last") for _ in range(copies)]
            calls = [ladder.Call(name, x, blocks=resident) for x in xs]
            want = F.batch_norm(xs[0].float(), None, None, training=True).to(rung.dtype)
            rtol = max(1e-4, torch.finfo(rung.dtype).eps)
            torch.testing.assert_close(calls[0].run(), want, rtol=rtol, atol=1e-4)

            def forward(i: int, calls: list[Any] = calls) -> Tensor:
                return calls[i % len(calls)].run()

            floor = self.floor(3 * size, len(rung.functions), EAGER)
            yield row("ladder", name, "forward", xs[0], spread(eager_seconds(forward, repetitions)), 3 * size, floor)


def row(suite: str, layer: str, what: str, x: Tensor, times: Row, moved: int = 0, floor: float = 0) -> Row:
    """Return a measurement, with its floor if there is one."""
    made = {
        "suite": suite,
        "layer": layer,
        "what": what,
        "shape": tuple(x.shape),
        "layout": "contiguous" if x.is_contiguous() else "channels_last",
        "dtype": str(x.dtype).removeprefix("torch."),
        "world_size": 1,
        **times,
    }
    return {**made, "floor": floor, "over_floor": times["median"] / floor, "bytes_moved": moved} if floor else made


@functools.cache
def generator(device: str) -> torch.Generator:
    """Return a generator of our own: PyTorch's default one takes part in captures, and a failed capture disables it."""
    return torch.Generator(device).manual_seed(0)


def tensor(shape: Shape, dtype: torch.dtype, channels_last: bool, device: str = "cuda") -> Tensor:
    """Return random numbers with mean 1."""
    x = (torch.randn(shape, device=device, generator=generator(device)) + 1).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


def cases_of(dtypes: list[str]) -> list[Case]:
    """Return every shape in these dtypes, channels-first before channels-last."""
    each = itertools.product(dtypes, (False, True), itertools.chain(*SHAPES.values()))
    cases = [(shape, getattr(torch, dtype), last) for dtype, last, shape in each if not (last and len(shape) == 2)]
    return cases + [(shape, torch.float16, True) for shape in NARROW if "float16" in dtypes]


def main() -> int:
    """Measure as many cases as the time allows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="time limit; the remaining cases are left out")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="the dtypes to measure")
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    if (reason := cuda.why_not(torch.device("cuda"))) is not None:
        print(f"benchmarks/gpu.py needs the kernels on a GPU: {reason}", file=sys.stderr)
        return 2

    start = time.perf_counter()
    dist.init_process_group("nccl", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
    # A capture, and all the work that it depends on, need a stream other than the default one.
    with torch.cuda.stream(torch.cuda.Stream()):
        benchmark = Benchmark(Floor(), cases_of(options.dtypes), options.output)
        floor = benchmark.floor
        launches = ", ".join(f"{1e6 * seconds:.2f} µs ({timing})" for timing, seconds in floor.launch.items())
        print(f"{torch.cuda.get_device_name()}: copying moves {floor.bandwidth / 1e12:.2f} TB/s")
        print(f"a launch takes {launches}", flush=True)
        try:
            MMCV.library = build_mmcv()
        except Exception as error:
            del benchmark.layers["mmcv's algorithm"]
            benchmark.failed("mmcv's algorithm", "build", error)
        benchmark.results.rows += benchmark.measure_host()
        with_ladder = options.seconds > 4 * LADDER_SECONDS
        benchmark.run(start + options.seconds - (LADDER_SECONDS if with_ladder else 0))
        for line in lines(benchmark.results.rows):
            print(line)
        if with_ladder:  # last, after saving the rest: a failing kernel destroys the GPU's context
            try:
                benchmark.results.rows += benchmark.measure_ladder()
            except Exception as error:
                benchmark.failed("the ladder", "forward", error)
            benchmark.save()
    answers = benchmark.results.notes["verdicts"]
    for what, answer in answers.items():
        print(f"{what}: {answer}")
    dist.destroy_process_group()
    return 0 if all(answer["met"] for answer in answers.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
