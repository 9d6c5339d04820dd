"""Conversion of models both ways: recognized layers, kept attributes, errors, and state dicts of the peers."""

import copy
import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from shared import blocks
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

import sbnref
from sbnref import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from sbnref.interop.convert import conversions
from sbnref.interop.convert import register_conversion as register


def model() -> nn.Sequential:
    shared = nn.BatchNorm2d(4, eps=1e-3, momentum=None)
    inner = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.BatchNorm3d(3, track_running_stats=False))
    return nn.Sequential(shared, nn.Conv2d(4, 4, 1), shared, nn.ModuleDict({"inner": inner, "last": shared}))


def standin(path: str, base: type[nn.Module] = nn.BatchNorm2d) -> type[nn.Module]:
    """Return a layer class with the full name of one in a package that is not installed."""
    module, _, name = path.rpartition(".")
    return type(name, (base,), {"__module__": module, "__qualname__": name, "forward": lambda self, x: x})


def test_every_batch_norm_is_converted_and_back():
    before = model()
    state, stem = copy.deepcopy(before.state_dict()), copy.deepcopy(before[:3])
    tensors = {name: t.data_ptr() for name, t in before.state_dict().items()}
    parameters = list(before.parameters())

    converted = convert_sync_batchnorm(before, stats_mode="N", impl="reference")
    assert converted is before
    first, conv, again, rest = converted
    inner = rest["inner"]
    for layer in (first, *inner):
        assert type(layer) is SyncBatchNorm
        assert (layer.stats_mode, layer.impl, layer.group) == ("N", "reference", None)
    assert first is again is rest["last"]
    assert isinstance(conv, nn.Conv2d)
    assert (first.eps, first.momentum, inner[0].affine, inner[1].track_running_stats) == (1e-3, None, False, False)
    assert all(p is q for p, q in zip(converted.parameters(), parameters, strict=True))
    assert {name: t.data_ptr() for name, t in converted.state_dict().items()} == tensors
    converted.load_state_dict(state, strict=True)
    x = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(copy.deepcopy(converted[:3])(x), stem(x))

    reverted = revert_sync_batchnorm(converted)
    assert reverted is before
    assert [type(layer) for layer in (reverted[0], *rest["inner"])] == [nn.BatchNorm2d, nn.BatchNorm1d, nn.BatchNorm3d]
    assert reverted[0] is reverted[2]
    assert repr(reverted) == repr(model())
    assert {name: t.data_ptr() for name, t in reverted.state_dict().items()} == tensors
    reverted.load_state_dict(state, strict=True)


def test_attributes_and_a_second_name_for_a_layer_are_kept():
    parent = nn.Module()
    parent.a = parent.b = nn.BatchNorm2d(2)
    parent.a.group = parent.a.impl = "stem"  # names that mean something else in a synchronized layer
    parent.a.name_in_log, parent.a.qconfig = "stem", object()  # torch stores qconfig for quantization
    kept = {"name_in_log": "stem", "qconfig": parent.a.qconfig}
    for convert, kind in ((convert_sync_batchnorm, SyncBatchNorm), (revert_sync_batchnorm, nn.BatchNorm2d)):
        convert(parent)
        assert type(parent.b) is kind
        assert parent.a is parent.b
        assert kept.items() <= vars(parent.a).items()
    assert vars(parent.a).keys() == vars(nn.BatchNorm2d(2)).keys() | kept.keys()


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


def test_what_is_not_chosen_stays():
    lazy = nn.Sequential(nn.LazyBatchNorm2d())
    lazy(torch.randn(2, 3, 4, 4))  # initializes its size
    assert convert_sync_batchnorm(lazy)[0].num_features == 3
    once = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm3d(2)), stats_mode="N", impl="reference")
    again = convert_sync_batchnorm(once)
    assert (again[0].stats_mode, again[0].impl) == ("N", "reference")
    chosen = convert_sync_batchnorm(again, stats_mode="exact", impl="cpu")
    assert (chosen[0].stats_mode, chosen[0].impl) == ("exact", "cpu")
    equal_ranks = with_attribute("_stats_mode", "", nn.SyncBatchNorm(3))  # detectron2's default
    for layer, mode in ((nn.BatchNorm2d(3), "exact"), (nn.SyncBatchNorm(3), "exact"), (equal_ranks, "default")):
        assert convert_sync_batchnorm(layer).stats_mode == mode


def test_conversions_are_listed_and_nothing_is_changed():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(4), Fading(4), SyncBatchNorm(4, stats_mode="N"))
    before = list(model)
    listed = conversions(model)
    assert list(listed) == ["1", "2", "3"]
    assert listed["1"].startswith("BatchNorm2d becomes SyncBatchNorm(4, ")
    assert listed["2"] == "rejected: a Fading that overrides momentum, which converting would lose"
    assert listed["3"].endswith("stats_mode='N')")
    assert list(model) == before


