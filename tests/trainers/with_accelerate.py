"""Hugging Face accelerate. Run by torchrun, with a folder as its argument."""

import torch
from accelerate import Accelerator
from batches import batches, leave, loss, network, rank, save

import sbnref


def main() -> None:
    accelerator = Accelerator(cpu=True)
    model = sbnref.convert_sync_batchnorm(network(), stats_mode="exact")  # before prepare
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)

    for images, labels, samples in batches(rank()):
        optimizer.zero_grad()
        accelerator.backward(loss(model(images), labels, samples))
        optimizer.step()

    save(accelerator.unwrap_model(model))


main()
leave()
