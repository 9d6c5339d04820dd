"""
9. Moving a detector's head from mmcv
=====================================

Move a detection head from mmcv's ``SyncBatchNorm`` to sbnref without losing a
checkpoint, and explain the numbers that change. **Time:** about 10 minutes, and 40 for
the exercises. **You need:** tutorials 3 and 4.

**Question.** A detection head uses mmcv's ``SyncBatchNorm``. How do the code, the
checkpoints and the numbers change when the head moves to sbnref?

The small head below has the usual form: for the features of each box, two convolutions
and a classifier. mmcv's layer needs a compiled package and a GPU, so this page runs
mmcv's published algorithm in plain PyTorch (``sbnref/interop/peers.py``). Its
parameters and buffers have the names of mmcv's layer.
"""

# %%
# The head with mmcv's layer
# --------------------------

import torch
import torch.distributed as dist
from torch import nn

import sbnref
from sbnref.interop.peers import MMCVSyncBatchNorm


def box_head(norm):
    """Return a head that maps (boxes, 8, 7, 7) to (boxes, 4)."""
    return nn.Sequential(
        *(nn.Conv2d(8, 16, 3, padding=1, bias=False), norm(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, bias=False), norm(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )


torch.manual_seed(0)
before = box_head(MMCVSyncBatchNorm)

# %%
# Code and checkpoint
# -------------------
#
# The constructor takes mmcv's arguments in mmcv's order. The state dict has mmcv's keys
# and loads strictly.

after = box_head(sbnref.SyncBatchNorm)
after.load_state_dict(before.state_dict(), strict=True)
print(after[1])

# %%
# The initial ``weight`` differs: mmcv draws it from the uniform distribution, sbnref
# starts with ones, as ``torch.nn`` does. This does not affect a loaded checkpoint.
#
# Outputs and gradients
# ---------------------
#
# Four ranks with 12, 0, 5 and 9 boxes run both heads in both modes that mmcv has. The
# figure shows the differences of the outputs and of the input gradients, on the worst
# rank.


def compare(state, mode):
    """Return the differences of outputs and input gradients (runs on every rank)."""
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


worst = {}  # by quantity and mode
with sbnref.Ranks(4) as ranks:
    for mode in ("default", "N"):
        differences = torch.tensor(ranks.run(compare, before.state_dict(), mode))
        for i, name in enumerate(("outputs", "gradients")):
            worst[f"{name}, '{mode}'"] = differences[:, i].max().item()
for name, difference in worst.items():
    print(f"{name:20} differ by at most {difference:.1e}")

import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(7, 2.4))
ax.barh(list(worst), list(worst.values()), color=["C0", "C1"])
ax.set(xscale="log", xlim=(1e-8, 10), xlabel="relative difference, worst rank")
ax.set_title("The outputs agree to rounding, the gradients differ")
ax.invert_yaxis()
plt.show()

# %%
# The outputs agree to rounding. The gradients differ, because mmcv's backward pass is
# not the derivative of its forward pass if ranks are empty or batches unequal
# (:doc:`04_deriving_the_backward_pass`). sbnref's gradient is the right one: the
# conformance suite compares it with autograd.
#
# The change of mode
# ------------------
#
# In mode ``'default'``, empty ranks still skew the running statistics. Another mode
# completes the move:

head = box_head(lambda channels: sbnref.SyncBatchNorm(channels, stats_mode="exact"))
head.load_state_dict(before.state_dict(), strict=True)

# %%
# After this change, the loaded running statistics are still skewed. They recover within
# a few times 1/momentum steps. To get rid of the skew at once, recompute them over some
# batches with :func:`torch.optim.swa_utils.update_bn`, which finds every batch norm.
#
# If you did not write the model, convert it instead of rebuilding it:
# :doc:`/howto/convert`. :doc:`/howto/migrate` lists the other steps of a move.
#
# Exercises
# ---------
#
# 1. Give every rank as many boxes as rank 0. How does the difference of the gradients
#    change, and why?
# 2. Train both heads for 50 steps in mode ``'N'`` on random boxes, first with unequal
#    batches and then with equal ones. Do the weights drift apart?
# 3. After one step of mmcv's algorithm, compare the running variances of the ranks.
#    Which term of its formula is local?