@pytest.mark.parametrize("convert", [convert_sync_batchnorm, revert_sync_batchnorm])
def test_fake_tensors(convert):
    with FakeTensorMode():
        model = nn.Sequential(nn.BatchNorm1d(3), SyncBatchNorm(3))
        convert(model)(torch.empty(4, 3))


APEX = "apex.parallel.optimized_sync_batchnorm.SyncBatchNorm"
PEERS = [  # test_reach.py has those that can be installed
    standin("detectron2.layers.batch_norm.NaiveSyncBatchNorm"),
    standin("apex.parallel.sync_batchnorm.SyncBatchNorm", nn.modules.batchnorm._BatchNorm),
    standin(APEX, nn.modules.batchnorm._BatchNorm),
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


class WithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


momentum = property(lambda self: 1 / (1 + int(self.num_batches_tracked)), lambda self, value: None)
Fading = type("Fading", (nn.BatchNorm2d,), {"momentum": momentum})


def overriding(name: str) -> nn.Module:
    return type("Overriding", (nn.BatchNorm2d,), {name: lambda self, *args: self})(4)


def with_attribute(name: str, value: object, layer: nn.Module | None = None) -> nn.Module:
    layer = layer or nn.BatchNorm2d(4)
    setattr(layer, name, value)
    return layer


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (nn.LazyBatchNorm2d, "a LazyBatchNorm2d that gets its num_features from its first input"),
        (lambda: WithActivation(4), "a WithActivation with a forward pass of its own; register its class with sbnref"),
        (lambda: with_attribute("forward", lambda x: x), "a forward pass of its own"),
        (lambda: with_attribute("channel_last", True, standin(APEX)(4)), "channel_last=True"),
        (lambda: prune.l1_unstructured(nn.BatchNorm2d(4), "weight", 1), "computed parameters"),
        (lambda: torch.jit.script(nn.BatchNorm2d(4)), "that torch.jit compiled from a BatchNorm2d; convert"),
        (lambda: torch.jit.trace(nn.BatchNorm2d(4).eval(), torch.ones(2, 4, 3, 3)), "that torch.jit compiled from"),
        (lambda: overriding("get_extra_state"), "that overrides get_extra_state, which converting would lose"),
        (lambda: Fading(4), "that overrides momentum, which converting would lose"),
        (lambda: with_attribute("train", lambda mode=True: None), "that overrides train, which converting would lose"),
    ],
)
def test_what_would_be_lost_is_refused_and_nothing_is_changed(build, reason):
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(build()))
    before = list(network.modules())
    with pytest.raises(TypeError, match=f"got '1.0', .*{reason}"):
        convert_sync_batchnorm(network)
    assert list(network.modules()) == before


def test_wrong_choices_change_nothing():
    for options in ({"stats_mode": "n"}, {"impl": "gpu"}):
        network = nn.Sequential(nn.BatchNorm2d(4))
        with pytest.raises(ValueError, match="expected"):
            convert_sync_batchnorm(network, **options)
        assert type(network[0]) is nn.BatchNorm2d
    with pytest.raises(TypeError, match=r"expected group to be None, .* got str"):
        convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4)), "exact")  # a mode in place of the group
    assert convert_sync_batchnorm(nn.Linear(2, 2)).in_features == 2
    for function in (convert_sync_batchnorm, revert_sync_batchnorm):
        with pytest.raises(TypeError, match="expected a module to convert, got list"):
            function([nn.BatchNorm2d(4)])


def test_other_norms_are_left_alone():
    network = nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), WithActivation(4))
    before = list(network)
    assert list(revert_sync_batchnorm(network)) == before
    assert list(convert_sync_batchnorm(network[:2])) == before[:2]


def test_a_weight_without_a_bias_stays_so():
    layer, x = SyncBatchNorm(4, bias=False), torch.randn(6, 4)
    for built in (convert_sync_batchnorm(layer), revert_sync_batchnorm(layer), copy.deepcopy(layer)):
        assert [name for name, _ in built.named_parameters()] == ["weight"]
        torch.testing.assert_close(built(x), layer(x))


def test_a_weight_that_is_a_buffer_stays_one():
    layer, x = nn.BatchNorm1d(4), torch.randn(6, 4)
    layer.register_buffer("weight", layer._parameters.pop("weight").detach())
    converted = convert_sync_batchnorm(copy.deepcopy(layer))
    torch.testing.assert_close(converted(x), layer(x))
    assert converted.state_dict().keys() == layer.state_dict().keys()
    assert [name for name, _ in converted.named_parameters()] == ["bias"]


class SyncWithActivation(SyncBatchNorm):
    def forward(self, x):
        return super().forward(x).relu()


def synchronized(layer: nn.Module, **choices) -> nn.Module:
    return SyncWithActivation(layer.num_features, layer.eps, device="meta", **choices)


