"""Errors of the layer, and of ``F.batch_norm`` on the concatenated batch, for inputs that break batch norms.

The conformance suite asserts that the layer's errors are within rounding. These tests print both errors in the summary
after the tests, and assert a difference on the inputs in OFF.
"""

import pytest
import torch

from sbnref.conformance.accuracy import INPUTS, measure_accuracy
from sbnref.modes import combine

OFF = {"mean 1e3, std 1e-2": 1e-3, "mean 1e4, std 1e-2": 1e-2}  # least error of F.batch_norm's outputs


@pytest.mark.parametrize("name", INPUTS)
def test_accuracy(world, name, summary):
    figures = world(2).run(measure_accuracy, name, "reference", "cpu")[0]
    for quantity, f in figures.items():
        summary.append(
            f"{name:>24} {quantity:>7}  sbnref {f['layer']:.0e}  F.batch_norm {f['F.batch_norm']:.0e}"
            f"  allowed {f['allowed']:.0e}"
        )
    if name in OFF:
        assert figures["y"]["F.batch_norm"] > OFF[name] > 10 * figures["y"]["layer"]


def test_a_variance_that_counts_as_zero_keeps_its_derivatives():
    """For two ranks of equal weight, the variance between them is (difference / 2)^2; here the means are equal."""

    def var(means):
        sums = means.sum(), means.new_tensor(0), means.square().sum(), means.new_tensor(2), means.new_tensor(2)
        return combine(torch.stack(sums), None).var.squeeze()

    means = torch.tensor([1e3, 1e3], dtype=torch.float64)
    assert var(means) == 0
    hessian = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.functional.hessian(var, means), hessian)
