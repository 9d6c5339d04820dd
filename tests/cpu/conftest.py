"""The native kernels, loaded."""

import pytest
import torch

import sbnref
from sbnref.impls import cpu, impl_names


@pytest.fixture(scope="session", autouse=True)
def library() -> None:
    assert cpu.why_not(torch.device("cpu")) is None  # builds it, before the ranks' time runs
    if "cpu" not in impl_names():
        sbnref.register_impl("cpu", cpu)
