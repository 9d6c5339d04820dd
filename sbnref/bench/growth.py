r"""A model of how the collectives' cost grows with the world, fitted to what was measured.

The usual model of latency and bandwidth: a message of b bytes takes :math:`\alpha + \beta b` seconds
(Thakur, Rabenseifner and Gropp, 2005). For G ranks and b bytes of each rank's contribution, a ring takes

.. math::
    T_{\text{all-gather}} = (G - 1) (\alpha + \beta b), \qquad
    T_{\text{all-reduce}} = 2 (G - 1) (\alpha + \beta b / G).

Alpha and beta are fitted for each collective by least squares on relative errors. Assumed are rings, equal links, and a
core for each rank; where ranks share cores, alpha contains the waiting for a core and is an upper bound.
"""

from __future__ import annotations

from typing import Any

import torch

WORLDS = tuple(2**k for k in range(1, 13))


def steps(collective: str, world_size: int, size: float) -> tuple[float, float]:
    """How many messages, and how many bytes one after another: the factors of alpha and of beta."""
    if collective == "all-gather":
        return world_size - 1, (world_size - 1) * size
    return 2 * (world_size - 1), 2 * (world_size - 1) * size / world_size


def predict(model: dict[str, float], collective: str, world_size: int, size: float) -> float:
    """Seconds of a collective of ``size`` bytes."""
    messages, amount = steps(collective, world_size, size)
    return model["alpha"] * messages + model["beta"] * amount


def fit(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each collective alpha, beta, and the relative error on the measured points."""
    models = {}
    for collective in dict.fromkeys(row["layer"] for row in rows):
        points = [row for row in rows if row["layer"] == collective]
        seconds = torch.tensor([row["median"] for row in points], dtype=torch.float64)
        factors = torch.tensor(
            [steps(collective, row["world_size"], row["bytes"]) for row in points], dtype=torch.float64
        )
        solution = torch.linalg.lstsq(factors / seconds[:, None], torch.ones_like(seconds)[:, None]).solution[:, 0]
        alpha, beta = solution.clamp(min=0).tolist()
        off = (factors @ torch.tensor([alpha, beta], dtype=torch.float64)) / seconds - 1
        models[collective] = {
            "alpha": alpha,
            "beta": beta,
            "median_error": off.abs().median().item(),
            "largest_error": off.abs().max().item(),
            "measured_up_to": max(row["world_size"] for row in points),
        }
    return models
