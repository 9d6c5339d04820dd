"""The simulated kernels: compared with plain PyTorch, in every order of threads, as operators, and by conformance.

benchmarks/gpu_check.py runs these checks with a GPU as the default device.
"""

import itertools
from collections.abc import Callable

import operator_checks
import pytest
import stage_checks as checks
import torch

from sbnref.conformance import cases
from sbnref.impls import cuda

pytestmark = pytest.mark.slow

ORDERS = ["ascending", "descending", "random:1", "random:2"]


@pytest.mark.parametrize(("check", "arguments"), checks.checks_of(cuda, "cuda"))
def test_stages(simulation, check, arguments):
    simulation(check, *arguments)


@pytest.mark.ranks(1, "simulated")
def test_results_do_not_depend_on_the_order_of_turns():
    library = cuda.simulation()
    try:
        dtypes = torch.float16, torch.float64
        for shape, layout, dtype in itertools.product(checks.SHAPES, checks.LAYOUTS[:3], dtypes):
            x, dy = layout(checks.tensor(shape, dtype)), layout(checks.tensor(shape, dtype, 1))
            results = []
            for order in ORDERS:
                library.set_order(order)
                results.append(checks.run(cuda, x, dy, torch.float32, None))
            for order, result in zip(ORDERS[1:], results[1:], strict=True):
                for name, value in results[0].items():
                    assert torch.equal(result[name], value), f"{name} of {shape}, {layout.__name__}, {order}"
    finally:
        library.set_order("ascending")


def on_operators(check: Callable, *args: object) -> None:
    assert cuda.why_not(torch.get_default_device()) is None
    check(torch.ops.sbnref, *args)


@pytest.mark.parametrize("check", [operator_checks.check_operators, operator_checks.check_strides])
@pytest.mark.parametrize("kind", operator_checks.INPUTS)
def test_operators(simulation, check, kind):
    simulation(on_operators, check, kind)


@pytest.mark.parametrize("check", [operator_checks.check_refusals, operator_checks.check_alignment])
def test_validation_and_alignment(simulation, check):
    simulation(on_operators, check)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_conformance(simulated, case):
    simulated(case.world_size).run(case.check, "cuda", "cpu")
