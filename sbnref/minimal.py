"""Synchronized batch normalization in thirty lines: the whole idea, to read first.

A rank computes the mean of x and of x² over its own elements and multiplies both by its weight. One all-reduce adds up
the weighted means of all ranks, and every rank normalizes by the same statistics. ``all_reduce`` is differentiable, so
autograd derives the backward pass, with one more all-reduce. A rank without data takes part and sends zeros.

The layer adds precision far from zero and in half precision (``impls/reference.py``), a backward pass without a copy
of the input (``autograd.py``), speed (``impls/cpu.py``, ``impls/cuda.py``), running statistics (``running.py``),
gradients of the parameters averaged over the ranks (here ``DistributedDataParallel`` averages them), groups
(``collectives.py``) and error messages (``validation.py``).
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def sync_batch_norm(
    x: Tensor,  # (N, C, *)
    weight: Tensor,  # (C,)
    bias: Tensor,  # (C,)
    stats_mode: str = "exact",
    eps: float = 1e-5,
) -> Tensor:  # (N, C, *)
    """Normalize x by the statistics of all ranks."""
    n, channels, *spatial = x.shape
    m = x.numel() // channels  # elements per channel on this rank

    # The weight of this rank
    w = {"default": min(m, 1), "N": n * min(m, 1), "exact": m}[stats_mode]
    rows = x.transpose(0, 1).reshape(channels, m)
    means = torch.cat([rows.sum(1), rows.square().sum(1)]) / max(m, 1)  # of x, x²

    # Sum over the ranks. A rank without data adds zeros.
    total = all_reduce(torch.cat([w * means, means.new_tensor([w])]))
    s1, s2, weights = total[:channels], total[channels:-1], total[-1]

    # Normalize. The variance is the sum of w (var_r + (mean_r - mean)²), divided.
    divisor = dist.get_world_size() if stats_mode == "default" else weights.clamp(min=1)
    mean = s1 / divisor
    var = (s2 - 2 * mean * s1 + mean * mean * weights) / divisor
    scale = weight / (var + eps).sqrt()
    mean, scale, bias = (t.view(-1, *[1] * len(spatial)) for t in (mean, scale, bias))
    return (x - mean) * scale + bias
