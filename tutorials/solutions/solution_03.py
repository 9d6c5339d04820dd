"""Solutions to tutorial 3, when a rank is empty."""

import torch
import torch.distributed as dist

import sbnref


def statistics(shapes, means, stats_mode) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the layer's mean and variance, with shapes[rank] = (n, size).

    Runs on every rank. The inputs (n, 1, size) have standard deviation 1.
    """
    rank = dist.get_rank()
    torch.manual_seed(rank)
    layer = sbnref.SyncBatchNorm(1, stats_mode=stats_mode, momentum=1.0)
    layer(torch.randn(shapes[rank][0], 1, shapes[rank][1]) + means[rank])
    return layer.running_mean, layer.running_var


with sbnref.Ranks(4) as ranks:
    # 1. (1 - q)(1 + q^2 mu^2) = 1 gives mu^2 = 1 / (q (1 - q)). For q = 1/4 this is
    # mu = 4 / sqrt(3).
    mu = 4 / 3**0.5
    shapes = [(64, 512)] * 3 + [(0, 512)]
    _, var = ranks.run(statistics, shapes, [mu] * 4, "default")[0]
    print(f"1. at a mean of {mu:.2f} the variance is {var.item():.3f}")
    torch.testing.assert_close(var, torch.ones(1), rtol=0.02, atol=0)

    # 2. 'default' gives equal weights to ranks, 'N' and 'exact' to samples.
    sizes, means = [1, 2, 4, 8], [0.0, 1.0, 2.0, 3.0]
    shapes = [(n, 4096) for n in sizes]
    by_rank = sum(means) / 4
    by_sample = sum(n * m for n, m in zip(sizes, means, strict=True)) / sum(sizes)
    for mode, predicted in (
        ("default", by_rank),
        ("N", by_sample),
        ("exact", by_sample),
    ):
        mean, _ = ranks.run(statistics, shapes, means, mode)[0]
        print(f"2. {mode}: predicted {predicted:.3f}, measured {mean.item():.3f}")
        torch.testing.assert_close(mean, torch.tensor([predicted]), rtol=0, atol=0.05)

with sbnref.Ranks(2) as ranks:
    # 3. With equal batches, 'N' takes the plain average of the two means.
    shapes, means = [(64, 16), (64, 1024)], [0.0, 1.0]
    predicted = (1 / 2 - 16 / (16 + 1024)) * (means[0] - means[1])
    n_mean, exact_mean = (
        ranks.run(statistics, shapes, means, mode)[0][0] for mode in ("N", "exact")
    )
    print(f"3. predicted {predicted:.3f}, measured {(n_mean - exact_mean).item():.3f}")
    torch.testing.assert_close(
        n_mean - exact_mean, torch.tensor([predicted]), rtol=0, atol=0.05
    )

# 4. D = W, the number of ranks with data. Then sum w_r (mu_r - mu) = 0 again, and the
# last term of the backward pass vanishes, too. 'N' and 'exact' choose D = W.
print("4. D = W")
