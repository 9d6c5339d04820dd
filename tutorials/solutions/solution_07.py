"""Solutions to tutorial 7, numerics that break."""

import torch

torch.manual_seed(0)


# 1. Welford's update in float32: also one pass, and it does not cancel.
def welford(x: torch.Tensor) -> torch.Tensor:
    """The biased variance, one element at a time, in the precision of x."""
    mean, m2 = x[0].clone(), torch.zeros((), dtype=x.dtype)
    for count, value in enumerate(x[1:], start=2):
        delta = value - mean
        mean += delta / count
        m2 += delta * (value - mean)
    return m2 / len(x)


x = (torch.randn(5000, dtype=torch.float64) + 1e4).float()
true = x.double().var(correction=0)
off = abs(welford(x) - true) / true
print(f"1. Welford at a mean of 10^4: {off:.0e}")
assert off < 1e-2

# 2. bfloat16 has 8 bits: neighbors of mu are mu / 128 apart, so at mu = 256 sigma they are two standard deviations
# apart, and the data is a handful of values.
data = torch.randn(5000, dtype=torch.float64) + 256
kept = data.bfloat16().double().var(correction=0) / data.var(correction=0)
print(
    f"2. at 256 standard deviations bfloat16 data has {kept:.1f} times the variance, in "
    f"{len(data.bfloat16().unique())} different values"
)
assert abs(kept - 1) > 0.1


# 3. Shifted by a value of the data the one-pass formula is as good as the data is close to that value. An outlier as
# the shift brings the cancellation back.
def shifted(x: torch.Tensor) -> torch.Tensor:
    """E[d^2] - E[d]^2 with d = x - x[0]."""
    d = x - x[0]
    return (d * d).mean() - d.mean() ** 2


fine = abs(shifted(x) - true) / true
spoiled = torch.cat([torch.tensor([-1e6]), x - 1e4])  # the first is far from all others
true = spoiled.double().var(correction=0)
bad = abs(shifted(spoiled) - true) / true
print(f"3. shifted by an ordinary value {fine:.0e}, by an outlier {bad:.0e}")
assert bad > 100 * fine

# 4. With v + mu^2 in one number: at mu = 10^6 sigma, mu^2 / v is 10^12, float64 keeps 16 digits, 4 remain.
mean, var = 1e6, 1.0
recovered = torch.tensor(var + mean**2, dtype=torch.float64) - mean**2
print(f"4. of a variance of 1, {recovered.item():.6f} is recovered")
assert abs(recovered - var) < 1e-3
