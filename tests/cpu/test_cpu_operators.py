"""The native kernels as PyTorch operators."""

import operator_checks as checks
import pytest
import torch

from sbnref.autograd import _parameter_gradients
from sbnref.impls import reference


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


@pytest.mark.parametrize("gamma", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [torch.bfloat16, torch.float32])
def test_parameter_gradients_are_those_of_any_implementation(gamma, beta):
    total = torch.randn(14, dtype=torch.float64)
    operator = torch.ops.sbnref_cpu.parameter_gradients
    torch.library.opcheck(operator.default, (total, 3, gamma, beta))
    parameters = torch.empty(7, dtype=gamma), torch.empty(7, dtype=beta)
    expected = _parameter_gradients(reference, total, 3, *parameters)
    torch.testing.assert_close(operator(total, 3, gamma, beta), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"expected total with \d+ contiguous float64 numbers"):
        operator(total.float(), 3, gamma, beta)
