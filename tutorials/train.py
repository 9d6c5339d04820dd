r"""Train a small network on handwritten digits, with one process or many.

The processes use GPUs if the machine has one for each of them, else CPUs.

    python tutorials/train.py                        # one process
    torchrun --nproc-per-node=4 tutorials/train.py   # four processes on this machine

On two machines, run this command on both. Replace HOST by the name of one machine:

    torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d \
        --rdzv-endpoint=HOST:29500 tutorials/train.py

Each step takes one batch and cuts it at random into one piece per rank. The pieces
differ in size, and some are empty. With ``--stats-mode exact``, the losses are those of
one process up to rounding, with any number of ranks.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sbnref


def main() -> None:
    """Train on all ranks and evaluate on rank 0."""
    parser = argparse.ArgumentParser(
        description="Train on handwritten digits, on one process or many."
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--batch-size", type=int, default=128, help="summed over all ranks"
    )
    parser.add_argument(
        "--stats-mode", default="exact", choices=["default", "N", "exact"]
    )
    parser.add_argument(
        "--impl", default=None, help="'reference', 'cpu', 'cuda' or 'auto'"
    )
    parser.add_argument(
        "--output",
        default=None,
        help="file for the model, saved with plain batch norms",
    )
    args = parser.parse_args()

    device, rank, world_size = join_group()
    images, labels = (
        torch.from_numpy(array).to(device) for array in load_digits(return_X_y=True)
    )
    images = (images / 16).float().view(-1, 1, 8, 8)
    train, test = slice(0, 1500), slice(1500, None)

    torch.manual_seed(0)  # equal weights on every rank
    model = sbnref.convert_sync_batchnorm(
        network(), stats_mode=args.stats_mode, impl=args.impl
    ).to(device)
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)

    generator = torch.Generator().manual_seed(1)  # equal batches and cuts on every rank
    for step in range(1, args.steps + 1):
        batch = torch.randint(
            0, len(images[train]), (args.batch_size,), generator=generator
        )
        mine = cut(batch, world_size)[rank].to(device)
        loss = F.cross_entropy(wrapped(images[mine]), labels[mine], reduction="sum")
        # DistributedDataParallel averages gradients over the ranks. This factor turns
        # the average over ranks into the mean over the batch.
        loss = loss * world_size / args.batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            report(
                f"step {step}: loss {mean_over_ranks(loss.detach()).item():.4f}", rank
            )

    if rank == 0:  # in eval mode the layer needs no other rank
        accuracy = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean()
        report(f"accuracy on {len(labels[test])} other digits: {accuracy:.1%}", rank)
        if args.output:
            torch.save(sbnref.revert_sync_batchnorm(model).state_dict(), args.output)
    if dist.is_initialized():
        dist.barrier()  # a rank may abort if it leaves right after its last collective
        dist.destroy_process_group()


def join_group() -> tuple[torch.device, int, int]:
    """Return device, rank and number of ranks; without torchrun there is one rank."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_torchelastic_launched():
        return device, 0, 1
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return device, dist.get_rank(), dist.get_world_size()


def network() -> nn.Module:
    """Return a network of two convolutions with ordinary batch norms."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 10)),
    )


def cut(batch: Tensor, pieces: int) -> tuple[Tensor, ...]:
    """Cut the batch into random pieces, some empty; every rank cuts equally."""
    generator = torch.Generator().manual_seed(int(batch.sum()))
    cuts = (
        torch.randint(0, len(batch) + 1, (pieces - 1,), generator=generator)
        .sort()
        .values
    )
    return batch.tensor_split(cuts)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Average for the report; DistributedDataParallel averages the gradients."""
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def report(line: str, rank: int) -> None:
    """Print on rank 0."""
    if rank == 0:
        print(line, flush=True)


if __name__ == "__main__":
    main()
