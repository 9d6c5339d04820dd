"""The recipes for trainers, under torchrun on two ranks with ragged and empty batches, compared with one process."""

import os
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from shared import ROOT, blocks, python
from torch import nn
from trainers.batches import alone, assert_trained, batches

import sbnref

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> dict[str, str]:
    """Return an environment for trainers, in which torchvision can be imported first."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "sitecustomize.py").write_text("import ends_well, torchvision_here\n")
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}:{ROOT / 'tests'}"}


BY_HAND = "by sbnref.revert_sync_batchnorm, as of any model"
ROWS = {  # of the matrix: the trainer's name, and how to revert its model
    "accelerate": ("Hugging Face accelerate", BY_HAND),
    "lightning": ("Lightning, by SBNRefSyncBatchNorm", "✓"),  # its script asserts it
    "mmengine": ("mmengine, by SBNRefConvert", BY_HAND),
}


@pytest.mark.parametrize("trainer", ROWS)
def test_two_ranks_train_as_one_process(trainer, env, tmp_path, record):
    if not find_spec(trainer):
        pytest.skip(f"{trainer} is not installed")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    python(*torchrun, ROOT / "tests" / "trainers" / f"with_{trainer}.py", tmp_path, env=env, timeout=120)
    assert_trained(*(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), alone(batches()))
    name, revert = ROWS[trainer]
    others = {"revert": revert, "state dict": "✓", "compile": "not tried within a trainer"}
    record(**{"with": name, "convert": "✓", "train, ragged": "✓", "train, a rank empty": "✓"}, **others)


def test_both_of_lightnings_packages_take_the_plugin(env):
    if not (find_spec("lightning") and find_spec("pytorch_lightning")):
        pytest.skip("lightning is not installed")
    script = """
import pytorch_lightning  # first, and alone
from sbnref.interop.lightning import SBNRefSyncBatchNorm as Plugin
Plugin()
import lightning.pytorch
for package in (lightning.pytorch, pytorch_lightning):
    package.Trainer(accelerator="cpu", plugins=[Plugin()], logger=False, enable_checkpointing=False)
"""
    python("-c", script, env=env)


def test_accelerate_repeats_samples_to_make_ranks_even():
    pytest.importorskip("accelerate")
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    sampler = BatchSampler(range(5), batch_size=2, drop_last=False)
    assert [list(BatchSamplerShard(sampler, 2, rank)) for rank in (0, 1)] == [[[0, 1], [4, 0]], [[2, 3], [1, 2]]]


def test_the_callback_for_ultralytics_with_a_stand_in(monkeypatch):
    """Run the page's code block; the trainer's order of calls comes from its source."""
    (block,) = blocks("docs/howto/trainers.md", "py")
    model, yolo = nn.Sequential(nn.BatchNorm2d(4)), MagicMock()
    monkeypatch.setitem(sys.modules, "ultralytics", SimpleNamespace(YOLO=lambda file: yolo))
    exec(block, {"__name__": "page"})
    (event, callback), _ = yolo.add_callback.call_args
    assert event == "on_pretrain_routine_end"
    yolo.train.assert_called_once()
    callback(SimpleNamespace(model=model))
    assert model[0].stats_mode == "exact"


@pytest.mark.skipif(not (find_spec("mmcv") and find_spec("mmengine")), reason="mmcv is not installed")
def test_mmcv_builds_layers_and_blocks_with_it(tmp_path):
    from mmcv.cnn import build_norm_layer, is_norm
    from mmengine.config import Config
    from mmengine.registry import MODELS

    (tmp_path / "config.py").write_text(blocks("docs/howto/mmengine.md", "python")[0])
    block = MODELS.build(Config.fromfile(tmp_path / "config.py").model)
    assert type(block.bn) is sbnref.SyncBatchNorm
    block(torch.randn(2, 3, 8, 8)).sum().backward()
    assert block.bn.num_batches_tracked == 1
    assert block.conv.weight.grad is not None
    assert type(sbnref.revert_sync_batchnorm(block).bn) is sbnref.interop.convert.BatchNorm

    cfg = {"type": "SBNRef", "stats_mode": "N", "impl": "cuda", "momentum": 0.03, "requires_grad": False}
    name, layer = build_norm_layer(cfg, 8, postfix=1)
    assert name == "bn1"
    assert is_norm(layer)
    assert (layer.stats_mode, layer.impl, layer.momentum) == ("N", "cuda", 0.03)
    assert not layer.weight.requires_grad
