r"""
10. Write your own implementation and have it graded
====================================================

Write the four functions of an implementation, and have them graded on inputs that break
naive code. **Time:** about 15 minutes, and 60 for the exercises. **You need:**
tutorials 4 and 7.

**Question.** Four functions make an implementation. Can you write them so that they
survive every input of a real training?

``sbnref lab template functions`` prints a file with the four functions: it explains the
arguments, and the bodies are missing. ``sbnref lab check FILE`` grades the file. For
each stage, it searches for an input with a wrong result and shrinks it to the smallest
one. The report shows the expected and the given result and names the section to read.
This page calls the grader from Python.
"""

# %%
# The four functions
# ------------------
#
# You write the four functions in blue. The package does the rest of a training step.

import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(9, 1.6))
forward = ("x", "forward_stats", "all-reduce", "forward_apply", "y")
backward = ("dy", "backward_stats", "all-reduce", "backward_apply", "dx")
for y, steps in enumerate((forward, backward)):
    for x, step in enumerate(steps):
        box = {"boxstyle": "round", "facecolor": "C4" if "_" in step else "white"}
        ax.text(x, y, step, ha="center", va="center", bbox=box)
        if x > 0:
            ax.annotate(
                "", (x - 0.42, y), (x - 0.58, y), arrowprops={"arrowstyle": "->"}
            )
ax.set(xlim=(-0.5, 4.5), ylim=(1.5, -0.5))
ax.axis("off")
ax.set_title("Each pass is two functions with an all-reduce in between")
plt.show()

# %%
# First attempt
# -------------
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
# The report begins with the smallest failure. On an empty rank ``mean`` is NaN, and
# :math:`0 \cdot \mathrm{NaN}` is NaN. The report shows this input and points to the
# derivation.
#
# Second attempt
# --------------
#
# Divide the sums by at least one, and compute the corrected two-pass variance in
# float32:

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
# One stage passes. You can write the stages in any order, because the grader uses the
# reference for the other stages.
#
# Backward stages
# ---------------
#
# The backward stages follow the boxed formula of :doc:`/derivations/backward`. As long
# as ``forward_apply`` is missing, ``saved`` comes from the reference.

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
# Three of four stages pass. ``sbnref lab check --json`` prints the score for a
# teacher's script.

print(f"score {report.score:.2f}")
folder.cleanup()

# %%
# Exercises
# ---------
#
# 1. Write ``forward_apply``. The running statistics are half of the work: think of a
#    step in which every rank is empty.
# 2. The backward stages above compute in float64. Compute on elements in float32, and
#    keep the mean in two parts (:doc:`/derivations/precision`). If you keep the mean in
#    one part, which failing input does the grader find first?
# 3. Is your implementation faster than the reference? Measure forward and backward on
#    (32, 64, 56, 56).
