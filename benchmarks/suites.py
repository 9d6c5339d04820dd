"""The suites of measurements. Each adds rows to the results, without the peers that cannot run on an input."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sbnref.conformance.watch import Watch
from sbnref.functional import masked
from sbnref.interop.peers import MMCVSyncBatchNorm, NaiveSyncBatchNorm
from sbnref.lab.timing import interleaved
from sbnref.launch import Ranks
from sbnref.modes import payload_dtype
from sbnref.module import SyncBatchNorm

from .results import Results, Row
from .timing import fill, peak_bytes, repeated, spread

Shape = tuple[int, ...]
LayerMaker = Callable[[int], nn.Module]

# From ResNet-50 at batch 32, detection maps and box heads, sequences, volumes.
SHAPES: list[Shape] = [
    (32, 64, 56, 56),
    (32, 256, 14, 14),
    (32, 2048, 7, 7),
    (2, 256, 100, 152),
    (512, 256, 7, 7),
    (512, 1024),
    (32, 128, 500),
    (1, 32, 48, 48, 48),
]
QUICK: list[Shape] = [(32, 64, 56, 56), (32, 2048, 7, 7)]
SEQUENCES: list[Shape] = [(32, 128, 500), (64, 256, 200)]  # a quarter of the positions is padding
TINY: Shape = (2, 8, 2, 2)
# Set before the measuring processes start. glibc keeps freed memory: otherwise it may map large tensors anew each time,
# and the times include the page faults. The last setting silences the profiler.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "KINETO_LOG_LEVEL": "99",
}
WORLDS, QUICK_WORLDS = (2, 4, 8, 12, 16), (2, 4)  # sizes for the collectives


def fairscale(channels: int) -> nn.Module:
    """Return the layer of the package fairscale. It synchronizes in every process group, even in a world of one."""
    warnings.filterwarnings("ignore", module="fairscale")  # it calls deprecated functions
    from fairscale.experimental.nn import SyncBatchNorm as Layer

    return Layer(channels)


def ours(channels: int) -> nn.Module:
    """Return the reference, in the mode that equals batch norm over all elements."""
    return SyncBatchNorm(channels, stats_mode="exact", impl="reference")


def native(channels: int) -> nn.Module:
    """Return the CPU kernels in mode 'exact'."""
    return SyncBatchNorm(channels, stats_mode="exact", impl="cpu")


def compiled(make: LayerMaker, channels: int) -> nn.Module:
    """Return the layer through torch.compile."""
    layer = make(channels)
    layer.compile(fullgraph=True)
    return layer


EAGER: dict[str, LayerMaker] = {
    "reference": ours,
    "cpu kernels": native,
    "F.batch_norm": nn.BatchNorm2d,
    "E[x²]−E[x]²": NaiveSyncBatchNorm,
    "fairscale": fairscale,
}
COMPILED: dict[str, LayerMaker] = {
    "reference, compiled": partial(compiled, ours),
    "F.batch_norm, compiled": partial(compiled, nn.BatchNorm2d),
}


def run(suites: list[str], quick: bool) -> Results:
    """Run the named suites, and show progress.

    Raises:
        BuildError: there is no compiler for the CPU kernels and the compiled layers.
    """
    from rich.progress import Progress  # reading and writing results does without it

    from sbnref.impls.build import build_all

    build_all(("cpu",))
    results = Results()
    with patch.dict(os.environ, ENVIRONMENT), Progress(transient=True) as progress:
        for name in progress.track(suites, description="benchmarks"):
            SUITES[name](results, quick)
    return results


def one_process(results: Results, quick: bool) -> None:
    """Measure forward and forward + backward in one process, the memory of a step, and a copy of the same bytes."""
    cases = [(shape, layout, torch.float32) for shape in QUICK for layout in ("contiguous", "channels_last")]
    if not quick:
        cases = [
            (shape, layout, dtype)
            for shape in SHAPES
            for layout in (("contiguous", "channels_last") if len(shape) > 3 else ("contiguous",))
            for dtype in (torch.float32, torch.bfloat16)
        ]
    with Ranks(1, timeout=600) as ranks:
        for case in cases:
            results.rows += ranks.run(_one_process, *case, 0.5 if quick else 2.0)[0]


def _one_process(shape: Shape, layout: str, dtype: torch.dtype, seconds: float) -> list[Row]:
    torch.manual_seed(0)
    x, dy = fill(shape, dtype, layout), fill(shape, dtype, layout)
    about = {"suite": "one_process", "shape": shape, "layout": layout, "dtype": str(dtype)[6:], "world_size": 1}
    rows: list[Row] = []
    steps: dict[str, Callable[[], Any]] = {}
    forwards: dict[str, Callable[[], Any]] = {}
    for name, make in {**EAGER, **COMPILED}.items():
        layer: nn.Module = make(shape[1])
        if isinstance(layer, nn.BatchNorm2d):
            layer._check_input_dim = lambda input: None  # type: ignore[method-assign] # any number of dimensions
        try:
            _step(layer, x, dy)
        except (RuntimeError, ValueError):  # the peer does not support this dtype or shape
            continue
        steps[name] = partial(_step, layer, x, dy)
        forwards[name] = partial(layer, x.detach().requires_grad_())
    target = torch.empty_like(x)
    forwards["copy"] = partial(target.copy_, x)
    for what, works in (("forward", forwards), ("forward + backward", steps)):
        for name, times in interleaved(works, seconds).items():
            rows.append({**about, "layer": name, "what": what, **spread(times)})
    for row in rows:
        if row["what"] == "forward + backward":
            row["peak_bytes"] = peak_bytes(steps[row["layer"]])
            row["input_bytes"] = x.numel() * x.itemsize
    torch.compiler.reset()
    return rows


def _step(layer: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> None:
    layer(x.detach().requires_grad_()).backward(dy)


def processes(results: Results, quick: bool) -> None:
    """Measure a training step and its collectives on 2 and 4 ranks over gloo, one thread each."""
    for world_size in (2,) if quick else (2, 4):
        with Ranks(world_size, timeout=600) as ranks:
            for shape in QUICK[:1] if quick else SHAPES:
                # smaller batches: the ranks share the cores
                share = (max(shape[0] // world_size, 1), *shape[1:])
                results.rows += ranks.run(_processes, share, 5 if quick else 15)[0]


def _processes(shape: Shape, repetitions: int) -> list[Row]:
    torch.set_num_threads(1)
    torch.manual_seed(dist.get_rank())
    x, dy = fill(shape, torch.float32, "contiguous"), fill(shape, torch.float32, "contiguous")
    peers: dict[str, LayerMaker] = {name: make for name, make in EAGER.items() if name != "F.batch_norm"}
    peers["mmcv's algorithm"] = MMCVSyncBatchNorm
    layers = {name: make(shape[1]) for name, make in peers.items()}
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(3):  # in turn, so that a disturbance affects all layers
        for name, layer in layers.items():
            times[name] += repeated(partial(_step, layer, x, dy), repetitions, dist.barrier)
    rows = []
    for name, layer in layers.items():
        with Watch() as watch:
            _step(layer, x, dy)
        rows.append(
            {
                "suite": "processes",
                "layer": name,
                "what": "forward + backward",
                "shape": shape,
                "layout": "contiguous",
                "dtype": "float32",
                "world_size": dist.get_world_size(),
                "collectives": len(watch.collectives),
                "bytes_sent": sum(n * dtype.itemsize for _, n, dtype in watch.collectives),
                **spread(times[name]),
            }
        )
    return rows


def scaling(results: Results, quick: bool) -> None:
    """Compare our all-reduce with an all-gather of every rank's statistics, as the world grows.

    Channel counts beyond any layer's show the bandwidth, which small messages do not.
    """
    for world_size in QUICK_WORLDS if quick else WORLDS:
        with Ranks(world_size, timeout=600) as ranks:
            for channels in (64, 1 << 19) if quick else (64, 256, 1024, 4096, 1 << 16, 1 << 19):
                results.rows += ranks.run(_collectives, channels, 10 if quick else 40)[0]


def _collectives(channels: int, repetitions: int) -> list[Row]:
    world_size = dist.get_world_size()
    payload = torch.zeros(3 * channels + 2, dtype=payload_dtype(torch.device("cpu")))
    contribution = torch.zeros(2 * channels + 1)  # torch.nn.SyncBatchNorm gathers these
    everybodys = [torch.empty_like(contribution) for _ in range(world_size)]
    works = {
        "all-reduce": (partial(dist.all_reduce, payload), payload),
        "all-gather": (partial(dist.all_gather, everybodys, contribution), contribution),
    }
    return [
        {
            "suite": "scaling",
            "layer": name,
            "what": "collective",
            "shape": (channels,),
            "dtype": str(sent.dtype)[6:],
            "world_size": world_size,
            "bytes": sent.numel() * sent.itemsize,
            **spread(repeated(work, repetitions, dist.barrier)),
        }
        for name, (work, sent) in works.items()
    ]


def padding(results: Results, quick: bool) -> None:
    """Measure batch norm over the valid positions of padded sequences, and its parts."""
    with Ranks(1, timeout=600) as ranks:
        for shape in SEQUENCES[:1] if quick else SEQUENCES:
            results.rows += ranks.run(_padding, shape, 0.5 if quick else 4.0)[0]


def _padding(shape: Shape, seconds: float) -> list[Row]:
    torch.manual_seed(0)
    x, dy = fill(shape, torch.float32, "contiguous"), fill(shape, torch.float32, "contiguous")
    lengths = torch.linspace(shape[2] // 2, shape[2], shape[0]).long()[torch.randperm(shape[0])]
    mask = torch.arange(shape[2]) < lengths[:, None]
    valid, dvalid = x.movedim(1, -1)[mask], dy.movedim(1, -1)[mask]
    works: dict[str, Callable[[], Any]] = {}
    for name, make in {"reference": ours, "cpu kernels": native}.items():
        layer = make(shape[1])
        works[name] = partial(_step, partial(masked, layer, mask=mask), x, dy)
        works[f"{name}, valid positions packed"] = partial(_step, layer, valid, dvalid)
        works[f"{name}, padding taken for data"] = partial(_step, layer, x, dy)
    works["packing alone"] = partial(_step, partial(masked, nn.Identity(), mask=mask), x, dy)
    times = interleaved(works, seconds)
    about = {"suite": "padding", "what": "forward + backward", "shape": shape, "layout": "contiguous"}
    rows: dict[str, Row] = {
        name: {**about, "layer": name, "dtype": "float32", "world_size": 1, **spread(times[name])} for name in works
    }
    for name in ("reference", "cpu kernels"):
        parts = rows["packing alone"]["median"] + rows[f"{name}, valid positions packed"]["median"]
        rows[name]["over_parts"] = rows[name]["median"] / parts
    return list(rows.values())


def overhead(results: Results, quick: bool) -> None:
    """Measure a step on a few numbers: the cost of Python and dispatch, with almost nothing to compute."""
    with Ranks(1) as ranks:
        results.rows += ranks.run(_overhead, 0.5 if quick else 3.0)[0]


def _overhead(seconds: float) -> list[Row]:
    x, dy = fill(TINY, torch.float32, "contiguous"), fill(TINY, torch.float32, "contiguous")
    layers = {name: make(TINY[1]) for name, make in EAGER.items()}
    rows = []
    for name, times in interleaved({n: partial(_step, layer, x, dy) for n, layer in layers.items()}, seconds).items():
        with Watch() as watch:
            _step(layers[name], x, dy)
        rows.append(
            {
                "suite": "overhead",
                "layer": name,
                "what": "forward + backward",
                "shape": TINY,
                "layout": "contiguous",
                "dtype": "float32",
                "world_size": 1,
                "host_reads": len(watch.host_reads),
                **spread(times),
            }
        )
    return rows


SUITES: dict[str, Callable[[Results, bool], None]] = {
    "one_process": one_process,
    "processes": processes,
    "scaling": scaling,
    "padding": padding,
    "overhead": overhead,
}
