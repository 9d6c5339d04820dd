r"""A model of how the collectives' cost grows with the world, fitted to what was measured.

The usual model of latency and bandwidth: a message of b bytes takes :math:`\alpha + \beta b` seconds
(Thakur, Rabenseifner and Gropp, 2005). For G ranks and b bytes of each rank's contribution, a ring takes

.. math::
    T_{\text{all-gather}} = (G - 1) (\alpha + \beta b), \qquad
    T_{\text{all-reduce}} = 2 (G - 1) (\alpha + \beta b / G).

Where P cores have to serve more than P ranks, each step waits for all of them to have had their turn, and takes G / P
times as long. Alpha and beta are fitted for each collective by least squares on relative errors, with that factor.
Predictions beyond what was measured are for a core each, rings, and links as fast as this machine's memory.
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


def predict(
    model: dict[str, float], collective: str, world_size: int, size: float, cores: float = float("inf")
) -> float:
    """Seconds of a collective of ``size`` bytes, where the ranks have so many cores together."""
    messages, amount = steps(collective, world_size, size)
    return (model["alpha"] * messages + model["beta"] * amount) * max(1, world_size / cores)


def fit(rows: list[dict[str, Any]], cores: int) -> dict[str, Any]:
    """For each collective alpha, beta, and the relative error on the measured points."""
    models = {}
    for collective in dict.fromkeys(row["layer"] for row in rows):
        points = [row for row in rows if row["layer"] == collective]
        seconds = torch.tensor([row["median"] for row in points], dtype=torch.float64)
        units = {"alpha": 1.0, "beta": 0.0}, {"alpha": 0.0, "beta": 1.0}
        factors = torch.tensor(
            [[predict(unit, collective, row["world_size"], row["bytes"], cores) for unit in units] for row in points],
            dtype=torch.float64,
        )
        solution = torch.linalg.lstsq(factors / seconds[:, None], torch.ones_like(seconds)[:, None]).solution[:, 0]
        alpha, beta = solution.clamp(min=0).tolist()
        off = (factors @ torch.tensor([alpha, beta], dtype=torch.float64)) / seconds - 1
        models[collective] = {
            "alpha": alpha,
            "beta": beta,
            "cores": cores,
            "median_error": off.abs().median().item(),
            "largest_error": off.abs().max().item(),
            "measured_up_to": max(row["world_size"] for row in points),
        }
    return models
