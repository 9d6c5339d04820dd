"""Solutions to tutorial 1, why synchronize."""

import torch
import torch.distributed as dist

import sbnref

# 1. The mean has the standard deviation sigma / sqrt(n). 19 of 20 means lie within 1.96
# of these standard deviations, so n = (1.96 / 0.1)^2.
needed = round((1.96 / 0.1) ** 2)
print(f"1. {needed} samples")
torch.manual_seed(0)
within = (torch.randn(4000, needed).mean(1).abs() < 0.1).float().mean().item()
assert abs(within - 0.95) < 0.02, within

# 2. A rank that normalizes alone becomes standard normal and loses its scale, the only
# difference between the ranks. Ranks that normalize together keep their ratios.
deviations = torch.tensor([0.5, 1.0, 2.0, 4.0])
x = torch.randn(4, 20_000) * deviations[:, None]
alone = x / x.std(1, keepdim=True)
together = x / x.std()
print("2. scales alone", alone.std(1), "together", together.std(1))
torch.testing.assert_close(alone.std(1), torch.ones(4))
torch.testing.assert_close(
    together.std(1) / together.std(1)[0], deviations / 0.5, rtol=0.05, atol=0
)


# 3. Compare the normalized values with the values under the true statistics, 0 and 1.
def noise() -> tuple[float, float]:
    """Return the noise without and with synchronization (runs on every rank)."""
    torch.manual_seed(dist.get_rank())
    layer = sbnref.SyncBatchNorm(1000, affine=False, stats_mode="exact")
    x = torch.randn(4, 1000)  # 1000 draws, a channel each
    synchronized = layer(x)
    unsynchronized = torch.nn.functional.batch_norm(x, None, None, training=True)
    return tuple((y - x).square().mean().item() for y in (unsynchronized, synchronized))


shares = torch.tensor(sbnref.launch(noise, 4)).mean(0)
print(f"3. share of noise: alone {shares[0]:.0%}, together {shares[1]:.0%}")
assert shares[0] > 3 * shares[1]
