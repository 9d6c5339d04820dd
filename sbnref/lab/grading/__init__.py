"""Grade four stage functions or CUDA kernels, and find the smallest input on which they fail."""

import importlib.util
import secrets
from collections.abc import Sequence


def plan(kind: str, chosen: Sequence[str], known: Sequence[str], seed: int | None) -> tuple[list[str], int]:
    """Return the chosen names, in the order of ``known``, and the seed of the inputs, random if None.

    Raises:
        ValueError: ``chosen`` is empty or has an unknown name.
        RuntimeError: hypothesis, which shrinks failures, is not installed.
    """
    if importlib.util.find_spec("hypothesis") is None:
        raise RuntimeError("sbnref lab check needs hypothesis, which is not installed: pip install hypothesis")
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"expected {kind} among {known}, got {unknown or 'none'}")
    return [name for name in known if name in chosen], secrets.randbelow(2**20) if seed is None else seed
