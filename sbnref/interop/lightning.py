"""The layer in Lightning: ``Trainer(plugins=[SBNRefSyncBatchNorm(stats_mode="exact")])``."""

import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from torch import nn

from .convert import convert_sync_batchnorm, revert_sync_batchnorm

PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # the same code under two names, with separate classes


class SBNRefSyncBatchNorm:
    """A ``LayerSync`` plugin: it synchronizes the model's batch norms during fitting, and reverts them after.

    Args:
        options: options of :func:`sbnref.convert_sync_batchnorm`.
    """

    def __init__(self, **options: Any) -> None:
        convert_sync_batchnorm(nn.Identity(), **options)  # validates the options
        self.options = options
        # Importing a package takes seconds: if one is imported already, register with that one only.
        for package in [name for name in PACKAGES if name in sys.modules] or PACKAGES:
            with suppress(ImportError):
                import_module(f"{package}.plugins.layer_sync").LayerSync.register(SBNRefSyncBatchNorm)

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert the model. The strategy calls it before it wraps the model."""
        return convert_sync_batchnorm(model, **self.options)

    def revert(self, model: nn.Module) -> nn.Module:
        """Revert the model. The strategy calls it after fitting."""
        return revert_sync_batchnorm(model)