def test_a_registered_class_is_converted_and_back():
    register(f"{__name__}.WithActivation", synchronized, None)
    register(f"{__name__}.SyncWithActivation", synchronized, lambda layer: WithActivation(4, layer.eps))
    before, x = nn.Sequential(WithActivation(4, eps=1e-3)).eval(), torch.randn(3, 4, 2, 2)
    weight, y = before[0].weight, before(x)
    after = convert_sync_batchnorm(before, stats_mode="exact", impl="reference")
    assert type(after[0]) is SyncWithActivation
    assert (after[0].eps, after[0].stats_mode, after[0].impl) == (1e-3, "exact", "reference")
    torch.testing.assert_close(after(x), y)
    reverted = revert_sync_batchnorm(after)
    assert type(reverted[0]) is WithActivation
    assert reverted[0].weight is weight
    torch.testing.assert_close(reverted(x), y, rtol=0, atol=0)


def test_a_class_registered_without_functions_is_left_alone():
    register(f"{__name__}.WithActivation", None, None)
    network = nn.Sequential(WithActivation(4), nn.BatchNorm2d(4))
    layer = network[0]
    assert convert_sync_batchnorm(network)[0] is layer
    assert type(network[1]) is SyncBatchNorm
    assert revert_sync_batchnorm(network)[0] is layer


NO_LAYER = "expected the conversion of '1.0', a WithActivation, .* got a "
SHARED = SyncBatchNorm(4)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda layer, **_: None, f"{NO_LAYER}NoneType"),
        (lambda *_, **__: nn.Sequential(SyncBatchNorm(4)), rf"{NO_LAYER}Sequential that also has \['0'\]"),
        (lambda layer, **_: SHARED, "a new module for each layer, got one module for several"),
    ],
)
def test_what_a_conversion_returns_is_checked_before_anything_is_changed(returned, message):
    register(f"{__name__}.WithActivation", returned, None)
    first = nn.BatchNorm2d(4)
    first.register_load_state_dict_pre_hook(lambda module, *_: None)
    network = nn.Sequential(first, nn.Sequential(WithActivation(4), WithActivation(4)))
    before = list(network.modules())
    with pytest.raises(TypeError, match=message):
        convert_sync_batchnorm(network)
    assert list(network.modules()) == before
    (hook,) = first._load_state_dict_pre_hooks.values()
    assert hook.module() is first


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((nn.BatchNorm2d, None, None), TypeError, "expected the full name of a class as a string, got <class"),
        (("a.b c", None, None), ValueError, "'package.module.Class', got 'a.b c'"),
        (("torch.nn.modules.batchnorm.SyncBatchNorm", None, None), ValueError, "expected a new name, got 'torch.nn"),
        (("a.B", "convert", None), TypeError, "expected convert and revert to be functions or None, got 'convert'"),
    ],
)
def test_wrong_registrations_change_nothing(arguments, error, said):
    before = dict(sbnref.interop.convert._registry)
    with pytest.raises(error, match=said):
        register(*arguments)
    assert sbnref.interop.convert._registry == before


class Frozen(nn.Module):
    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, number in {"weight": 2.0, "bias": 1.0, "running_mean": 3.0, "running_var": 4.0}.items():
            self.register_buffer(name, torch.full((num_features,), number, dtype=torch.float64))
        self.register_buffer("num_batches_tracked", None)


def test_frozen_layers_go_by_name():
    """Convert a stand-in for detectron2's layer; test_reach.py has torchvision's, and test_timm.py timm's."""
    network = nn.Sequential(standin("detectron2.layers.batch_norm.FrozenBatchNorm2d", Frozen)(4, eps=1e-3)).eval()
    frozen = network[0]
    assert convert_sync_batchnorm(network)[0] is frozen
    layer = convert_sync_batchnorm(network, frozen=True)[0]
    assert type(layer) is SyncBatchNorm
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), 2 * (x - 3) / (4 + 1e-3) ** 0.5 + 1)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert "weight" in frozen._buffers
    layer.train()(x).sum().backward()
    assert layer.num_batches_tracked == 1
    nn.BatchNorm2d(4).load_state_dict(layer.state_dict(), strict=True)
    assert type(revert_sync_batchnorm(network)[0]) is nn.BatchNorm2d


def test_a_norm_for_sparse_tensors_is_called_without_points(monkeypatch):
    """Run the page's code block with a stand-in for spconv."""
    (block,) = blocks("docs/howto/convert.md", "py")
    spconv = SimpleNamespace(SparseModule=nn.Module, SparseSequential=nn.Sequential)
    monkeypatch.setitem(sys.modules, "spconv", SimpleNamespace(pytorch=spconv))
    monkeypatch.setitem(sys.modules, "spconv.pytorch", spconv)
    page = {"sbnref": sbnref, "__name__": "page"}
    exec(block, page)
    norm = nn.BatchNorm1d(4)
    model = convert_sync_batchnorm(nn.Sequential(norm, nn.ReLU(), norm), stats_mode="exact")
    page["never_skip"](model)
    assert model[0].norm is model[2].norm
    sparse = SimpleNamespace(features=torch.zeros(0, 4), replace_feature=lambda features: features)
    with patch.object(SyncBatchNorm, "forward", return_value="normalized"):
        assert model[0](sparse) == "normalized"
    assert type(revert_sync_batchnorm(model)[0].norm) is nn.BatchNorm1d
