"""The layers that ``gpu.py`` times, as functions of the input and the parameters; all on one rank over NCCL."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sbnref.autograd import SyncBatchNormFunction
from sbnref.impls import build, cuda
from sbnref.impls.compiling import TORCH_HEADERS, call_compiler
from sbnref.running import RunningStats

Work = Callable[[int], object]  # a call on the i-th of the inputs, which are rotated


class Parameters:
    """What a batch norm keeps per channel, in float32."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.weight = torch.linspace(0.5, 1.5, channels, device=device).requires_grad_()
        self.bias = torch.linspace(-1, 1, channels, device=device).requires_grad_()
        self.mean, self.var = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def running(self) -> RunningStats:
        return RunningStats(self.mean, self.var, self.steps)


def sbnref_step(x: Tensor, p: Parameters) -> Tensor:
    """Ours, collectives included."""
    return SyncBatchNormFunction.apply(x, p.weight, p.bias, p.running, 0.1, 1e-5, "exact", dist.group.WORLD, cuda)


def torch_sync(x: Tensor, p: Parameters) -> Tensor:
    """What ``torch.nn.SyncBatchNorm`` runs in a group; it takes a matrix as (N, C).

    Eager, it waits for the GPU to drop empty ranks (``count_all[mask]``); where it is captured it leaves that out.
    """
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

    library: Any = None  # what build_mmcv returns

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
        dy, dweight, dbias = dy.contiguous(), torch.empty_like(weight), torch.empty_like(weight)
        MMCV.run(3, dy, xhat, dweight, dbias)
        dist.all_reduce(dweight)
        dist.all_reduce(dbias)
        dx = torch.empty_like(dy)
        MMCV.run(4, dy, xhat, weight, std, dweight, dbias, dx)
        return dx, dweight, dbias, None, None


def build_mmcv() -> ctypes.CDLL:
    """The peer's kernels, compiled as ours are."""
    library = Path(tempfile.mkdtemp(prefix="sbnref-mmcv-")) / "mmcv_passes.so"
    source = Path(__file__).with_name("mmcv_passes.cu")
    flags = ("-shared", *build.NVCC_FLAGS, f"-I{build.CSRC}", *TORCH_HEADERS)
    call_compiler(library, *flags, str(source), command=build.nvcc_command())
    return ctypes.CDLL(str(library))


def step_works(layer: Callable[[Tensor, Parameters], Tensor], xs: list[Tensor], dys: list[Tensor]) -> dict[str, Work]:
    """Forward, backward and both, of a layer."""
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


def kernel_works(xs: list[Tensor], dys: list[Tensor]) -> dict[str, Work]:
    """Our two kernels forward and our two backward, without the collectives between them."""
    parameters = Parameters(xs[0].shape[1], xs[0].device)
    gamma, beta, running = parameters.weight.detach(), parameters.bias.detach(), parameters.running
    xs = [x.detach() for x in xs]
    count = xs[0].numel() // xs[0].shape[1]  # the weight in mode 'exact'

    def forward(i: int) -> tuple[Tensor, Tensor]:
        x = xs[i % len(xs)]
        return cuda.forward_apply(x, cuda.forward_stats(x, count), None, gamma, beta, 1e-5, running, 0.1)

    saved = [forward(i)[1] for i in range(len(xs))]

    def backward(i: int) -> tuple[Tensor, Tensor, Tensor]:
        i %= len(xs)
        total = cuda.backward_stats(dys[i], xs[i], saved[i])
        return cuda.gradients(dys[i], xs[i], total, saved[i], gamma, beta, xs[i].numel() // xs[i].shape[1], 1)

    return {"forward": forward, "backward": backward}


OURS, KERNELS = "sbnref", "sbnref's kernels"
LAYERS: dict[str, Callable[[Tensor, Parameters], Tensor]] = {
    OURS: sbnref_step,
    "torch sync": torch_sync,
    "F.batch_norm": cudnn,
    "mmcv's algorithm": mmcv,
}
ALONE = (KERNELS, "F.batch_norm")  # these make no collective
