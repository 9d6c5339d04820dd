"""The kernels beside their twins in plain PyTorch, stage by stage, in every layout and in every order of turns.

Here they are simulated. benchmarks/gpu_check.py runs the same checks with a GPU as the default device.
"""

import itertools

import pytest
import stage_checks as checks
import torch

from sbnref.impls import cuda

pytestmark = pytest.mark.slow

ORDERS = ["ascending", "descending", "random:1", "random:2"]


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_stages(simulation, dtype):
    simulation(checks.check_stages, cuda, dtype)


def test_x_and_dy_in_different_layouts(simulation):
    simulation(checks.check_different_layouts, cuda)


def test_parameters_of_any_dtype_and_running_statistics_bit_for_bit(simulation):
    simulation(checks.check_parameter_dtypes, cuda)


def check_orders() -> None:
    library = cuda.library()
    try:
        for shape, layout, dtype in itertools.product(
            checks.SHAPES, checks.LAYOUTS[:3], (torch.float16, torch.float64)
        ):
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


def test_results_do_not_depend_on_the_order_of_turns(simulation):
    simulation(check_orders)


def test_nan_and_infinity_spoil_their_channel_only(simulation):
    simulation(checks.check_not_finite, "cuda")


def test_65536_channels(simulation):
    simulation(checks.check_many_channels, cuda)


def test_offsets_and_outliers_cost_nothing(simulation):
    simulation(checks.check_precision, cuda)


def test_gradients_are_those_of_autograd(simulation):
    simulation(checks.check_gradients, "cuda")
