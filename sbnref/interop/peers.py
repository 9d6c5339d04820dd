"""Other libraries' layers, for comparisons where the libraries cannot be imported.

Each follows the published algorithm of its project, in plain PyTorch so that it runs anywhere. Every detail that
affects a result is kept.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..collectives import all_reduce


class MMCVSyncBatchNorm(_BatchNorm):
    """The algorithm of ``mmcv.ops.SyncBatchNorm`` (2.x): mean, then variance, then output; xhat saved in float32."""

    def __init__(self, num_features: int, stats_mode: str = "default", **options: Any) -> None:
        super().__init__(num_features, **options)
        self.stats_mode = stats_mode

    def forward(self, x: Tensor) -> Tensor:
        return _MMCVFunction.apply(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps, self.stats_mode
        )


class _MMCVFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, C, *)
        weight: Tensor,  # (C,)
        bias: Tensor,  # (C,)
        running_mean: Tensor,  # (C,)
        running_var: Tensor,  # (C,)
        momentum: float,
        eps: float,
        stats_mode: str,
    ) -> Tensor:
        ranks, channels = dist.get_world_size(), x.shape[1]
        count = x.numel() // channels
        values = x.float().transpose(0, 1).reshape(channels, -1)  # (C, m)
        rank_weight = (x.shape[0] if stats_mode == "N" else 1) * (count > 0)

        local_mean = values.mean(1) if count else values.new_zeros(channels)
        reduced = torch.cat([local_mean, local_mean.new_ones(1)]) * rank_weight
        dist.all_reduce(reduced)
        total = reduced[-1]
        divisor = total.clamp(min=1) if stats_mode == "N" else ranks
        mean = reduced[:-1] / divisor

        var = (values - mean[:, None]).square().mean(1) * rank_weight if count else values.new_zeros(channels)
        dist.all_reduce(var)
        var = var / divisor

        std = (var + eps).sqrt()
        shape = [1, -1] + [1] * (x.dim() - 2)
        xhat = (x.float() - mean.view(shape)) / std.view(shape)
        factor = momentum * total.clamp(max=1)  # no update where all ranks are empty
        corrected = count * ranks  # of this rank's own count
        unbiased = var * corrected / (corrected - 1) if corrected > 1 else var
        running_mean.copy_(factor * mean + (1 - factor) * running_mean)
        running_var.copy_(factor * unbiased + (1 - factor) * running_var)
        ctx.save_for_backward(xhat, std, weight)
        return (xhat * weight.view(shape) + bias.view(shape)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        xhat, std, weight = ctx.saved_tensors
        over = [d for d in range(dy.dim()) if d != 1]
        shape = [1, -1] + [1] * (dy.dim() - 2)
        dweight, dbias = (dy.float() * xhat).sum(over), dy.float().sum(over)
        for parameter_gradient in (dweight, dbias):
            dist.all_reduce(parameter_gradient)
            parameter_gradient /= dist.get_world_size()
        m = max(dy.numel() // dy.shape[1], 1)
        shift = (dweight.view(shape) * xhat + dbias.view(shape)) / m
        dx = (weight / std).view(shape) * (dy.float() - shift)
        return dx.to(dy.dtype), dweight, dbias, None, None, None, None, None


class NaiveSyncBatchNorm(_BatchNorm):
    """The algorithm of ``detectron2.layers.NaiveSyncBatchNorm``: E[x] and E[x^2] in the input's precision.

    ``stats_mode`` is ``""`` (equal weights; no empty batches) or ``"N"``. In a single process it is the plain
    E[x^2] - E[x]^2 layer in the benchmarks of the reference.
    """

    def __init__(self, num_features: int, stats_mode: str = "", **options: Any) -> None:
        super().__init__(num_features, **options)
        self.stats_mode = stats_mode

    def forward(self, x: Tensor) -> Tensor:
        group = dist.group.WORLD if dist.is_initialized() else None
        over = [d for d in range(x.dim()) if d != 1]
        momentum: Any = self.momentum
        dtype, x = x.dtype, x.float() if x.dtype == torch.float16 else x
        if self.stats_mode == "":
            if x.shape[0] == 0:
                raise AssertionError('stats_mode="" does not support a batch of size 0')
            ranks = dist.get_world_size() if group else 1
            mean, square = (all_reduce(torch.cat([x.mean(over), (x * x).mean(over)]), group) / ranks).chunk(2)
            factor: Any = momentum
        else:
            n, channels = x.shape[0], x.shape[1]
            ones = x.new_ones(1)
            sums = torch.cat([x.mean(over), (x * x).mean(over), ones]) if n else x.new_zeros(2 * channels + 1) + x.sum()
            reduced = all_reduce(sums * n, group)
            total = reduced[-1].detach()
            mean, square = (reduced[:-1] / total.clamp(min=1)).chunk(2)
            factor = total.clamp(max=1) * momentum
        var = square - mean * mean
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        with torch.no_grad():
            for running, value in zip(self.buffers(), (mean, var), strict=False):
                running += factor * (value - running)
        shape = [1, -1] + [1] * (x.dim() - 2)
        return (x * scale.view(shape) + shift.view(shape)).to(dtype)
