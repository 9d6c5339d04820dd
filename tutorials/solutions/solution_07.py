"""Solutions to tutorial 7, numerics that break."""

import torch

torch.manual_seed(0)


# 1. Welford's update takes one pass in float32 and does not cancel.
def welford(x: torch.Tensor) -> torch.Tensor:
    """Return the biased variance, one element at a time, in the precision of x."""
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

# 2. bfloat16 has 8 bits, so adjacent numbers near mu are mu / 128 apart. At mu = 256 sigma
# this is two standard deviations, and the data has only a handful of values.
data = torch.randn(5000, dtype=torch.float64) + 256
kept = data.bfloat16().double().var(correction=0) / data.var(correction=0)
print(
    f"2. at 256 standard deviations, bfloat16 data has {kept:.1f} times the variance and "
    f"{len(data.bfloat16().unique())} different values"
)
assert abs(kept - 1) > 0.1


# 3. The closer the shift is to the data, the smaller is the error of the one-pass formula.
# With an outlier as the shift, the formula cancels again.
def shifted(x: torch.Tensor) -> torch.Tensor:
    """Return E[d^2] - E[d]^2 with d = x - x[0]."""
    d = x - x[0]
    return (d * d).mean() - d.mean() ** 2


fine = abs(shifted(x) - true) / true
spoiled = torch.cat(
    [torch.tensor([-1e6]), x - 1e4]
)  # the first value is far from the others
true = spoiled.double().var(correction=0)
bad = abs(shifted(spoiled) - true) / true
print(f"3. error with an ordinary shift {fine:.0e}, with an outlier {bad:.0e}")
assert bad > 100 * fine

# 4. At mu = 10^6 sigma, mu^2 / v is 10^12. float64 keeps 16 digits of v + mu^2, so 4
# digits of v remain.
mean, var = 1e6, 1.0
recovered = torch.tensor(var + mean**2, dtype=torch.float64) - mean**2
print(f"4. a variance of 1 is recovered as {recovered.item():.6f}")
assert abs(recovered - var) < 1e-3
