"""Errors of the layer, and of ``F.batch_norm`` on the concatenated batch, for inputs that break batch norms.

The conformance suite asserts that the layer's errors are within rounding.
"""

import pytest
import torch

from sbnref.conformance.accuracy import measure_accuracy
from sbnref.modes import combine

OFF = {"mean 1e3, std 1e-2": 1e-3, "mean 1e4, std 1e-2": 1e-2}  # least error of F.batch_norm's outputs


@pytest.mark.parametrize("name", OFF)
def test_accuracy(world, name):
    errors = world(2).run(measure_accuracy, name, "reference", "cpu")[0]["y"]
    assert errors["F.batch_norm"] > OFF[name] > 10 * errors["layer"]


def test_a_variance_that_counts_as_zero_keeps_its_derivatives():
    """For two ranks of equal weight, the variance between them is (difference / 2)^2; here the means are equal."""

    def var(means):
        sums = means.sum(), means.new_tensor(0), means.square().sum(), means.new_tensor(2), means.new_tensor(2)
        return combine(torch.stack(sums), None).var.squeeze()

    means = torch.tensor([1e3, 1e3], dtype=torch.float64)
    assert var(means) == 0
    hessian = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.functional.hessian(var, means), hessian)
