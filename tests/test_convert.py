"""Conversion of models both ways: what is recognized, what is kept, what is refused; and state dicts of the peers."""

import copy
import sys
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrize, prune

import sbnref
from sbnref import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm


def model() -> nn.Sequential:
    shared = nn.BatchNorm2d(4, eps=1e-3, momentum=None)
    inner = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.BatchNorm3d(3, track_running_stats=False))
    return nn.Sequential(shared, nn.Conv2d(4, 4, 1), shared, nn.ModuleDict({"inner": inner, "last": shared}))


def standin(path: str, base: type[nn.Module] = nn.BatchNorm2d) -> type[nn.Module]:
    """A layer that goes by the full name of one in a package that is not installed."""
    module, _, name = path.rpartition(".")
    return type(name, (base,), {"__module__": module, "__qualname__": name, "forward": lambda self, x: x})


def test_every_batch_norm_is_converted_and_back():
    before = model()
    state = copy.deepcopy(before.state_dict())
    tensors = {name: t.data_ptr() for name, t in before.state_dict().items()}
    parameters = list(before.parameters())

    converted = convert_sync_batchnorm(before, stats_mode="N", impl="reference")
    assert converted is before
    first, conv, again, rest = converted
    inner = rest["inner"]
    for layer in (first, *inner):
        assert type(layer) is SyncBatchNorm
        assert (layer.stats_mode, layer.impl, layer.group) == ("N", "reference", None)
    assert first is again
    assert first is rest["last"]
    assert isinstance(conv, nn.Conv2d)
    assert (first.eps, first.momentum, inner[0].affine, inner[1].track_running_stats) == (1e-3, None, False, False)
    assert all(p is q for p, q in zip(converted.parameters(), parameters, strict=True))
    assert {name: t.data_ptr() for name, t in converted.state_dict().items()} == tensors
    converted.load_state_dict(state, strict=True)

    reverted = revert_sync_batchnorm(converted)
    assert reverted is before
    assert [type(layer) for layer in (reverted[0], *rest["inner"])] == [nn.BatchNorm2d, nn.BatchNorm1d, nn.BatchNorm3d]
    assert reverted[0] is reverted[2]
    assert repr(reverted) == repr(model())
    assert {name: t.data_ptr() for name, t in reverted.state_dict().items()} == tensors
    reverted.load_state_dict(state, strict=True)


def test_a_module_that_holds_one_layer_twice():
    parent = nn.Module()
    parent.a = parent.b = nn.BatchNorm2d(2)
    convert_sync_batchnorm(parent)
    assert type(parent.b) is SyncBatchNorm
    assert parent.a is parent.b


def test_a_batch_norm_itself_gives_a_new_layer():
    layer = nn.BatchNorm2d(3, device="meta", dtype=torch.float64).eval()
    converted = convert_sync_batchnorm(layer)
    assert type(layer) is nn.BatchNorm2d
    assert type(converted) is SyncBatchNorm
    assert converted.weight is layer.weight
    assert converted.running_var is layer.running_var
    assert not converted.training
    assert type(revert_sync_batchnorm(converted)) is nn.BatchNorm2d
    assert revert_sync_batchnorm(layer) is layer


def test_converted_computes_what_it_did():
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    after = convert_sync_batchnorm(copy.deepcopy(before))
    x = torch.randn(5, 3, 6, 6)
    for _ in range(2):
        torch.testing.assert_close(before(x), after(x))
    after = revert_sync_batchnorm(after)
    torch.testing.assert_close(before.eval()(x), after.eval()(x))


def test_hooks_and_their_handles_stay():
    layer = nn.BatchNorm1d(3)
    calls = []
    handle = layer.register_forward_hook(lambda module, args, y: calls.append(type(module)))
    layer.register_full_backward_hook(lambda module, dx, dy: calls.append("backward"))
    layer.register_load_state_dict_pre_hook(lambda module, *_: calls.append(("load", type(module))))
    for convert, kind in ((convert_sync_batchnorm, SyncBatchNorm), (revert_sync_batchnorm, nn.BatchNorm1d)):
        layer = convert(nn.Sequential(layer))[0]
        layer(torch.randn(4, 3, requires_grad=True)).sum().backward()
        layer.load_state_dict(layer.state_dict())
        assert calls == [kind, "backward", ("load", kind)]
        calls.clear()
    handle.remove()
    layer(torch.randn(4, 3))
    assert not calls


def test_a_layer_built_synchronized_becomes_what_its_first_input_says():
    for shape, kind in {
        (2, 3): nn.BatchNorm1d,
        (2, 3, 4): nn.BatchNorm1d,
        (2, 3, 4, 4): nn.BatchNorm2d,
        (2, 3, 4, 4, 4): nn.BatchNorm3d,
        (2, 3, 1, 1, 1, 2): sbnref.interop.convert.BatchNorm,
    }.items():
        layer = revert_sync_batchnorm(SyncBatchNorm(3))
        assert isinstance(copy.deepcopy(layer), nn.modules.batchnorm._BatchNorm)
        layer(torch.randn(shape))
        assert type(layer) is kind


def test_converting_ours_again_changes_its_choices():
    once = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm3d(2)), stats_mode="N", impl="reference")
    twice = convert_sync_batchnorm(once, stats_mode="exact")
    assert (twice[0].stats_mode, twice[0].impl) == ("exact", None)
    assert type(revert_sync_batchnorm(twice)[0]) is nn.BatchNorm3d


