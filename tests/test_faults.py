"""What becomes of ranks that fail, however they were started: an error in time that names them, and nothing left.

Of the implementations the reference; all of them with ``--every-impl``. ``--record FILE`` keeps what happened.
"""

import pytest
import torch
from soak.program import FAULTS, Fault, Norm, Program
from soak.run import fail, fail_under_torchrun

pytestmark = pytest.mark.slow


def program(impl: str, fault: Fault) -> Program:
    """Two steps of two layers. Rank 1 brings no data to the second, in which it fails."""
    norms = (Norm(3, "default", True, 0.1, True, "once"), Norm(2, "exact", True, 0.1, True, "once"))
    options = ("contiguous", "normal", "no", False)
    return Program(2, norms, ((4, 2), (3, 0)), (7, 7), 0, impl, torch.float32, False, *options, fault, 0)


@pytest.mark.parametrize("launcher", ["sbnref.launch", "torchrun"])
@pytest.mark.parametrize("what", FAULTS)
def test_an_error_in_time_and_nothing_left(launcher, what, some_impl, record):
    fault = Fault(what, 1, 1, "backward")
    run = fail if launcher == "sbnref.launch" else fail_under_torchrun
    told, seconds = run(program(some_impl, fault), fault)
    record(launcher=launcher, impl=some_impl, fault=f"a rank {what}", told=told, seconds=round(seconds, 2))
