"""Some training steps on every rank, for the tests: it says how each rank fares, and can be disturbed.

Run by torchrun. A JSON object as its argument: ``steps``, ``impl``, ``timeout`` (seconds of the process group),
``folder`` (a folder that all hosts see), and, where something is to happen, the step ``at`` and ``what``: ``forward``
or ``backward`` is the pass in which every rank pauses until there is a file ``go``; with ``kill`` the last rank kills
itself, once.

Rank 0 saves a checkpoint after each step, and all go on from it when torchrun starts them again.
"""

import hashlib
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from sbnref import SyncBatchNorm

job = json.loads(sys.argv[1])
folder, at, disturbed = Path(job["folder"]), job.get("at"), job.get("what")
rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def pause() -> None:
    """Say that this rank is there, and wait to be let go."""
    (folder / f"paused-{rank}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


def batch(step: int) -> torch.Tensor:
    """This rank's share: (N, 4, 3, 3), of as many samples as the step and the rank are congruent to modulo 3."""
    torch.manual_seed(100 * step + rank)
    return torch.randn((step + rank) % 3, 4, 3, 3, dtype=torch.float64) + step


def main() -> None:
    """Train; after each step print a digest of the weights and the running statistics, which differs if a bit does."""
    torch.manual_seed(0)
    norms = [SyncBatchNorm(4, stats_mode=mode, impl=job["impl"]) for mode in ("exact", "default")]
    model = nn.Sequential(norms[0], nn.Conv2d(4, 4, 1), norms[1]).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    checkpoint, done = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
        print(f"rank {rank} resumes after step {done}", flush=True)
    for step in range(done, job["steps"]):
        here = step == at
        if here and disturbed == "kill" and rank == dist.get_world_size() - 1 and restarts == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if here and disturbed == "forward":
            pause()
        y = model(batch(step))
        if here and disturbed == "backward":
            y.register_hook(lambda grad: pause())
        y.square().mul(torch.linspace(0, 1, 3)).sum().backward()
        for p in model.parameters():
            dist.all_reduce(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:  # under another name first: what has the right name is whole
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": step + 1}
            torch.save(state, folder / "part.pt")
            (folder / "part.pt").rename(checkpoint)
        numbers = b"".join(t.numpy().tobytes() for t in model.state_dict().values())
        print(f"rank {rank} after step {step + 1}: {hashlib.sha256(numbers).hexdigest()}", flush=True)


dist.init_process_group("gloo", timeout=timedelta(seconds=job["timeout"]))
try:
    main()
    dist.barrier()
    dist.destroy_process_group()
except Exception as error:
    lost = (folder / "lost").stat().st_mtime if (folder / "lost").exists() else time.time()
    text = str(error).strip().splitlines()[0]
    told = f"rank {rank} raises {type(error).__name__} after {time.time() - lost:.1f} s: {text}"
    print(told, flush=True)
    (folder / f"part-{rank}").write_text(told)
    (folder / f"part-{rank}").rename(folder / f"raised-{rank}")
    os._exit(1)
