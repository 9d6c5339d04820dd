"""mmengine. Run by torchrun, with a folder as its argument."""

import sys

import torch.distributed as dist
from batches import batches, leave, loss, network, rank, save
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

import sbnref.interop.mmengine


class Model(BaseModel):
    """The network and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, images, labels, samples, mode):
        assert isinstance(self.network[1], sbnref.SyncBatchNorm)
        return {"loss": loss(self.network(images), labels, samples)}


def main() -> None:
    dist.init_process_group("gloo")  # the runner's own initialization needs a GPU
    runner = Runner(
        model=Model(),
        work_dir=f"{sys.argv[1]}/{rank()}",
        launcher="pytorch",
        cfg=dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)),  # on CPUs
        train_dataloader=DataLoader(batches(rank()), batch_size=None),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(sampler_seed=None, checkpoint=None),
        custom_hooks=[dict(type="EMAHook"), dict(type="SBNRefConvert", stats_mode="exact")],
    )
    runner.train()

    (average,) = (hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook))
    assert isinstance(average.module.network[1], sbnref.SyncBatchNorm), "it copied the model after it was converted"

    save(runner.model.module.network)


main()
leave()
