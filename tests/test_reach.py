"""The features that work with each library's layer: the matrix on the site, ``docs/howto/reach.json``.

``pytest --record docs/howto/reach.json tests/test_reach.py tests/test_trainers.py`` records the results, including
the trainers'. Without ``--record``, the results must equal the file.
"""

import importlib
import sys
from importlib.util import find_spec
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision_here  # noqa: F401
from shared import ROOT
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sbnref
from benchmarks.results import load

pytestmark = pytest.mark.slow

FILE = ROOT / "docs" / "howto" / "reach.json"
LAYERS = {  # name on the page: import path
    "torch.nn.BatchNorm2d": "torch.nn.BatchNorm2d",
    "torch.nn.SyncBatchNorm": "torch.nn.SyncBatchNorm",
    "mmcv.ops.SyncBatchNorm": "mmcv.ops.SyncBatchNorm",
    "fairscale's SyncBatchNorm": "fairscale.experimental.nn.SyncBatchNorm",
    "timm's BatchNormAct2d": "timm.layers.BatchNormAct2d",
    "timm's SyncBatchNormAct": "timm.layers.SyncBatchNormAct",
    "torchvision's FrozenBatchNorm2d, frozen=True": "torchvision.ops.FrozenBatchNorm2d",
    "sbnref.SyncBatchNorm": "sbnref.SyncBatchNorm",
    "detectron2's NaiveSyncBatchNorm": "detectron2.layers.NaiveSyncBatchNorm",
    "apex's SyncBatchNorm": "apex.parallel.SyncBatchNorm",
    "Ultralytics": "ultralytics.",
}
WHATS = ("convert", "train, ragged", "train, a rank empty", "revert", "state dict", "compile")
BY_NAME = "not installed in the tests, where a stand-in of that name is converted and reverted"
NOT_THERE = {  # tests/test_convert.py::test_peers_are_recognized_by_name
    "detectron2": BY_NAME,
    "apex": BY_NAME,
    "ultralytics": "read from its source and not run: it trains on several ranks only with accelerators",
}


def network(where: str) -> nn.Module:
    torch.manual_seed(0)
    module, _, name = where.rpartition(".")
    if module == "mmcv.ops":
        sys.modules["mmcv._ext"] = MagicMock()  # mmcv's layer is built without its kernels
    library = importlib.import_module(module)
    norm = getattr(library, name)(4)
    if name == "SyncBatchNormAct":  # timm converts another layer and keeps its activation
        norm = library.convert_sync_batchnorm(library.BatchNormAct2d(4))
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(16, 5)).double()


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, ranks: int) -> dict[str, torch.Tensor]:
    (F.cross_entropy(model(images), labels, reduction="sum") * ranks / 5).backward()
    gradients = {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters()}
    return {name.replace("module.", ""): t.clone() for name, t in {**model.state_dict(), **gradients}.items()}


def tried(where: str) -> dict[str, str]:
    choices = {"frozen": True} if "Frozen" in where else {}

    def converted() -> nn.Module:
        return sbnref.convert_sync_batchnorm(network(where), stats_mode="exact", **choices)

    model, before = converted(), network(where).state_dict()
    assert isinstance(model[1], sbnref.SyncBatchNorm)
    counted = {k: v for k, v in model.state_dict().items() if k in before or "num_batches" not in k}
    torch.testing.assert_close(counted, dict(before))
    network(where).load_state_dict(counted, strict=True)
    model.load_state_dict(before, strict="Frozen" not in where)

    images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.arange(5)
    want = step(sbnref.revert_sync_batchnorm(converted()), images, labels, 1)
    for first in (3, 5):
        mine = slice(0, first) if dist.get_rank() == 0 else slice(first, 5)
        torch.testing.assert_close(step(DistributedDataParallel(converted()), images[mine], labels[mine], 2), want)

    torch._dynamo.reset()
    want = step(converted(), images, labels, 1)
    got = step(torch.compile(converted(), fullgraph=True, backend="aot_eager"), images, labels, 1)
    torch.testing.assert_close({k.replace("_orig_mod.", ""): v for k, v in got.items()}, want)

    model(images)
    want = model.eval()(images)
    reverted = sbnref.revert_sync_batchnorm(model)
    assert torch.equal(reverted(images), want)
    assert not any(isinstance(layer, sbnref.SyncBatchNorm) for layer in reverted.modules())
    return dict.fromkeys(WHATS, "✓")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name, world, record, request):
    package = LAYERS[name].partition(".")[0]
    if package in NOT_THERE:
        row = dict.fromkeys(WHATS, NOT_THERE[package])
    elif find_spec(package):
        row = world(2).run(tried, LAYERS[name])[0]
    else:
        pytest.skip(f"{package} is not installed")
    record(**{"with": name}, **row)
    if not request.config.getoption("record"):
        assert {"with": name, **row} in load(FILE).rows
