"""Solutions to tutorial 2, many ranks on one laptop."""

import torch
import torch.distributed as dist

import sbnref


# 1. An all-reduce of maxima by gathering: G numbers arrive for each number sent, 3 for 3 ranks and 300 for 300.
def maximum() -> float:
    """Runs on every rank."""
    mine = torch.tensor([float(dist.get_rank())])
    everybodys = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everybodys, mine)
    return torch.stack(everybodys).max().item()


assert sbnref.launch(maximum, 3) == [2.0, 2.0, 2.0]
print("1. the maximum is 2 on every rank")


# 2. Ranks in different collectives wait for what never comes, or fail when messages do not match.
def mismatch() -> None:
    """Runs on every rank."""
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


# 3. Tensors are copied: what a rank does to its copy stays there, and a gradient comes back only if it is returned.
def gradient(x: torch.Tensor) -> torch.Tensor:
    """Runs on every rank."""
    x = x.requires_grad_()
    (x * (dist.get_rank() + 1)).sum().backward()
    return x.grad


mine = torch.zeros(2)
print("3.", sbnref.launch(gradient, 2, mine))
assert mine.grad is None
