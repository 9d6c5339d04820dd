"""timm: training on two ranks as on one, reverting, norms with an activation, and frozen norms."""

import copy
import pickle
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
import torchvision_here  # noqa: F401
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sbnref import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from sbnref.interop.convert import SyncBatchNormAct

if not find_spec("timm"):
    pytest.skip("timm is not installed", allow_module_level=True)

import timm
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, freeze_batch_norm_2d
from timm.layers import SyncBatchNormAct as TimmSyncBatchNormAct

pytestmark = pytest.mark.slow

MODELS = ["dla46_c", "efficientnet_b0", "ese_vovnet19b_slim_dw", "ghostnet_100", "resnest14d", "resnet18"]


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.ranks(2)
def test_a_model_trains_on_two_ranks_as_on_one_and_goes_back(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, drop_rate=0.0).double()
    model = convert_sync_batchnorm(copy.deepcopy(plain), stats_mode="exact")
    assert {type(layer) for layer in norms(model)} <= {SyncBatchNorm, SyncBatchNormAct}
    assert model.state_dict().keys() == plain.state_dict().keys()

    x, upstream = torch.randn(5, 3, 64, 64).double(), torch.randn(5, plain.num_classes).double()
    own = slice(3) if dist.get_rank() == 0 else slice(3, 5)
    (model(x[own]) * upstream[own]).sum().backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2
    if dist.get_rank() == 0:
        (plain(x) * upstream).sum().div(2).backward()  # gradients are averaged over the ranks
        pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
        pairs += zip(model.buffers(), plain.buffers(), strict=True)
        largest = max(q.abs().max() for _, q in pairs)
        assert max(float((p - q).abs().max() / (q.abs().max() + 1e-6 * largest)) for p, q in pairs) < 1e-8

    torch.optim.SGD(model.parameters(), lr=0.1).step()
    y = model.eval()(x)
    reverted = revert_sync_batchnorm(model)
    assert torch.equal(reverted(x), y)
    assert [type(layer) for layer in norms(reverted)] == [type(layer) for layer in norms(plain)]
    assert reverted.state_dict().keys() == plain.state_dict().keys()


def with_drop(layer: nn.Module) -> nn.Module:
    layer.drop = nn.Dropout(0.5)
    return layer


def test_drop_and_act_are_kept():
    before = nn.Sequential(with_drop(BatchNormAct2d(4, act_layer=nn.SiLU)))
    layer, (drop, act) = before[0], before[0].children()
    keys, x = list(before.state_dict()), torch.randn(3, 4, 5, 5)
    torch.manual_seed(0)
    y = copy.deepcopy(before)(x)

    after = convert_sync_batchnorm(before, stats_mode="N", impl="reference")
    converted = after[0]
    assert type(converted) is SyncBatchNormAct
    assert (converted.drop, converted.act, converted.weight) == (drop, act, layer.weight)
    assert list(after.state_dict()) == keys
    for same in (copy.deepcopy(after), pickle.loads(pickle.dumps(after)), after):
        torch.manual_seed(0)
        torch.testing.assert_close(same(x), y)
    again = convert_sync_batchnorm(after, stats_mode="exact")[0]
    assert (type(again), again.stats_mode, again.act) == (SyncBatchNormAct, "exact", act)

    reverted = revert_sync_batchnorm(after)[0]
    assert type(reverted) is BatchNormAct2d
    assert (reverted.drop, reverted.act, reverted.weight) == (drop, act, layer.weight)
    torch.testing.assert_close(reverted.eval()(x), again.eval()(x), rtol=0, atol=0)


def test_what_timm_converted_itself_without_an_activation():
    layer, x = TimmSyncBatchNormAct(4), torch.randn(3, 4, 2, 2)
    converted = convert_sync_batchnorm(nn.Sequential(copy.deepcopy(layer)), stats_mode="exact")
    assert type(converted[0]) is SyncBatchNorm
    reverted = revert_sync_batchnorm(nn.Sequential(layer))
    torch.testing.assert_close(reverted(x), converted(x))
    assert type(reverted[0]) is nn.BatchNorm2d


def test_frozen_layers_are_converted_on_request():
    """test_reach.py has torchvision's layer, which becomes a SyncBatchNorm."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), with_drop(BatchNormAct2d(4, eps=1e-3)))
    x = torch.randn(3, 3, 5, 5)
    model(x)  # statistics
    frozen = freeze_batch_norm_2d(model).eval()
    before = frozen[1]
    assert type(before) is FrozenBatchNormAct2d
    assert convert_sync_batchnorm(frozen)[1] is before
    saved, y = copy.deepcopy(frozen.state_dict()), frozen(x)

    thawed = convert_sync_batchnorm(frozen, stats_mode="exact", frozen=True)
    assert type(thawed[1]) is SyncBatchNormAct
    assert [name for name, p in thawed[1].named_parameters() if p.requires_grad] == ["weight", "bias"]
    assert (thawed[1].eps, thawed[1].momentum, thawed[1].stats_mode) == (1e-3, 0.1, "exact")
    assert not list(before.parameters()), "the frozen layer is as it was"
    torch.testing.assert_close(thawed(x), y)
    thawed.load_state_dict(saved, strict=True)
    y = thawed.eval()(x)
    reverted = revert_sync_batchnorm(thawed)
    assert type(reverted[1]) is BatchNormAct2d
    assert torch.equal(reverted(x), y)
