"""Solutions to tutorial 6, find the bug."""

from types import SimpleNamespace

import torch
import torch.distributed as dist

import sbnref
from sbnref.impls import reference
from sbnref.modes import combine

torch.manual_seed(0)


def broken(**stages):
    """Return the reference with some stages replaced."""
    names = ("forward_stats", "forward_apply", "backward_stats", "backward_apply")
    return SimpleNamespace(**{n: stages.get(n, getattr(reference, n)) for n in names})


# 1. The running variance of a step is off by its M-th part. The larger the batch, the
# smaller the error. From some batch size on it is below the precision of float32.
def uncorrected(x, total, divisor, gamma, beta, eps, running, momentum):
    """Move the running variance towards the biased variance."""
    stats = combine(total, divisor)
    running.mean.lerp_(stats.mean.to(running.mean.dtype), momentum)
    running.var.lerp_(stats.var.to(running.var.dtype), momentum)
    running.num_batches_tracked.add_(1)
    return reference.forward_apply(x, total, divisor, gamma, beta, eps, None, momentum)


sbnref.register_impl("uncorrected", broken(forward_apply=uncorrected))
seen = {}
for m in (10, 1000, 100_000, 1_000_000):
    report = sbnref.compare(
        sbnref.SyncBatchNorm(1), torch.randn(m, 1), impls=("reference", "uncorrected")
    )
    seen[m] = not report.agrees
    if seen[m]:
        assert report.first_divergence.quantity == "running_var"
print("1. seen with", *(f"{m} elements: {found};" for m, found in seen.items()))
assert seen[10]
assert not seen[1_000_000]


# 2. The last term is B mu (1 - W/D) / sigma. It is zero unless W != D, so only mode
# 'default' with an empty rank shows the error.
def without_last_term(dy, x, total, saved, gamma, k):
    """Use the formula of textbooks."""
    saved = saved.clone()
    saved[2] = 0
    return reference.backward_apply(dy, x, total, saved, gamma, k)


def agrees(sizes, stats_mode) -> bool:
    """Return whether the comparison agrees (runs on every rank)."""
    name = f"no last term {sizes} {stats_mode}"
    sbnref.register_impl(name, broken(backward_apply=without_last_term))
    rank = dist.get_rank()
    torch.manual_seed(rank)
    layer = sbnref.SyncBatchNorm(3, stats_mode=stats_mode)
    x = torch.randn(sizes[rank], 3) + 2
    return sbnref.compare(layer, x, impls=("reference", name)).agrees


with sbnref.Ranks(2) as ranks:
    for sizes in ((4, 4), (6, 2), (8, 0)):
        for mode in ("default", "N", "exact"):
            found = not ranks.run(agrees, sizes, mode)[0]
            print(f"2. batches {sizes}, mode {mode!r}: found is {found}")
            assert found == (0 in sizes and mode == "default")


# 3. With its own total, an implementation would carry an early error into every later
# stage, and all stages would differ. With one common total, only the wrong stage differs,
# and the sum of its payloads.
def shifted(x, weight):
    """Return a payload with means that are off by a thousandth."""
    payload = reference.forward_stats(x, weight)
    payload[: x.shape[1]] += 1e-3 * weight
    return payload


sbnref.register_impl("shifted", broken(forward_stats=shifted))
report = sbnref.compare(
    sbnref.SyncBatchNorm(3), torch.randn(8, 3), impls=("reference", "shifted")
)
blamed = {row.stage for row in report.rows if not row.agrees}
print("3. stages that differ:", *blamed)
assert blamed == {"forward_stats", "all-reduce"}