PEERS = [
    nn.SyncBatchNorm,
    standin("mmcv.ops.sync_bn.SyncBatchNorm"),
    standin("detectron2.layers.batch_norm.NaiveSyncBatchNorm"),
    standin("apex.parallel.sync_batchnorm.SyncBatchNorm", nn.modules.batchnorm._BatchNorm),
    standin("apex.parallel.optimized_sync_batchnorm.SyncBatchNorm", nn.modules.batchnorm._BatchNorm),
    standin("fairscale.experimental.nn.sync_batchnorm.SyncBatchNorm"),
]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: f"{peer.__module__}.{peer.__qualname__}")
def test_peers_are_recognized_by_name(peer):
    layer = peer(4)
    state = copy.deepcopy(layer.state_dict())
    converted = convert_sync_batchnorm(nn.Sequential(layer), stats_mode="exact")
    assert type(converted[0]) is SyncBatchNorm
    assert converted[0].weight is layer.weight
    converted[0].load_state_dict(state, strict=True)
    reverted = revert_sync_batchnorm(nn.Sequential(layer))
    reverted(torch.randn(2, 4, 3, 3))
    assert type(reverted[0]) is nn.BatchNorm2d


def real_peers() -> None:
    """The layers of mmcv and fairscale themselves, on one rank; mmcv's kernels are not needed to build its layer."""
    sys.modules["mmcv._ext"] = MagicMock()
    from fairscale.experimental.nn import SyncBatchNorm as FairscaleSyncBatchNorm
    from mmcv.ops import SyncBatchNorm as MmcvSyncBatchNorm

    for peer in (FairscaleSyncBatchNorm(4), MmcvSyncBatchNorm(4, stats_mode="N"), nn.SyncBatchNorm(4)):
        nn.init.uniform_(peer.running_mean)
        ours = SyncBatchNorm(4)
        ours.load_state_dict(peer.state_dict(), strict=True)
        torch.testing.assert_close(ours.state_dict(), peer.state_dict())
        nn.init.uniform_(ours.running_var)
        peer.load_state_dict(ours.state_dict(), strict=True)
        torch.testing.assert_close(peer.state_dict(), ours.state_dict())

        converted = convert_sync_batchnorm(nn.Sequential(peer), group=dist.group.WORLD, stats_mode="exact")
        assert type(converted[0]) is SyncBatchNorm
        assert converted[0].group is dist.group.WORLD
        assert converted[0].weight is peer.weight
        x = torch.randn(3, 4, 2, 2)
        torch.testing.assert_close(converted.eval()(x), peer.eval()(x))
        reverted = revert_sync_batchnorm(nn.Sequential(peer))
        torch.testing.assert_close(reverted(x), peer(x))
        assert type(reverted[0]) is nn.BatchNorm2d


@pytest.mark.filterwarnings("ignore")
def test_real_peers_and_their_state_dicts(world):
    pytest.importorskip("mmcv")
    pytest.importorskip("fairscale")
    world(1).run(real_peers)


class WithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def patched() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.forward = lambda x: x
    return layer


def channel_last() -> nn.Module:
    layer = standin("apex.parallel.optimized_sync_batchnorm.SyncBatchNorm")(4)
    layer.channel_last = True
    return layer


class Positive(nn.Module):
    def forward(self, x):
        return x.exp()


def parametrized() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    parametrize.register_parametrization(layer, "weight", Positive())
    return layer


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (nn.LazyBatchNorm2d, "a LazyBatchNorm2d that learns its num_features from its first input"),
        (lambda: WithActivation(4), "a WithActivation with a forward pass of its own"),
        (patched, "a forward pass of its own"),
        (channel_last, "channel_last=True"),
        (parametrized, "computed from others"),
        (lambda: prune.l1_unstructured(nn.BatchNorm2d(4), "weight", 1), "computed from others"),
    ],
)
def test_what_would_be_lost_is_refused_and_nothing_is_changed(build, reason):
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(build()))
    before = list(network.modules())
    with pytest.raises(TypeError, match=f"got '1.0', .*{reason}"):
        convert_sync_batchnorm(network)
    assert list(network.modules()) == before


def test_lazy_layers_are_converted_once_they_know_their_size():
    layer = nn.Sequential(nn.LazyBatchNorm2d())
    layer(torch.randn(2, 3, 4, 4))
    assert convert_sync_batchnorm(layer)[0].num_features == 3


def test_wrong_choices_change_nothing():
    for options in ({"stats_mode": "n"}, {"impl": "gpu"}):
        network = nn.Sequential(nn.BatchNorm2d(4))
        with pytest.raises(ValueError, match="expected"):
            convert_sync_batchnorm(network, **options)
        assert type(network[0]) is nn.BatchNorm2d
    with pytest.raises(TypeError, match=r"expected group to be None, .* got str"):
        convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4)), "exact")  # the mode where the group belongs
    assert convert_sync_batchnorm(nn.Linear(2, 2)).in_features == 2


def test_other_norms_are_left_alone():
    network = nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), WithActivation(4))
    before = list(network)
    assert list(revert_sync_batchnorm(network)) == before
    assert list(convert_sync_batchnorm(network[:2])) == before[:2]
