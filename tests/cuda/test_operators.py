"""The kernels as PyTorch operators."""

from collections.abc import Callable

import operator_checks as checks
import pytest
import torch

from sbnref.impls import cuda

pytestmark = pytest.mark.slow


def on_operators(check: Callable, *args: object) -> None:
    assert cuda.why_not(torch.get_default_device()) is None
    check(torch.ops.sbnref, *args)


@pytest.mark.parametrize("check", [checks.check_operators, checks.check_strides])
@pytest.mark.parametrize("kind", checks.INPUTS)
def test_every_input(simulation, check, kind):
    simulation(on_operators, check, kind)


@pytest.mark.parametrize("check", [checks.check_refusals, checks.check_alignment])
def test_validation_and_alignment(simulation, check):
    simulation(on_operators, check)
