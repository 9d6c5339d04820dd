"""Solutions to tutorial 13, is it worth it?"""

import torch
import torch.nn.functional as F
from torch import nn

from sbnref.demo import load_digits, network

RANKS, STEPS, SEEDS = 4, 100, 3
images, labels, test_images, test_labels = load_digits()
torch.set_num_threads(1)


class Separate(nn.BatchNorm2d):
    """Normalize each rank's part of the batch; rank 0 moves the running statistics."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        first, *others = x.chunk(RANKS)
        rest = [
            F.batch_norm(part, None, None, self.weight, self.bias, training=True)
            for part in others
        ]
        return torch.cat([super().forward(first), *rest])


def draw_any(size):
    """Draw the batch of all ranks, one after another."""
    return torch.randint(len(labels), (RANKS * size,))


def draw_own(size):
    """Draw for rank r from the r-th quarter of the digits, sorted by class."""
    quarters = labels.argsort(stable=True).chunk(RANKS)
    return torch.cat([q[torch.randint(len(q), (size,))] for q in quarters])


def loss(norm, size, seed, rate=0.05, draw=draw_any):
    """Return the test loss after a training."""
    torch.manual_seed(seed)
    model = network(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS)
    for _ in range(STEPS):
        batch = draw(size)
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return F.cross_entropy(model.eval()(test_images), test_labels).item()


def gains(size, **kwargs):
    """Return the gain in test loss by synchronizing, for every seed."""
    return [
        loss(Separate, size, seed, **kwargs)
        - loss(nn.BatchNorm2d, size, seed, **kwargs)
        for seed in range(SEEDS)
    ]


# 1. Yes, every seed gains with both learning rates.
for rate in (0.01, 0.1):
    gain = gains(1, rate=rate)
    print(f"1. learning rate {rate}: gain in loss {[round(g, 3) for g in gain]}")
    assert min(gain) > 0

# 2. The images are drawn independently, so the error falls with the square root of their
# number: four images halve it.
torch.manual_seed(0)
with torch.no_grad():
    before_the_second_norm = network(nn.BatchNorm2d).train()[:4]
    x = before_the_second_norm(images)
true = x.var((0, 2, 3), correction=0)
draws = {n: x[torch.randint(len(x), (1000, n))] for n in (1, 4)}
error = {
    n: (d.var((1, 3, 4), correction=0) / true - 1).square().mean().sqrt().item()
    for n, d in draws.items()
}
print(f"2. one image {error[1]:.0%}, four images {error[4]:.0%}")
assert 1.8 < error[1] / error[4] < 2.2

# 3. Yes. A large batch does not help a rank that never sees the other classes: it has the
# statistics of its own digits, and eval mode uses the statistics of rank 0 for all digits.
gain = gains(16, draw=draw_own)
print(f"3. gain in loss with sorted digits {[round(g, 3) for g in gain]}")
assert min(gain) > 0.005
