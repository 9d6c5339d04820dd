r"""
10. Write your own implementation and have it graded
====================================================

**Question.** Four functions make an implementation. Can you write them, and would
they survive what users send?

``sbnref lab template functions`` prints a file with the four functions, their arguments
explained and their bodies missing. ``sbnref lab check FILE`` grades it: for each stage it
searches for an input on which the result is wrong, shrinks it to the smallest one,
and says what was expected, what was given, and where to read. This page does it from
Python.
"""

# %%
# A first attempt
# ---------------
#
# Take the template and write the first stage: the local mean, and the variance as
# :math:`\mathrm E[x^2] - \mathrm E[x]^2`.

import tempfile
from pathlib import Path

from sbnref.lab.grading.check import check, template

folder = tempfile.TemporaryDirectory()
file = Path(folder.name) / "mine.py"


def write(**bodies):
    """Save the template with the bodies of some functions filled in."""
    text = template().replace(
        "from torch import Tensor", "import torch\nfrom torch import Tensor"
    )
    for name, body in bodies.items():
        missing = f'raise NotImplementedError("{name} is still to be written")'
        assert missing in text
        text = text.replace(missing, body.strip())
    file.write_text(text)


first_attempt = """
    m = x.numel() // x.shape[1]
    over = [d for d in range(x.dim()) if d != 1]
    mean = x.mean(over)
    var = (x * x).mean(over) - mean * mean
    tail = mean.new_tensor([weight, m])
    return torch.cat([weight * mean, weight * var, weight * mean * mean, tail]).double()
"""
write(forward_stats=first_attempt)
report = check(str(file), ["forward_stats"], examples=50)
report

# %%
# The smallest failure comes first. An empty rank makes ``mean`` NaN, and
# :math:`0 \cdot \mathrm{NaN}` is NaN. The report says which input shows it, and points
# to the derivation.
#
# A second attempt
# ----------------
#
# Sums divided by at least one, and the corrected two-pass variance in float32:

second_attempt = """
    m = x.numel() // x.shape[1]
    over = [d for d in range(x.dim()) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(x.dim())]
    x = x if x.dtype == torch.float64 else x.float()
    center = x.sum(over) / max(m, 1)
    d = x - center.view(shape)
    shift = d.sum(over).double() / max(m, 1)
    mean = center.double() + shift
    var = (d * d).sum(over).double() / max(m, 1) - shift * shift
    tail = mean.new_tensor([weight, m])
    return torch.cat([weight * mean, weight * var, weight * mean * mean, tail])
"""
write(forward_stats=second_attempt)
report = check(str(file), ["forward_stats"], examples=50)
report

# %%
# One stage passes. The reference fills in for the others while you work on them, so you
# can take them in any order.
#
# The whole
# ---------
#
# The backward stages, from the boxed formula of :doc:`/derivations/backward`. While
# ``forward_apply`` is not written, ``saved`` is the reference's.

backward_stats = """
    mean, invstd, _, _ = saved
    over = [d for d in range(x.dim()) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(x.dim())]
    g, xhat = dy.double(), (x.double() - mean.view(shape)) * invstd.view(shape)
    return torch.cat([g.sum(over), (g * xhat).sum(over)])
"""
backward_apply = """
    mean, invstd, skew, inverse_divisor = saved
    shape = [-1 if d == 1 else 1 for d in range(x.dim())]
    a, b = total.chunk(2)
    scale = invstd if gamma is None else gamma.double() * invstd
    xhat = (x.double() - mean.view(shape)) * invstd.view(shape)
    bracket = (a - skew * b).view(shape) + xhat * b.view(shape)
    dx = scale.view(shape) * (dy.double() - k * inverse_divisor.view(shape) * bracket)
    return dx.to(x.dtype)
"""
write(
    forward_stats=second_attempt,
    backward_stats=backward_stats,
    backward_apply=backward_apply,
)
report = check(str(file), examples=30)
report

# %%
# Three of four. The score is for a teacher's script; ``sbnref lab check --json`` prints it.

print(f"score {report.score:.2f}")
folder.cleanup()

# %%
# Exercises
# ---------
#
# 1. Write ``forward_apply``. The running statistics are half of the work: mind a step
#    in which every rank is empty.
# 2. The backward stages above compute in float64. Make them float32 where there are
#    elements, and keep the mean in two parts (:doc:`/derivations/precision`). Which
#    input does the grader find first if you keep it in one?
# 3. Is yours faster than the reference? Measure forward and backward on (32, 64, 56,
#    56).
