"""The native kernels as PyTorch operators."""

import operator_checks as checks
import pytest
import torch


@pytest.mark.parametrize("kind", checks.INPUTS)
def test_opcheck(kind):
    checks.check_operators(torch.ops.sbnref_cpu, kind)


@pytest.mark.parametrize("kind", checks.INPUTS)
def test_shapes_and_strides_without_data(kind):
    checks.check_strides(torch.ops.sbnref_cpu, kind)


def test_what_is_refused():
    checks.check_refusals(torch.ops.sbnref_cpu)


def test_tensors_that_start_between_elements():
    checks.check_alignment(torch.ops.sbnref_cpu)
