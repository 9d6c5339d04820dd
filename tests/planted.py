"""Eight implementations, each with a kind of bug that libraries have shipped, and the faulty stage."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from sbnref.impls import STAGES, reference
from sbnref.impls.reference import over, sum_of


def replaced(**stages):
    return SimpleNamespace(**{stage: stages.get(stage, getattr(reference, stage)) for stage in STAGES})


def _wrong_divisor(x, total, divisor, *rest):
    """Divide by the sum of the weights in every mode, although in 'default' an empty rank counts."""
    return reference.forward_apply(x, total, None, *rest)


def _dropped_last_term(dy, x, total, saved, gamma, k):
    """Omit the term that is nonzero only if W differs from D."""
    mean, invstd, skew, inverse_divisor = saved
    return reference.backward_apply(dy, x, total, torch.stack([mean, invstd, 0 * skew, inverse_divisor]), gamma, k)


def _biased_running_variance(x, total, divisor, gamma, beta, eps, running, momentum):
    """Omit the factor M / (M - 1)."""
    before = running and running.var.clone()
    out = reference.forward_apply(x, total, divisor, gamma, beta, eps, running, momentum)
    if running is not None and momentum is not None:
        elements = total[-1].clamp(min=2)
        unbiased = (elements / (elements - 1)).to(before.dtype)
        moved = (running.var - before * (1 - momentum)) / unbiased + before * (1 - momentum)
        running.var.copy_(torch.where(total[-1] > 0, moved, running.var))
    return out


def _unsynchronized_count(x, total, divisor, gamma, beta, eps, running, momentum):
    """Correct the running variance by the rank's count of elements, not the group's."""
    y, saved = reference.forward_apply(x, total, divisor, gamma, beta, eps, None, momentum)
    if running is not None:
        own = torch.cat([total[:-1], total.new_full((1,), x.numel() // x.shape[1])])
        reference.forward_apply(x, own, divisor, gamma, beta, eps, running, momentum)
    return y, saved


def _race(dy, x, saved):
    """Lose a random part of each sum, like blocks that race on one address."""
    payload = reference.backward_stats(dy, x, saved)
    return payload - torch.rand_like(payload) * payload.abs() * 0.01


def _unaligned_tail(dy, x, total, saved, gamma, k):
    """Handle four elements at a time, and skip the remainder."""
    dx = reference.backward_apply(dy, x, total, saved, gamma, k)
    tail = dx.numel() % 4
    return dx if not tail else torch.cat([dx.flatten()[:-tail], dx.new_zeros(tail)]).view(dx.shape)


def _half_accumulation(x, weight):
    """Sum in the input's dtype, even in float16."""
    m = x.numel() // x.shape[1]
    mean = sum_of(x) / max(m, 1)
    deviation = x - over(x, mean)
    var = sum_of(deviation * deviation) / max(m, 1)
    mean, var = mean.double(), var.double()
    return torch.cat([weight * mean, weight * var, weight * mean * mean, mean.new_tensor([weight, m])])


def _swapped_sums(dy, x, saved):
    """Send [sum g xhat, sum g] instead of [sum g, sum g xhat]."""
    return torch.cat(reference.backward_stats(dy, x, saved).chunk(2)[::-1])


def one_pass_variance(x, weight):
    """Compute E[x^2] - E[x]^2 in the input's precision."""
    payload = reference.forward_stats(x, weight)
    c, m = x.shape[1], max(x.numel() // x.shape[1], 1)
    mean, square = reference.sum_of(x) / m, reference.sum_of(x * x) / m
    payload[c : 2 * c] = weight * (square - mean * mean).double()
    return payload


BUGS = {  # name: (implementation, the stage to blame)
    "wrong-divisor": (replaced(forward_apply=_wrong_divisor), "forward_apply"),
    "dropped-last-term": (replaced(backward_apply=_dropped_last_term), "backward_apply"),
    "biased-running-variance": (replaced(forward_apply=_biased_running_variance), "forward_apply"),
    "unsynchronized-count": (replaced(forward_apply=_unsynchronized_count), "forward_apply"),
    "race": (replaced(backward_stats=_race), "backward_stats"),
    "unaligned-tail": (replaced(backward_apply=_unaligned_tail), "backward_apply"),
    "half-accumulation": (replaced(forward_stats=_half_accumulation), "forward_stats"),
    "swapped-sums": (replaced(backward_stats=_swapped_sums), "backward_stats"),
}
