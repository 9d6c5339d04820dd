"""Find what is wrong with the batch norms of a model, and in which layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..layers import batch_norms
from ..recording import Recorder, Recording, share
from .report import Diagnosis
from .rules import Suspect, suspects

__all__ = ["Diagnosis", "Suspect", "diagnose"]


@contextmanager
def diagnose(model: nn.Module, *, every: int = 1, timeout: float = 300) -> Iterator[Diagnosis]:
    """Watch every batch norm of a model during training and evaluation steps, then rank what is suspicious.

    The layers may be torch's, mmcv's, timm's, this package's, or any module with ``running_mean``, ``running_var``,
    ``eps`` and ``momentum``. A step is a call of ``model`` with the model in training mode, or one after which an
    optimizer changed the parameters; all other calls are evaluation steps. Run 30 training steps or more, and a few
    evaluation steps if evaluation is what fails.

    The ranks exchange nothing until the block ends, and the outputs of the model do not change. At the end each rank
    has the same diagnosis. A failure inside ``diagnose`` becomes a line of the diagnosis, never an exception.

    Args:
        model: a model, possibly in ``DistributedDataParallel``. ``diagnose`` does not see layers inside compiled code:
            pass the model before you compile it, and do not call the compiled one.
        every: record the first step and every ``every``-th after it. A recorded step reads each layer's input once more
            and keeps 4C numbers of float64 per layer. Above 128 recorded steps, older ones are dropped.
        timeout: seconds to wait for the other ranks when the block ends. After that, missing ranks are left out.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: the model has no batch norm, or ``every`` is not an integer of at least 1.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, momentum=0.0))
        >>> with sbnref.diagnose(model) as d:
        ...     for _ in range(30):
        ...         y = model(torch.randn(64, 4) + 2)
        >>> d.suspects[0].rule, d.suspects[0].layers
        ('slow momentum', ('1',))
    """
    diagnosis, left = Diagnosis(), None
    recorder = Recorder(model, batch_norms(model), every)
    try:
        with recorder:
            yield diagnosis
    except BaseException as error:
        left = error
        raise
    finally:
        vars(diagnosis).update(vars(share(recorder.finish(left), _diagnose, timeout)))


def _diagnose(recordings: dict[int, Recording]) -> Diagnosis:
    try:
        return Diagnosis(recordings, *suspects(recordings))
    except Exception as error:  # a fault in here must not end the training
        return Diagnosis(recordings, [], [f"combining the records failed with {type(error).__name__}: {error}"])
