"""Lightning. Run by torchrun, with a folder as its argument."""

import lightning.pytorch as pl
import torch
from batches import batches, leave, loss, network, rank, save
from torch import nn
from torch.utils.data import DataLoader

from sbnref.interop.lightning import SBNRefSyncBatchNorm


class Module(pl.LightningModule):
    """The network and its training step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch):
        images, labels, samples = batch
        assert isinstance(self.network[1], nn.BatchNorm2d) is False, "synchronized while it is fitted"
        return loss(self.network(images), labels, samples)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        plugins=[SBNRefSyncBatchNorm(stats_mode="exact")],
        max_epochs=1,
        use_distributed_sampler=False,  # the batches are already split by rank
        **quiet,  # no logger, no progress bar
    )
    trainer.fit(module, DataLoader(batches(rank()), batch_size=None))

    assert type(module.network[1]) is nn.BatchNorm2d, "what it was"
    save(module.network)


main()
leave()
