"""Solutions to tutorial 9, moving a detector's head from mmcv."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sbnref
from sbnref.interop.peers import MMCVSyncBatchNorm


def box_head(norm):
    """Return a head from (boxes, 8, 7, 7) to (boxes, 4), with fixed weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(8, 16, 3, padding=1, bias=False), norm(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, bias=False), norm(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )


def relative(a, b) -> float:
    """Return the distance of a from b, relative to b."""
    return ((a - b).norm() / b.norm()).item() if b.numel() else 0.0


# 1. With equal batches 1 / (G m_r) is the right factor in every mode. No rank is empty, so
# W = D, and mmcv's gradient is right.
def gradients_differ(sizes, mode) -> float:
    """Compare mmcv's input gradient with sbnref's (runs on every rank)."""
    rank = dist.get_rank()
    gradients = []
    for Layer in (MMCVSyncBatchNorm, sbnref.SyncBatchNorm):
        head = box_head(lambda c, L=Layer: L(c, stats_mode=mode))
        torch.manual_seed(rank)
        x = torch.randn(sizes[rank], 8, 7, 7).requires_grad_()
        (head(x) ** 2).sum().backward()
        gradients.append(x.grad)
    return relative(*gradients)


# 2. Train both heads for 50 steps on equal boxes and targets.
def drift(sizes) -> float:
    """Return the distance of the weights after training (runs on every rank)."""
    rank = dist.get_rank()
    heads = [
        DistributedDataParallel(box_head(lambda c, L=Layer: L(c, stats_mode="N")))
        for Layer in (MMCVSyncBatchNorm, sbnref.SyncBatchNorm)
    ]
    optimizers = [torch.optim.SGD(head.parameters(), lr=0.01) for head in heads]
    torch.manual_seed(rank)
    for _ in range(50):
        boxes, targets = torch.randn(sizes[rank], 8, 7, 7), torch.randn(sizes[rank], 4)
        for head, optimizer in zip(heads, optimizers, strict=True):
            optimizer.zero_grad()
            loss = ((head(boxes) - targets) ** 2).sum() / sum(sizes)
            (loss * len(sizes)).backward()  # the wrapper averages gradients over ranks
            optimizer.step()
    weights = [nn.utils.parameters_to_vector(head.parameters()) for head in heads]
    return relative(*weights)


# 3. mmcv's M is this rank's n_r times the spatial size times G, a local number if batches
# are unequal.
def running_variances(Layer) -> torch.Tensor:
    """Return the running variance after one step (runs on every rank)."""
    rank = dist.get_rank()
    torch.manual_seed(rank)
    layer = Layer(1, stats_mode="N")
    layer(torch.randn([12, 0, 5, 9][rank], 1, 2, 2))
    return layer.running_var


with sbnref.Ranks(4) as ranks:
    for mode in ("default", "N"):
        equal = max(ranks.run(gradients_differ, [12] * 4, mode))
        unequal = max(ranks.run(gradients_differ, [12, 0, 5, 9], mode))
        print(f"1. {mode}: equal batches {equal:.0e}, unequal {unequal:.1%}")
        assert equal < 1e-5
        assert unequal > 1e-3

    apart, control = ranks.run(drift, [12, 0, 5, 9])[0], ranks.run(drift, [7] * 4)[0]
    print(f"2. weights differ by {apart:.1%} (unequal batches), {control:.0e} (equal)")
    assert apart > 100 * control

    for Layer in (MMCVSyncBatchNorm, sbnref.SyncBatchNorm):
        variances = torch.stack(ranks.run(running_variances, Layer))[:, 0]
        print(f"3. {Layer.__name__}: {variances.tolist()}")
        same = bool((variances == variances[0]).all())
        assert same == (Layer is sbnref.SyncBatchNorm)
