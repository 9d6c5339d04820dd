"""The layer by name in mmengine's registry and in mmcv's configurations; the packages are the real ones."""

import pytest
import torch
from torch import nn

import sbnref

pytestmark = pytest.mark.slow

mmengine = pytest.importorskip("mmengine")
pytest.importorskip("mmcv")


def test_a_norm_cfg_builds_the_layer():
    from mmengine.registry import MODELS

    import sbnref.interop.mmengine

    layer = MODELS.build({"type": "SBNRef", "num_features": 4, "stats_mode": "N", "impl": "cuda"})
    assert type(layer) is sbnref.SyncBatchNorm
    assert (layer.stats_mode, layer.impl) == ("N", "cuda")


def test_mmcv_builds_blocks_with_it():
    from mmcv.cnn import ConvModule, build_norm_layer, is_norm

    import sbnref.interop.mmengine

    cfg = {"type": "SBNRef", "stats_mode": "N", "momentum": 0.03, "requires_grad": False}
    name, layer = build_norm_layer(cfg, 8, postfix=1)
    assert name == "bn1"
    assert is_norm(layer)
    assert layer.momentum == 0.03
    assert not layer.weight.requires_grad

    block = ConvModule(3, 8, 3, norm_cfg={"type": "SBNRef", "stats_mode": "exact"})
    assert type(block.bn) is sbnref.SyncBatchNorm
    block(torch.randn(2, 3, 8, 8)).sum().backward()
    assert block.bn.num_batches_tracked == 1
    assert block.conv.weight.grad is not None
    assert type(sbnref.revert_sync_batchnorm(block).bn) is sbnref.interop.convert.BatchNorm


def test_a_configuration_file_imports_it(tmp_path):
    from mmengine.config import Config
    from mmengine.registry import MODELS

    file = tmp_path / "config.py"
    file.write_text(
        'custom_imports = dict(imports=["sbnref.interop.mmengine"])\n'
        'model = dict(type="ConvModule", in_channels=3, out_channels=4, kernel_size=1, norm_cfg=dict(type="SBNRef"))\n'
    )
    import mmcv.cnn

    assert mmcv.cnn.ConvModule
    model = MODELS.build(Config.fromfile(file).model)
    assert isinstance(model, nn.Module)
    assert type(model.bn) is sbnref.SyncBatchNorm
