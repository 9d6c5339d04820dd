"""Solutions to tutorial 2, many ranks on one laptop."""

import torch
import torch.distributed as dist

import sbnref


# 1. A rank receives one number from each rank: 3 with 3 ranks, and 300 with 300.
def maximum() -> float:
    """Return the largest rank by gathering (runs on every rank)."""
    mine = torch.tensor([float(dist.get_rank())])
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return torch.stack(gathered).max().item()


assert sbnref.launch(maximum, 3) == [2.0, 2.0, 2.0]
print("1. the maximum is 2 on every rank")


# 2. Ranks in different collectives wait until the timeout, or fail because their
# messages do not match.
def mismatch() -> None:
    """Call different collectives (runs on every rank)."""
    if dist.get_rank() == 0:
        dist.all_reduce(torch.zeros(1))
    else:
        dist.barrier()
        dist.barrier()


try:
    sbnref.launch(mismatch, 2, timeout=10)
except (TimeoutError, sbnref.RankError) as error:
    print("2.", type(error).__name__)
else:
    raise AssertionError("expected ranks in different collectives to fail")


# 3. Each process gets a copy. A change of the copy stays in its process, and a gradient
# comes back only if the function returns it.
def gradient(x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of this rank's copy (runs on every rank)."""
    x = x.requires_grad_()
    (x * (dist.get_rank() + 1)).sum().backward()
    return x.grad


mine = torch.zeros(2)
print("3.", sbnref.launch(gradient, 2, mine))
assert mine.grad is None
