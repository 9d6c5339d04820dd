"""Synchronized batch normalization in four functions of your own. Grade them with: sbnref lab check FILE.py

    forward_stats  -> all-reduce -> forward_apply         backward_stats -> all-reduce -> backward_apply

Each rank holds x of shape (N, C, *): N samples, C channels, any number of spatial dimensions. N may be 0. Per channel
it has m = N * (spatial size) elements. The grader calls your functions for each rank in turn, and adds up the payloads
between them, as the all-reduce does.

Accumulate in float32 for float16, bfloat16 and float32 inputs, in float64 for float64. Statistics are float64.
Do not change the inputs, except the running statistics. Equal calls must give equal results, bit for bit.
"""

from torch import Tensor


def forward_stats(
    x: Tensor,  # (N, C, *), the input
    weight: int,  # w, the weight of this rank; 0 if it is empty
) -> Tensor:  # (3C + 2,) float64
    """Return the payload of this rank, the weighted statistics of its batch.

    The payload is [w mean, w var, w mean^2, w, m], with the local mean and biased variance of each channel.
    """
    raise NotImplementedError("forward_stats is still to be written")


def forward_apply(
    x: Tensor,  # (N, C, *), the input
    total: Tensor,  # (3C + 2,) float64, the payloads of all ranks, summed: [S1, S2, S3, W, M]
    divisor: int | None,  # D, or None for max(W, 1)
    gamma: Tensor | None,  # (C,) or None for 1
    beta: Tensor | None,  # (C,) or None for 0
    eps: float,  # added to the variance
    running: tuple[Tensor, Tensor, Tensor | None] | None,  # mean, var and num_batches_tracked; update them in place
    momentum: float | None,  # the weight of this step in the running statistics; None for 1 / num_batches_tracked
) -> tuple[Tensor, Tensor]:  # y, (N, C, *) in the dtype of x; and saved, a tensor for the backward pass
    """Normalize by the statistics of all ranks, and update the running ones.

    mean = S1 / D and var = (S2 + B) / D, where B = S3 - mean (2 S1 - mean W) is the variance between the ranks. Below
    2^-50 S3, B is a rounding error: use 0.

    If M = 0, leave the running statistics as they are. If not, count the step in num_batches_tracked, a () int64
    tensor, first. Use var M / (M - 1) for the running variance.

    Return y = gamma (x - mean) / sqrt(var + eps) + beta; and saved, one tensor, an argument of the functions below.
    """
    raise NotImplementedError("forward_apply is still to be written")


def backward_stats(
    dy: Tensor,  # (N, C, *), the gradient with respect to y
    x: Tensor,  # (N, C, *), the input
    saved: Tensor,  # from your forward_apply
) -> Tensor:  # (2C,) float64
    """Return the payload of this rank's upstream gradient.

    The payload is [sum g, sum g xhat] over this rank's elements; g = dy and xhat = (x - mean) / sqrt(var + eps).

    Until your forward_apply is written, saved is the reference's, (4, C) float64: mean, 1 / sqrt(var + eps),
    mean / sqrt(var + eps) (1 - W/D), 1 / D.
    """
    raise NotImplementedError("backward_stats is still to be written")


def backward_apply(
    dy: Tensor,  # (N, C, *), the gradient with respect to y
    x: Tensor,  # (N, C, *), the input
    total: Tensor,  # (2C,) float64, the payloads of all ranks, summed: [A, B]
    saved: Tensor,  # as above
    gamma: Tensor | None,  # (C,) or None for 1
    k: float,  # w / m, 0 on an empty rank
) -> Tensor:  # dx, (N, C, *) in the dtype of x
    """Return the gradient with respect to this rank's input.

    It is gamma / sigma { g - k / D [A + xhat B - (B / sigma) mean (1 - W/D)] } with sigma = sqrt(var + eps).
    """
    raise NotImplementedError("backward_apply is still to be written")
