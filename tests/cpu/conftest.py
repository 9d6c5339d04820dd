"""Load the native kernels before the tests."""

import pytest
import torch

from sbnref.impls import cpu


@pytest.fixture(scope="session", autouse=True)
def library() -> None:
    assert cpu.why_not(torch.device("cpu")) is None  # builds the kernels before the ranks' timeout starts
