r"""
7. Numerics that break
======================

**Question.** The formulas are right. Why do batch norms still return NaN, or outputs
that are off in the third digit?
"""

# %%
# The variance that is negative
# -----------------------------
#
# :math:`\mathrm E[x^2] - \mathrm E[x]^2` is the variance, and takes one pass over the
# data. Here it is in float32, beside the two-pass formula, for data of standard
# deviation 1 and growing mean.

import matplotlib.pyplot as plt
import torch

torch.manual_seed(0)
noise = torch.randn(100_000, dtype=torch.float64)
offsets = torch.logspace(0, 7, 22, dtype=torch.float64)


def one_pass(x):
    """E[x^2] - E[x]^2 in the precision of x."""
    return (x * x).mean() - x.mean() ** 2


def corrected_two_pass(x):
    """Deviations from a rounded mean, and what the rounding cost put back."""
    d = x - x.mean()
    return (d * d).mean() - d.mean() ** 2


formulas = {"one pass": one_pass, "corrected two-pass": corrected_two_pass}
errors = {name: [] for name in formulas}
for offset in offsets:
    x = (noise + offset).float()
    true = x.double().var(correction=0)  # of the rounded data
    for name, formula in formulas.items():
        error = abs(formula(x).double() - true) / true
        errors[name].append(error.clamp(min=1e-9))  # a logarithmic axis has no zero

figure, ax = plt.subplots(figsize=(7, 3.4))
for name, values in errors.items():
    ax.loglog(offsets, values, "o-", label=name)
ax.loglog(offsets, 6e-8 * (1 + offsets**2), "k:", label=r"$u\,(1 + \mu^2/\sigma^2)$")
ax.axhline(1, color="gray", linewidth=0.8)
ax.set(
    xlabel="mean / standard deviation", title="relative error of the variance, float32"
)
ax.set_ylim(1e-9, 1e8)
ax.legend(frameon=False)
plt.show()

for power in range(4, 8):
    variance = one_pass((noise + 10**power).float()).item()
    print(f"one pass at a mean of 10^{power}: {variance:.0f}")

# %%
# The dotted line is the prediction of :doc:`/derivations/precision`. From the gray line
# on the error is as large as the variance. What comes out may be negative, and then its
# square root is NaN.
#
# The mean that does not fit
# --------------------------
#
# A perfect mean has to be stored. At a mean of :math:`10^3` the neighbors of a float32
# are :math:`6 \cdot 10^{-5}` apart, so the mean is off by up to half of that, and if
# the standard deviation is :math:`10^{-2}` every output is off by up to
# :math:`3 \cdot 10^{-3}`. sbnref keeps the mean in two parts. Both layers on the same
# data, against float64:

import torch.nn.functional as F

import sbnref

ratios = torch.logspace(1, 6, 11)
errors = {"F.batch_norm": [], "sbnref": []}
for ratio in ratios:
    x = (
        torch.randn(64, 16, 8, 8) * 0.01 + 0.01 * ratio + torch.rand(16, 1, 1) * 0.01
    ).float()
    want = F.batch_norm(x.double(), None, None, training=True, eps=1e-12)
    layers = {
        "F.batch_norm": F.batch_norm(x, None, None, training=True, eps=1e-12),
        "sbnref": sbnref.functional.sync_batch_norm(
            x, None, None, training=True, eps=1e-12
        ),
    }
    for name, y in layers.items():
        errors[name].append((y.double() - want).abs().max())

figure, ax = plt.subplots(figsize=(7, 3.4))
for name, values in errors.items():
    ax.loglog(ratios, values, "o-", label=name)
ax.set(
    xlabel="mean / standard deviation",
    title="largest error of a normalized output, float32",
)
ax.legend(frameon=False)
plt.show()

# %%
# One process loses nothing, however large the mean is. Between ranks the rounding of the
# payload remains: a relative error of up to :math:`10^{-15} (\mu/\sigma)^2` in the
# variance (:doc:`/derivations/payload`).
#
# float16
# -------
#
# A float16 has 11 bits and ends at 65504. A sum *in* float16 stops growing when the
# terms are smaller than half the distance to the next number; a sum of squares
# overflows.

x = torch.rand(20_000).half() + 1
naive = torch.tensor(0.0, dtype=torch.float16)
for value in x[:5000]:
    naive = naive + value
print(
    f"sum of 5000 numbers: in float16 {naive.item():.0f}, true {x[:5000].double().sum().item():.0f}"
)
print("square of 300 in float16:", torch.tensor(300.0).half().square().item())

# %%
# The layer widens its input to float32 before anything is computed, and what ranks send
# is float64. Its output is the correctly computed one, rounded once:

x = (torch.randn(64, 16, 8, 8) * 100 + 30_000).half()
y = sbnref.functional.sync_batch_norm(x, None, None, training=True)
want = F.batch_norm(x.double(), None, None, training=True)
print(
    f"off by {((y.double() - want).abs() / want.abs().clamp(min=1)).max().item():.1e},"
)
print(
    f"and a float16 is off by {torch.finfo(torch.float16).eps / 2:.1e} when it is only rounded"
)

# %%
# Tiny batches
# ------------
#
# With one value per channel there is no spread: the variance is zero, the output is
# :math:`\beta`, and the layer refuses. With two values that differ the output is always
# :math:`\pm 1`, whatever they are (but for :math:`\varepsilon`): all information but the
# order is lost.

layer = sbnref.SyncBatchNorm(3, affine=False)
try:
    layer(torch.randn(1, 3))
except ValueError as error:
    print(error)
print(layer(torch.randn(2, 3) * torch.tensor([1.0, 10.0, 100.0])))

# %%
# Exercises
# ---------
#
# 1. Welford's update is also one pass. Implement it in float32 and add it to the first
#    figure.
# 2. At which mean over standard deviation does ``bfloat16`` *data* lose the variance,
#    before any formula touches it?
# 3. Subtract a value of the data itself, say the first, before the one-pass formula.
#    What does an outlier as the first value do?
# 4. The payload could hold :math:`v + \mu^2` instead of :math:`v` and :math:`\mu^2`, and
#    be shorter by a third. Compute what float64 would leave of the variance at a mean of
#    :math:`10^6` standard deviations.
