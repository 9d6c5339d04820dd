"""Training steps with a failing last rank. :func:`sbnref.launch` calls `train`; torchrun runs this file.

A job has a ``folder``, ``impl``, ``steps``, ``faults`` ({"step": [pass, fault]}), and the ``timeout`` of process
groups from the first fault on.
"""

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

from sbnref import SyncBatchNorm, launch


def train(job: dict) -> torch.Tensor:
    rank, folder = dist.get_rank(), Path(job["folder"])
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
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
    faults = {} if done else job["faults"]  # after a restart, the hosts' restart counts differ
    for step in range(done, job["steps"]):
        torch.manual_seed(100 * step + rank)
        x = torch.randn((step + rank) % 3, 4, 3, 3, dtype=torch.float64)  # rank 1 has no data in step 2
        where, what = faults.get(str(step), ("", ""))
        if what:
            dist.barrier()
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=job["timeout"]))
        if where == "forward":
            fail(what, folder, model)
        y = model(x)
        if where == "backward":
            y.register_hook(lambda grad, what=what: fail(what, folder, model))
        y.square().mul(torch.linspace(0, 1, 3)).sum().backward()
        for p in model.parameters():
            dist.all_reduce(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:  # renamed once complete
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": step + 1}
            torch.save(state, folder / "part.pt")
            (folder / "part.pt").rename(checkpoint)
    (folder / f"resumed-{rank}").write_text(str(done))
    return nn.utils.parameters_to_vector(model.state_dict().values())


def fail(what: str, folder: Path, model: nn.Module) -> None:
    """Wait on every rank for the file ``go``, or fail on the last rank."""
    (folder / f"reached-{dist.get_rank()}").write_text(str(time.time()))
    while what == "waits" and not (folder / "go").exists():
        time.sleep(0.01)
    if what == "waits" or dist.get_rank() < dist.get_world_size() - 1:
        return
    if what == "raises":
        model(torch.ones(2, 5, 3, 3))  # the model expects 4 channels
    if what == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    try:
        torch.save(launch(train, 0, job, timeout=120), Path(job["folder"], f"result-{os.environ['RANK']}"))
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        Path(job["folder"], f"raised-{os.environ['RANK']}").write_text(f"{time.time()} {type(error).__name__}: {line}")
        raise
