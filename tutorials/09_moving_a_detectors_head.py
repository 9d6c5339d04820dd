"""
9. Moving a detector's head from mmcv
=====================================

**Question.** A detection head uses mmcv's ``SyncBatchNorm``. What changes when it
moves to sbnref: the code, the checkpoints, the numbers?

The head below is a small one of the common kind: for every box its features, two
convolutions, a classifier. mmcv's layer needs its compiled package and a GPU, so this
page runs its published algorithm in plain PyTorch (``sbnref/interop/peers.py``); the
names of parameters and buffers are the same.
"""

# %%
# The head as it was
# ------------------

import torch
import torch.distributed as dist
from torch import nn

import sbnref
from sbnref.interop.peers import MMCVSyncBatchNorm


def box_head(norm):
    """(boxes, 8, 7, 7) to (boxes, 4)."""
    return nn.Sequential(
        *(nn.Conv2d(8, 16, 3, padding=1, bias=False), norm(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, bias=False), norm(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )


torch.manual_seed(0)
before = box_head(MMCVSyncBatchNorm)

# %%
# The code and the checkpoint
# ---------------------------
#
# The constructor's arguments are mmcv's, in mmcv's order. The state dict has the same
# keys; it loads strictly.

after = box_head(sbnref.SyncBatchNorm)
after.load_state_dict(before.state_dict(), strict=True)
print(after[1])

# %%
# One thing differs at the start: mmcv draws ``weight`` from the uniform distribution,
# here it starts at ones, as in ``torch.nn``. A loaded checkpoint does not notice.
#
# The numbers
# -----------
#
# Four ranks with 12, 0, 5 and 9 boxes go through both heads, in both modes that mmcv has.
# How far apart are the outputs, and the gradients of the input?


def compare(state, mode):
    """Runs on every rank: the difference of the outputs, and of the input gradients."""
    rank = dist.get_rank()
    torch.manual_seed(rank)
    boxes = torch.randn([12, 0, 5, 9][rank], 8, 7, 7)
    outputs, gradients = [], []
    for Layer in (MMCVSyncBatchNorm, sbnref.SyncBatchNorm):
        head = box_head(lambda c, L=Layer: L(c, stats_mode=mode))
        head.load_state_dict(state)
        x = boxes.clone().requires_grad_()
        y = head(x)
        (y**2).sum().backward()
        outputs.append(y)
        gradients.append(x.grad)

    def off(pair):
        a, b = pair
        return ((a - b).norm() / b.norm()).item() if b.numel() else 0.0

    return off(outputs), off(gradients)


with sbnref.Ranks(4) as ranks:
    for mode in ("default", "N"):
        rows = ranks.run(compare, before.state_dict(), mode)
        print(
            f"{mode:>8}: outputs differ by at most {max(r[0] for r in rows):.0e}, ",
            end="",
        )
        print(f"gradients by up to {max(r[1] for r in rows):.1%}")

# %%
# The outputs agree to rounding. The gradients do not, because mmcv's backward pass is
# not the derivative of its forward pass when ranks are empty or batches unequal
# (:doc:`04_deriving_the_backward_pass`). Which of the two to believe: the conformance
# suite holds sbnref's to autograd.
#
# Then leave ``'default'``
# ------------------------
#
# With the mode kept, the running statistics inherit the skew of empty ranks. The move
# is complete with one word:

head = box_head(lambda channels: sbnref.SyncBatchNorm(channels, stats_mode="exact"))
head.load_state_dict(before.state_dict(), strict=True)

# %%
# After the change the running statistics are those of ``'default'`` for a while. They
# recover within a few times 1/momentum steps; or recompute them over some batches with
# :func:`torch.optim.swa_utils.update_bn`, which knows every layer that is a batch norm.
#
# A model that was built by somebody else is converted rather than rebuilt:
# :doc:`/howto/convert`; what else a move takes: :doc:`/howto/migrate`.
#
# Exercises
# ---------
#
# 1. Give rank 1 as many boxes as rank 0, and the others too. What happens to the
#    difference of the gradients, and why?
# 2. Train both heads for 50 steps in mode ``'N'`` on random boxes, with unequal batches
#    and then with equal ones. Do they drift apart?
# 3. Compare the running variances of mmcv's algorithm between the ranks after one step.
#    Which term of its formula is local?
