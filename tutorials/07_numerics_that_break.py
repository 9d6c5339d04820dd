r"""
7. Numerics that break
======================

Recognize the inputs for which a right formula gives a wrong number, and choose a
formula that survives them. **Time:** about 15 minutes, and 50 for the exercises. **You
need:** floating-point numbers: precision, rounding, overflow.

**Question.** The formulas are right. Why do batch norms still return NaN, or outputs
that are off in the third digit?
"""

# %%
# Negative variances
# ------------------
#
# The variance equals :math:`\mathrm E[x^2] - \mathrm E[x]^2`, and this formula takes
# one pass over the data. The figure compares it in float32 with a two-pass formula. The
# data has standard deviation 1 and a growing mean.

import matplotlib.pyplot as plt
import torch

torch.manual_seed(0)
noise = torch.randn(100_000, dtype=torch.float64)
offsets = torch.logspace(0, 7, 22, dtype=torch.float64)


def one_pass(x):
    """Return E[x^2] - E[x]^2 in the precision of x."""
    return (x * x).mean() - x.mean() ** 2


def corrected_two_pass(x):
    """Average squared deviations from a rounded mean, and correct for the rounding."""
    d = x - x.mean()
    return (d * d).mean() - d.mean() ** 2


def errors(formula):
    """Return the relative errors of a variance formula in float32, for all offsets."""
    data = [(noise + offset).float() for offset in offsets]
    true = torch.stack([x.double().var(correction=0) for x in data])
    error = (torch.stack([formula(x) for x in data]) - true).abs() / true
    return error.clamp(min=1e-9)  # a logarithmic axis has no zero


figure, ax = plt.subplots(figsize=(7, 3.4))
ax.loglog(offsets, errors(one_pass), "o-", label="one pass")
ax.loglog(offsets, errors(corrected_two_pass), "o-", label="corrected two-pass")
ax.loglog(offsets, 6e-8 * (1 + offsets**2), "k:", label=r"$u\,(1 + \mu^2/\sigma^2)$")
ax.axhline(1, color="gray", linewidth=0.8)
ax.set(xlabel="mean / standard deviation", ylabel="relative error", ylim=(1e-9, 1e8))
ax.set_title("A large mean destroys the one-pass variance in float32")
ax.legend()
plt.show()

for power in range(4, 8):
    variance = one_pass((noise + 10**power).float()).item()
    print(f"one pass at a mean of 10^{power}: {variance:.0f}")

# %%
# The dotted line is the prediction of :doc:`/derivations/precision`. Beyond the gray
# line the error is larger than the variance itself. The result may be negative, and
# then its square root is NaN.
#
# The rounded mean
# ----------------
#
# Even a perfect mean has to be stored, which rounds it. Near :math:`10^3`, adjacent
# float32 numbers are :math:`6 \cdot 10^{-5}` apart, so the mean is off by up to half of
# that. If the standard deviation is :math:`10^{-2}`, every output is off by up to
# :math:`3 \cdot 10^{-3}`. sbnref stores the mean in two parts. The figure compares the
# largest error of an output with PyTorch's, both against float64:

import torch.nn.functional as F

import sbnref


def normalize(x):
    """Normalize by the function of each library."""
    options = {"training": True, "eps": 1e-12}
    yield "F.batch_norm", F.batch_norm(x, None, None, **options)
    yield "sbnref", sbnref.functional.sync_batch_norm(x, None, None, **options)


ratios = torch.logspace(1, 6, 11)
largest = {"F.batch_norm": [], "sbnref": []}
for ratio in ratios:
    offset = ratio + torch.rand(16, 1, 1)  # per channel
    x = 0.01 * (torch.randn(64, 16, 8, 8) + offset)
    want = F.batch_norm(x.double(), None, None, training=True, eps=1e-12)
    for name, y in normalize(x):
        largest[name].append((y.double() - want).abs().max())

figure, ax = plt.subplots(figsize=(7, 3.4))
for name, values in largest.items():
    ax.loglog(ratios, values, "o-", label=name)
ax.set(xlabel="mean / standard deviation", ylabel="largest error of an output")
ax.set_title("A mean in two float32 parts keeps the outputs accurate")
ax.legend()
plt.show()

# %%
# One process loses nothing, even with a very large mean. Between ranks, the rounding of
# the payload remains: a relative error of up to :math:`10^{-15} (\mu/\sigma)^2` in the
# variance (:doc:`/derivations/payload`).
#
# float16
# -------
#
# A float16 number has 11 significant bits, and the largest is 65504. A sum *in* float16
# stops growing when the terms are smaller than half the distance to the next number. A
# sum of squares overflows.

x = torch.rand(20_000).half() + 1
naive = torch.tensor(0.0, dtype=torch.float16)
for value in x[:5000]:
    naive = naive + value
true = x[:5000].double().sum()
print(f"sum of 5000 numbers: {naive:.0f} in float16, {true:.0f} in truth")
print("square of 300 in float16:", torch.tensor(300.0).half().square().item())

# %%
# The layer converts its input to float32 before it computes anything, and ranks
# exchange float64. Its output is the right output, rounded once:

x = (torch.randn(64, 16, 8, 8) * 100 + 30_000).half()
y = sbnref.functional.sync_batch_norm(x, None, None, training=True)
want = F.batch_norm(x.double(), None, None, training=True)
off = ((y.double() - want).abs() / want.abs().clamp(min=1)).max()
print(f"the output is off by {off:.1e}")
print(f"rounding to float16 alone: {torch.finfo(torch.float16).eps / 2:.1e}")

# %%
# Tiny batches
# ------------
#
# One value per channel has no spread: its variance is zero and its output is
# :math:`\beta`, so the layer rejects it. Two different values per channel always give
# the outputs :math:`\pm 1` (apart from :math:`\varepsilon`). Only the order of the two
# values survives.

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
# 1. Welford's update also takes one pass. Implement it in float32 and add it to the
#    first figure.
# 2. At which ratio of mean to standard deviation do ``bfloat16`` *data* lose the
#    variance, before any formula is applied?
# 3. Subtract one value of the data, for example the first, before the one-pass formula.
#    What happens if the first value is an outlier?
# 4. The payload could hold :math:`v + \mu^2` instead of :math:`v` and :math:`\mu^2`,
#    and be a third shorter. How much of the variance would float64 keep at a mean of
#    :math:`10^6` standard deviations?
