"""Other libraries' models, trainers and data loaders."""

from .convert import conversions, convert_sync_batchnorm, register_conversion, revert_sync_batchnorm
from .uneven import until_all_done

__all__ = ["conversions", "convert_sync_batchnorm", "register_conversion", "revert_sync_batchnorm", "until_all_done"]
