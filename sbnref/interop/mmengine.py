"""The layer by name in mmengine and mmcv configurations, and a hook that converts a runner's model to it.

``norm_cfg=dict(type="SBNRef", stats_mode="N")`` builds the layer, and ``custom_hooks=[dict(type="SBNRefConvert",
stats_mode="N")]`` puts it in the place of a model's batch norms.

Importing this module registers both with mmengine, which has to be installed. A configuration file does that by
itself with ``custom_imports = dict(imports=["sbnref.interop.mmengine"])``.
"""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from torch import nn

from ..module import SyncBatchNorm
from .convert import convert_sync_batchnorm

MODELS.register_module("SBNRef", module=SyncBatchNorm)


@HOOKS.register_module("SBNRefConvert")
class ConvertHook(Hook):
    """Convert the runner's model. DistributedDataParallel may already wrap it, because parameters stay the same.

    Args:
        options: options of :func:`sbnref.convert_sync_batchnorm`.
    """

    priority = "VERY_HIGH"  # before hooks that copy the model, such as the one for moving averages

    def __init__(self, **options: Any) -> None:
        convert_sync_batchnorm(nn.Identity(), **options)  # validates the options
        self.options = options

    def before_run(self, runner: Any) -> None:
        convert_sync_batchnorm(runner.model, **self.options)
