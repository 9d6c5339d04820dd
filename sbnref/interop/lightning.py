"""The layer in Lightning: ``Trainer(plugins=[SBNRefSyncBatchNorm(stats_mode="exact")])``."""

import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from torch import nn

from .convert import convert_sync_batchnorm, revert_sync_batchnorm

PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # the same code under two names, with classes of its own each


class SBNRefSyncBatchNorm:
    """A ``LayerSync`` plugin: the model's batch norms are synchronized while it is fitted, and plain ones after.

    Args:
        options: of :func:`sbnref.convert_sync_batchnorm`.
    """

    def __init__(self, **options: Any) -> None:
        convert_sync_batchnorm(nn.Identity(), **options)  # refuses what is wrong with them
        self.options = options
        # Importing a package takes seconds: only those that are used, where that can be seen.
        for package in [name for name in PACKAGES if name in sys.modules] or PACKAGES:
            with suppress(ImportError):
                import_module(f"{package}.plugins.layer_sync").LayerSync.register(SBNRefSyncBatchNorm)

    def apply(self, model: nn.Module) -> nn.Module:
        """Called by the strategy before it wraps the model."""
        return convert_sync_batchnorm(model, **self.options)

    def revert(self, model: nn.Module) -> nn.Module:
        """Called by the strategy when fitting is over."""
        return revert_sync_batchnorm(model)
