"""The layer by name in mmengine and mmcv configurations: ``norm_cfg=dict(type="SBNRef", stats_mode="N")``.

Importing this module registers it with mmengine's models, which have to be installed. A configuration file does that by
itself with ``custom_imports = dict(imports=["sbnref.mm"])``.
"""

from mmengine.registry import MODELS

from ..module import SyncBatchNorm

MODELS.register_module("SBNRef", module=SyncBatchNorm)
