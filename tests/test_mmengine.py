"""The layer by name in mmengine's registry and in mmcv's configurations; the packages are the real ones."""

import pytest
import torch

import sbnref

pytestmark = pytest.mark.slow

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")


def test_mmcv_builds_blocks_with_it():
    from mmcv.cnn import ConvModule, build_norm_layer, is_norm

    import sbnref.interop.mmengine

    cfg = {"type": "SBNRef", "stats_mode": "N", "impl": "cuda", "momentum": 0.03, "requires_grad": False}
    name, layer = build_norm_layer(cfg, 8, postfix=1)
    assert name == "bn1"
    assert is_norm(layer)
    assert (layer.stats_mode, layer.impl, layer.momentum) == ("N", "cuda", 0.03)
    assert not layer.weight.requires_grad

    block = ConvModule(3, 8, 3, norm_cfg={"type": "SBNRef", "stats_mode": "exact"})
    assert type(block.bn) is sbnref.SyncBatchNorm
    block(torch.randn(2, 3, 8, 8)).sum().backward()
    assert block.bn.num_batches_tracked == 1
    assert block.conv.weight.grad is not None
    assert type(sbnref.revert_sync_batchnorm(block).bn) is sbnref.interop.convert.BatchNorm


def test_a_configuration_file_imports_it(tmp_path):
    import mmcv.cnn  # noqa: F401
    from mmengine.config import Config
    from mmengine.registry import MODELS

    file = tmp_path / "config.py"
    file.write_text(
        'custom_imports = dict(imports=["sbnref.interop.mmengine"])\n'
        'model = dict(type="ConvModule", in_channels=3, out_channels=4, kernel_size=1, norm_cfg=dict(type="SBNRef"))\n'
    )
    assert type(MODELS.build(Config.fromfile(file).model).bn) is sbnref.SyncBatchNorm
