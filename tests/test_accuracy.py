"""How far from float64: the layer, and ``F.batch_norm`` over the concatenated batch, on inputs that break batch norms.

That the layer stays within what rounding allows is asserted by the conformance suite; here both are shown, in the
summary after the tests, and the difference is asserted where it is the point.
"""

import pytest
import torch

from sbnref.conformance.accuracy import INPUTS, measure_accuracy
from sbnref.modes import combine

OFF = {"mean 1e3, std 1e-2": 1e-3, "mean 1e4, std 1e-2": 1e-2}  # F.batch_norm's outputs, at least


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
    """Two ranks of equal weight with equal means: the variance between them is (difference / 2)^2."""

    def var(means):
        sums = means.sum(), means.new_tensor(0), means.square().sum(), means.new_tensor(2), means.new_tensor(2)
        return combine(torch.stack(sums), None).var.squeeze()

    means = torch.tensor([1e3, 1e3], dtype=torch.float64)
    assert var(means) == 0
    hessian = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.functional.hessian(var, means), hessian)
