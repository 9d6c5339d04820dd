"""Models of timm: each trains on two ranks as on one, and goes back; its norms with an activation, and its frozen ones."""

import copy
import pickle
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import sbnref
from sbnref import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from sbnref.interop.convert import SyncBatchNormAct

if not find_spec("timm"):
    pytest.skip("timm is not installed", allow_module_level=True)

import torchvision_here  # noqa: F401
import timm
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct as TimmSyncBatchNormAct
from timm.layers import convert_sync_batchnorm as timm_convert
from timm.layers import freeze_batch_norm_2d
from torchvision.ops import FrozenBatchNorm2d

MODELS = (
    "densenet121",
    "dla46_c",
    "efficientnet_b0",
    "ese_vovnet19b_slim_dw",
    "ghostnet_100",
    "hrnet_w18_small",
    "mnasnet_small",
    "mobilenetv3_small_050",
    "regnetx_002",
    "res2net50_14w_8s",
    "resnest14d",
    "resnet18",
)


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]


def train_and_revert(name: str) -> float:
    """One step on ragged batches; what is furthest from the step of one process on all, relative to its size."""
    torch.manual_seed(0)
    plain = timm.create_model(name, drop_rate=0.0).double()
    model = convert_sync_batchnorm(copy.deepcopy(plain), stats_mode="exact")
    assert {type(layer) for layer in norms(model)} <= {SyncBatchNorm, SyncBatchNormAct}
    assert model.state_dict().keys() == plain.state_dict().keys()

    x, upstream = torch.randn(5, 3, 64, 64).double(), torch.randn(5, plain.num_classes).double()
    own = slice(3) if dist.get_rank() == 0 else slice(3, 5)
    (model(x[own]) * upstream[own]).sum().backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad, dist.ReduceOp.AVG if dist.get_backend() == "nccl" else dist.ReduceOp.SUM)
        parameter.grad /= 2
    furthest = 0.0
    if dist.get_rank() == 0:
        (plain(x) * upstream).sum().div(2).backward()  # gradients are averaged over the ranks
        pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
        pairs += zip(model.buffers(), plain.buffers(), strict=True)
        largest = max(q.abs().max() for _, q in pairs)
        furthest = max(float((p - q).abs().max() / (q.abs().max() + 1e-6 * largest)) for p, q in pairs)

    torch.optim.SGD(model.parameters(), lr=0.1).step()
    y = model.eval()(x)
    reverted = revert_sync_batchnorm(model)
    assert torch.equal(reverted(x), y)
    assert [type(layer) for layer in norms(reverted)] == [type(layer) for layer in norms(plain)]
    assert reverted.state_dict().keys() == plain.state_dict().keys()
    return furthest


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_on_two_ranks_as_on_one_and_goes_back(world, name):
    assert world(2).run(train_and_revert, name)[0] < 1e-8
