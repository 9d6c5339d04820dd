"""The module's duties in torch.nn: repr, copies, pickles, state dicts, use before a process group exists."""

import copy
import doctest
import io
import warnings

import numpy
import pytest
import torch
import torch.distributed as dist
from torch import nn

import sbnref
from sbnref import SyncBatchNorm
from sbnref.modes import rank_weight


def test_it_is_recognized_as_a_batch_norm():
    layer = SyncBatchNorm(4, stats_mode="N", impl="reference")
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert torch.equal(layer.weight, torch.ones(4))
    assert repr(layer) == repr(nn.BatchNorm2d(4)).replace("BatchNorm2d", "SyncBatchNorm").replace(
        ")", ", stats_mode='N', impl='reference')"
    )
    assert SyncBatchNorm(4, 1e-3, 0.2, False, False, None, "exact").eps == 1e-3
    layer = SyncBatchNorm(4, device="meta", dtype=torch.bfloat16)
    assert layer.weight.is_meta
    assert layer.running_var.dtype == torch.bfloat16


def test_the_weight_of_an_unknown_mode_is_an_error():
    with pytest.raises(ValueError, match=r"expected stats_mode to be one of \('default', 'N', 'exact'\), got 'mean'"):
        rank_weight("mean", 2, 8)


def test_update_bn_recomputes_the_running_statistics():
    model = nn.Sequential(SyncBatchNorm(4, stats_mode="exact"))
    batches = [torch.randn(6, 4) * 3 + 1 for _ in range(4)]
    torch.optim.swa_utils.update_bn(batches, model)
    torch.testing.assert_close(model[0].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))


def test_switching_track_running_stats_off_stops_the_update():
    layer = SyncBatchNorm(4)
    layer.track_running_stats = False
    layer(torch.randn(8, 4))
    assert layer.num_batches_tracked == 0


@pytest.mark.ranks(2)
def test_copies_share_the_group_and_pickles_drop_it():
    rank = dist.get_rank()
    group = dist.new_group([0, 1])
    layer = sbnref.convert_sync_batchnorm(nn.BatchNorm2d(4), group=group, stats_mode="N")
    for clone in (copy.deepcopy(layer), copy.copy(layer)):
        assert clone.group is group
        assert clone.stats_mode == "N"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        buffer = io.BytesIO()
        torch.save(nn.Sequential(layer), buffer)
    assert any("process group cannot be pickled" in str(w.message) for w in caught)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)[0]
    assert (loaded.group, loaded.stats_mode) == (None, "N")
    loaded.group = group
    loaded(torch.randn(2 + rank, 4))
    assert loaded.num_batches_tracked == 1


def layer_built_before(layer: SyncBatchNorm) -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4).unbind()[dist.get_rank()]
    layer(x)
    return layer.running_mean


def test_a_layer_built_before_the_process_group_synchronizes(world):
    assert not dist.is_initialized()
    one, other = world(2).run(layer_built_before, SyncBatchNorm(4, stats_mode="exact"))
    torch.manual_seed(0)
    torch.testing.assert_close(one, 0.1 * torch.randn(2, 3, 4).flatten(0, 1).mean(0))
    assert torch.equal(one, other)


def test_the_docstring_example():
    result = doctest.testmod(sbnref.module, extraglobs={"torch": torch})
    assert result.attempted == 2
    assert result.failed == 0


@pytest.mark.parametrize("absent", ["weight", "bias"])
def test_a_weight_without_a_bias_and_the_reverse(absent):
    peer, layer = nn.BatchNorm1d(4), SyncBatchNorm(4)
    x = torch.randn(6, 4)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for norm, leaf in zip((peer, layer), inputs, strict=True):
        setattr(norm, absent, None)
        norm(leaf).pow(3).sum().backward()
    torch.testing.assert_close(*(leaf.grad for leaf in inputs))
    for (name, p), q in zip(peer.named_parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_it_is_built_without_a_bias():
    layer, peer = SyncBatchNorm(4, bias=False), SyncBatchNorm(4)
    peer.bias = None
    assert list(layer.state_dict()) == ["weight", "running_mean", "running_var", "num_batches_tracked"]
    assert layer.extra_repr() == peer.extra_repr()
    x = torch.randn(6, 4)
    torch.testing.assert_close(layer(x), peer(x))
    nn.init.zeros_(layer.weight)
    layer.reset_parameters()
    assert layer.weight.tolist() == [1] * 4
    assert layer.num_batches_tracked == 0
    assert list(SyncBatchNorm(4, affine=False, bias=False).parameters()) == []


def test_a_symbolic_trace_calls_it():
    model = nn.Sequential(SyncBatchNorm(4, stats_mode="exact"), nn.ReLU())
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(traced(x), model(x))
    torch.testing.assert_close(traced.get_buffer("0.running_mean"), model[0].running_mean)


def test_channels_are_checked_without_parameters():
    layer = SyncBatchNorm(3, affine=False, track_running_stats=False)
    with pytest.raises(ValueError, match=r"expected input of 3 channels \(N, C, \*\), got shape \(4, 5, 2\)"):
        layer(torch.randn(4, 5, 2))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_numbers_may_be_numpys(impl):
    x = torch.randn(4, 3, 5)
    layer = SyncBatchNorm(3, eps=numpy.float32(1e-5), momentum=numpy.float64(0.25), impl=impl)
    same = SyncBatchNorm(3, eps=float(numpy.float32(1e-5)), momentum=0.25, impl=impl)
    torch.testing.assert_close(layer(x), same(x), rtol=0, atol=0)
    torch.testing.assert_close(layer.state_dict(), same.state_dict(), rtol=0, atol=0)
