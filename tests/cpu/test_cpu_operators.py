"""The native kernels as PyTorch operators."""

import operator_checks as checks
import pytest
import torch


@pytest.mark.parametrize("check", [checks.check_operators, checks.check_strides])
@pytest.mark.parametrize("kind", checks.INPUTS)
def test_every_input(check, kind):
    check(torch.ops.sbnref_cpu, kind)


@pytest.mark.parametrize("check", [checks.check_refusals, checks.check_alignment])
def test_validation_and_alignment(check):
    check(torch.ops.sbnref_cpu)
