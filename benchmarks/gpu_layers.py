"""The layers that ``gpu.py`` times, as functions of the input and the parameters; all on one rank over NCCL."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sbnref.autograd import SyncBatchNormFunction
from sbnref.functional import sync_batch_norm
from sbnref.impls import build, cuda
from sbnref.impls.compiling import TORCH_HEADERS, call_compiler
from sbnref.running import RunningStats

Work = Callable[[int], object]  # a call on the i-th input; inputs rotate
Works = Callable[[list[Tensor], list[Tensor]], dict[str, Work]]  # makes the works from inputs and upstream gradients


class Parameters:
    """The parameters and running statistics of a batch norm, in float32."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.weight = torch.linspace(0.5, 1.5, channels, device=device).requires_grad_()
        self.bias = torch.linspace(-1, 1, channels, device=device).requires_grad_()
        self.mean, self.var = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def running(self) -> RunningStats:
        return RunningStats(self.mean, self.var, self.steps)


def sbnref_step(x: Tensor, p: Parameters) -> Tensor:
    """Run our layer, with its collectives."""
    return SyncBatchNormFunction.apply(x, p.weight, p.bias, p.running, 0.1, 1e-5, "exact", dist.group.WORLD, cuda)


def torch_sync(x: Tensor, p: Parameters) -> Tensor:
    """Run the function that ``torch.nn.SyncBatchNorm`` runs in a group; a matrix is (N, C).

    An eager call waits for the GPU to drop empty ranks (``count_all[mask]``); a captured one skips this step.
    """
    function = torch.nn.modules._functions.SyncBatchNorm
    return function.apply(x, p.weight, p.bias, p.mean, p.var, 1e-5, 0.1, dist.group.WORLD, 1)


def cudnn(x: Tensor, p: Parameters) -> Tensor:
    """Run ``F.batch_norm``, without synchronization."""
    return F.batch_norm(x, p.mean, p.var, p.weight, p.bias, training=True)


def sbnref_alone(x: Tensor, p: Parameters) -> Tensor:
    """Run our layer as in one process: with argument checks, without a collective."""
    return sync_batch_norm(
        x, p.mean, p.var, p.weight, p.bias, True, num_batches_tracked=p.steps, stats_mode="exact", impl="cuda"
    )


def sbnref_relu(x: Tensor, p: Parameters) -> Tensor:
    """Run our layer as in one process, then the ReLU that follows in a network."""
    return F.relu(sbnref_alone(x, p))


def cudnn_relu(x: Tensor, p: Parameters) -> Tensor:
    """Run PyTorch's batch norm and ReLU, which ``torch.compile`` fuses."""
    return F.relu(cudnn(x, p))


def mmcv(x: Tensor, p: Parameters) -> Tensor:
    """Run mmcv's published algorithm."""
    return MMCV.apply(x, p.weight, p.bias, p.mean, p.var)


class MMCV(torch.autograd.Function):
    """Five passes in ``mmcv_passes.cu``, two collectives forward and two backward; x and dy are contiguous."""

    library: Any = None  # set to the result of build_mmcv

    @classmethod
    def run(cls, number: int, x: Tensor, *tensors: Tensor, eps: float = 1e-5, momentum: float = 0.1) -> None:
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
        dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
        MMCV.run(3, dy, xhat, dweight, dbias)
        dist.all_reduce(dweight)
        dist.all_reduce(dbias)
        dx = torch.empty_like(dy)
        MMCV.run(4, dy, xhat, weight, std, dweight, dbias, dx)
        return dx, dweight, dbias, None, None


def build_mmcv() -> ctypes.CDLL:
    """Compile the peer's kernels with our flags, and load them."""
    library = Path(tempfile.mkdtemp(prefix="sbnref-mmcv-")) / "mmcv_passes.so"
    source = Path(__file__).with_name("mmcv_passes.cu")
    flags = ("-shared", *build.NVCC_FLAGS, f"-I{build.CSRC}", *TORCH_HEADERS)
    call_compiler(library, *flags, str(source), command=build.nvcc_command())
    return ctypes.CDLL(str(library))


def step_works(layer: Callable[[Tensor, Parameters], Tensor], xs: list[Tensor], dys: list[Tensor]) -> dict[str, Work]:
    """Return the forward, the backward and both of a layer."""
    parameters = Parameters(xs[0].shape[1], xs[0].device)
    ys = [layer(x, parameters) for x in xs]
    inputs = [(x, parameters.weight, parameters.bias) for x in xs]

    def forward(i: int) -> Tensor:
        return layer(xs[i % len(xs)], parameters)

    def backward(i: int) -> None:
        i %= len(xs)
        torch.autograd.grad(ys[i], inputs[i], dys[i], retain_graph=True)

    def both(i: int) -> None:
        torch.autograd.grad(forward(i), inputs[i % len(xs)], dys[i % len(xs)])

    return {"forward": forward, "backward": backward, "both": both}


def mmcv_works(xs: list[Tensor], dys: list[Tensor]) -> dict[str, Work]:
    """Return mmcv's works on channels-first copies, its only layout; the copies are not timed."""
    xs, dys = ([t.detach().contiguous() for t in tensors] for tensors in (xs, dys))
    return step_works(mmcv, [x.requires_grad_() for x in xs], dys)


def kernel_works(xs: list[Tensor], dys: list[Tensor]) -> dict[str, Work]:
    """Return our two forward and two backward kernels, in pairs without the collective between, and one by one."""
    parameters = Parameters(xs[0].shape[1], xs[0].device)
    gamma, beta, running = parameters.weight.detach(), parameters.bias.detach(), parameters.running
    xs = [x.detach() for x in xs]
    count = xs[0].numel() // xs[0].shape[1]  # the weight in mode 'exact'

    def forward(i: int, total: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = xs[i % len(xs)]
        total = cuda.forward_stats(x, count) if total is None else total
        return cuda.forward_apply(x, total, None, gamma, beta, 1e-5, running, 0.1)

    saved = [forward(i)[1] for i in range(len(xs))]

    def backward_stats(i: int) -> Tensor:
        i %= len(xs)
        return cuda.backward_stats(dys[i], xs[i], saved[i])

    def backward(i: int, total: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        total = backward_stats(i) if total is None else total
        i %= len(xs)
        return cuda.gradients(dys[i], xs[i], total, saved[i], gamma, beta, count, 1)

    return {
        "forward": forward,
        "backward": backward,
        "forward stats": lambda i: cuda.forward_stats(xs[i % len(xs)], count),
        "forward apply": partial(forward, total=cuda.forward_stats(xs[0], count)),
        "backward stats": backward_stats,
        "backward apply": partial(backward, total=backward_stats(0)),
    }


def fused_works(xs: list[Tensor], dys: list[Tensor]) -> dict[str, Work]:
    """Return forward and both. Backward alone cannot be repeated: compiled code overwrites its saved tensors."""
    torch.compiler.reset()
    works = step_works(torch.compile(cudnn_relu, fullgraph=True, dynamic=False), xs, dys)
    return {what: works[what] for what in ("forward", "both")}


OURS, KERNELS = "sbnref", "sbnref's kernels"
LAYERS: dict[str, Works] = {
    OURS: partial(step_works, sbnref_step),
    "torch sync": partial(step_works, torch_sync),
    "F.batch_norm": partial(step_works, cudnn),
    "mmcv's algorithm": mmcv_works,
    KERNELS: kernel_works,
}
RELU: dict[str, Works] = {"sbnref, ReLU": partial(step_works, sbnref_relu), "compiled BN, ReLU": fused_works}
ALONE = (KERNELS, "F.batch_norm", *RELU)  # these run no collective
