"""Synchronized batch normalization in four functions of your own. Grade them with: sbnref lab check FILE.py

    forward_stats  -> all-reduce -> forward_apply         backward_stats -> all-reduce -> backward_apply

Each rank holds x of shape (N, C, *): N samples, C channels, any number of spatial dimensions. N may be 0. Per channel
it has m = N * (spatial size) elements. The grader calls your functions for each rank in turn and adds up the payloads
between them, which is what the all-reduce does.

Accumulate in float32 for float16, bfloat16 and float32 inputs, in float64 for float64. Statistics are float64.
Do not change the inputs; the running statistics are the exception. The same call gives the same result, bit for bit.
"""

from torch import Tensor


def forward_stats(x: Tensor, weight: int) -> Tensor:
    """What this rank tells the others about its batch.

    Args:
        x: (N, C, *), the input.
        weight: w, what this rank weighs; 0 if it is empty.

    Returns:
        (3C + 2,) float64: [w mean, w var, w mean^2, w, m], with the local mean and biased variance of each channel.
    """
    raise NotImplementedError("forward_stats is still to be written")


def forward_apply(
    x: Tensor,
    total: Tensor,
    divisor: int | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    running: tuple[Tensor, Tensor, Tensor | None] | None,
    momentum: float | None,
) -> tuple[Tensor, Tensor]:
    """Normalize by the statistics of all ranks, and move the running ones.

    Args:
        x: (N, C, *), the input.
        total: (3C + 2,) float64, the payloads of all ranks, summed: [S1, S2, S3, W, M].
        divisor: D, or None for max(W, 1). mean = S1 / D and var = (S2 + B) / D, where B = S3 - mean (2 S1 - mean W) is
            the variance between the ranks. Below 2^-50 S3 it is a rounding error: take 0.
        gamma: (C,) or None for 1.
        beta: (C,) or None for 0.
        eps: added to the variance.
        running: None, or (mean, var, num_batches_tracked), to be updated in place, unless M = 0. The variance is
            corrected by M / (M - 1). Count the step in num_batches_tracked, a () int64 tensor, first.
        momentum: what this step weighs in the running statistics; None for 1 / num_batches_tracked.

    Returns:
        y, (N, C, *) in the dtype of x: gamma (x - mean) / sqrt(var + eps) + beta; and
        saved, one tensor of whatever the backward pass needs besides x. It is handed to the two functions below.
    """
    raise NotImplementedError("forward_apply is still to be written")


def backward_stats(dy: Tensor, x: Tensor, saved: Tensor) -> Tensor:
    """What this rank tells the others about its upstream gradient.

    Args:
        dy: (N, C, *), the gradient by y.
        x: (N, C, *), the input.
        saved: what your forward_apply saved. While that is still to be written it is the reference's, (4, C) float64:
            mean, 1 / sqrt(var + eps), mean / sqrt(var + eps) (1 - W/D), 1 / D.

    Returns:
        (2C,) float64: [sum g, sum g xhat] over this rank's elements; g = dy and xhat = (x - mean) / sqrt(var + eps).
    """
    raise NotImplementedError("backward_stats is still to be written")


def backward_apply(dy: Tensor, x: Tensor, total: Tensor, saved: Tensor, gamma: Tensor | None, k: float) -> Tensor:
    """The gradient by this rank's input.

    Args:
        dy: (N, C, *), the gradient by y.
        x: (N, C, *), the input.
        total: (2C,) float64, the payloads of all ranks, summed: [A, B].
        saved: as above.
        gamma: (C,) or None for 1.
        k: w / m, 0 on an empty rank.

    Returns:
        dx, (N, C, *) in the dtype of x, with sigma = sqrt(var + eps):
        gamma / sigma { g - k / D [A + xhat B - (B / sigma) mean (1 - W/D)] }
    """
    raise NotImplementedError("backward_apply is still to be written")
