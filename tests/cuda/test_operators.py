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


@pytest.mark.parametrize("kind", checks.INPUTS)
def test_opcheck(simulation, kind):
    simulation(on_operators, checks.check_operators, kind)


@pytest.mark.parametrize("kind", checks.INPUTS)
def test_shapes_and_strides_without_data(simulation, kind):
    simulation(on_operators, checks.check_strides, kind)


def test_what_is_refused(simulation):
    simulation(on_operators, checks.check_refusals)


def test_tensors_that_start_between_elements(simulation):
    simulation(on_operators, checks.check_alignment)
