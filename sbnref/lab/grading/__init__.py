"""Grade four stage functions or CUDA kernels, and find the smallest input on which they fail."""

import importlib.util


def require_hypothesis() -> None:
    """Raise a RuntimeError if hypothesis, which shrinks failures, is not installed."""
    if importlib.util.find_spec("hypothesis") is None:
        raise RuntimeError(
            "sbnref lab check needs hypothesis, which searches for the smallest failure: pip install 'sbnref[check]'"
        )
