"""Record the inputs of batch norms on each rank, and combine the ranks' records at the end.

Nothing is communicated while the model runs, so no rank waits for another one that skips a layer or stops early. At
the end the ranks exchange their records through the store of the process group, and wait there for a limited time.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..differentiable import recomputing
from ..impls.reference import accumulator
from ..modes import payload_dtype
from .layers import Settings, input_of, settings_of

T = TypeVar("T")
CHUNK = 4 << 20  # bytes in one message to the store: a TCPStore takes 8 MiB at most
MOST_STEPS = 128  # recorded, of training and of evaluation each: 100 MB on a GPU for the 53 layers of a ResNet-50
NEWEST = 16  # of the recorded steps are never dropped


@dataclass
class Row:
    """One call of a layer on one rank.

    Attributes:
        step: the training step or the evaluation step, from 1.
        evaluation: whether the model was evaluated.
        training: whether the layer itself was in training mode.
        batch_size: samples on this rank.
        elements: per channel on this rank.
        stats: (2, C) float64: mean and biased variance of this rank's input; zeros where it is empty.
        running: (2, C) float64: running mean and variance before the call, or None.
        weights: (2,) float64: projections of weight and bias, to compare them between ranks.
    """

    step: int
    evaluation: bool
    training: bool
    batch_size: int
    elements: int
    stats: Tensor
    running: Tensor | None
    weights: Tensor


def _packed(rows: list[Row]) -> tuple[list[Any], list[Tensor | None]]:
    numbers = [(row.step, row.evaluation, row.training, row.batch_size, row.elements) for row in rows]
    columns = zip(*((row.stats, row.running, row.weights) for row in rows), strict=True)
    return numbers, [None if any(t is None for t in column) else torch.stack(column) for column in columns]


def _unpacked(numbers: list[Any], columns: list[Tensor | None]) -> list[Row]:
    tensors = [[None] * len(numbers) if column is None else column.unbind() for column in columns]
    return [Row(*row, *its_tensors) for row, *its_tensors in zip(numbers, *tensors, strict=True)]


@dataclass
class Recording:
    """The records of one rank. The layers are in the order of their first calls; those never called are left out.

    Attributes:
        rank: in the world.
        model: the expression for the module that has the layers: ``model``, or ``model.module``.
        settings: by layer.
        rows: by layer.
        kept: the recorded steps, each as whether it is of evaluation, and its number.
        final: by layer, (2, C) float64: the running statistics at the end, or None.
        parameters: a number for all other parameters, at the start and at the end.
        training_steps: how many there were, recorded or not.
        evaluation_steps: likewise.
        block: the place of the ``with`` statement, and how often it was entered: the same on all ranks.
        left: the exception that ended the block on this rank, in words.
        failures: exceptions of the recorder itself, in words.
    """

    rank: int
    model: str = "model"
    settings: dict[str, Settings] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    kept: set[tuple[bool, int]] = field(default_factory=set)
    final: dict[str, Tensor | None] = field(default_factory=dict)
    parameters: tuple[float, float] = (0.0, 0.0)
    training_steps: int = 0
    evaluation_steps: int = 0
    block: str = ""
    left: str | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def whole_steps(self) -> int:
        """The number of training steps that no exception cut short."""
        return self.training_steps - (self.left is not None)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the tensors of a layer's rows as one tensor each, which takes a fraction of the time."""
        return vars(self) | {"rows": {name: _packed(rows) for name, rows in self.rows.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, rows={name: _unpacked(*packed) for name, packed in state["rows"].items()})


@dataclass
class _Call:
    """A call of the whole model."""

    training: bool
    recorded: bool
    with_gradients: bool
    learned: bool = False  # an optimizer changed the parameters after it


class _Hook:
    """A hook of the recorder. In a copy of the model, pickled or deep, it becomes a hook that does nothing."""

    def __init__(self, call: Callable[[nn.Module, Any, Any], None]) -> None:
        self.call = call

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.call(module, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # accepts any arguments, returns None, and loads without sbnref


class Recorder:
    """A context manager that records the calls of ``layers``. An exception inside it is kept, never raised.

    Memory is bounded: of more than :data:`MOST_STEPS` recorded steps, every second of the older ones is dropped.

    Args:
        model: its calls are the steps. If it is not called itself, a step ends when a layer is called again.
        layers: the layers to record, by name.
        every: record the first step and every ``every``-th after it. In training a step ends when an optimizer changed
            the parameters, so that all calls of a recorded step are recorded; in evaluation every call is a step.
    """

    def __init__(self, model: nn.Module, layers: dict[str, Any], every: int) -> None:
        if isinstance(every, bool) or not isinstance(every, SupportsIndex) or every < 1:
            raise ValueError(f"expected every to be an integer of at least 1, got {every!r}")
        self.block = _block()
        self.model: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.wrapped = self.model is not model  # it is also called from inside
        self.layers, self.every = layers, every
        self.calls: list[_Call] = []
        self.rows: dict[str, list[tuple[int, Row]]] = {}  # with the number of the model's call
        self.settings: dict[str, Settings] = {}
        self.failures: list[str] = []
        self._counts: Counter[bool] = Counter()
        self._updates = 0  # the number of times an optimizer changed the parameters
        self._kept: dict[bool, dict[int, list[int]]] = {True: {}, False: {}}  # recorded calls by mode and step
        self._called: set[str] = set()  # the layers since the model's call began
        self._model_called = False
        self._with_gradients = True
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._versions = sum(p._version for p in self._parameters)
        self._checksum = self._checksum_now()
        self._hooks = ExitStack()

    def __enter__(self) -> Recorder:
        first = _Hook(partial(self._safely, self._enter_model))
        self._hooks.callback(self.model.register_forward_pre_hook(first, with_kwargs=True).remove)
        for name, layer in self.layers.items():
            hook = _Hook(partial(self._safely, partial(self._enter_layer, name)))
            self._hooks.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _safely(self, enter: Callable[..., None], module: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling() or recomputing():
            return
        self._with_gradients = torch.is_grad_enabled()
        try:
            with torch.no_grad():
                enter(module, args, kwargs)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if (words := f"{type(error).__name__}: {error}") not in self.failures:
            self.failures.append(words)

    def _enter_model(self, *_: object) -> None:
        self._model_called = True
        self._begin()

    def _begin(self) -> None:
        self._called.clear()
        self._mark_learned()
        training = self.model.training
        step = self._updates if training and self._updates else self._counts[training]
        self._counts[training] += 1
        recorded = step % self.every == 0
        self.calls.append(_Call(training, recorded, self._with_gradients))
        if recorded:
            self._kept[training].setdefault(step, []).append(len(self.calls) - 1)
            self._thin_out(self._kept[training])

    def _thin_out(self, kept: dict[int, list[int]]) -> None:
        if sum(map(len, kept.values())) <= MOST_STEPS or len(kept) <= NEWEST + 1:
            return
        dropped = {call for step in list(kept)[1:-NEWEST:2] for call in kept.pop(step)}
        for name, rows in self.rows.items():
            self.rows[name] = [(call, row) for call, row in rows if call not in dropped]

    def _mark_learned(self) -> None:
        versions = sum(p._version for p in self._parameters)
        if self.calls and self.calls[-1].with_gradients and versions != self._versions:
            self.calls[-1].learned = True
            self._updates += 1
        self._versions = versions

    def _enter_layer(self, name: str, layer: Any, args: Any, kwargs: Any) -> None:
        if not self.calls or (not self._model_called and name in self._called):
            self._begin()
        self._called.add(name)
        if not self.calls[-1].recorded:
            return
        x = input_of(args, kwargs).detach()
        running = _running(layer, payload_dtype(x.device))
        if x.dim() < 2 or (running is not None and running.shape[1] != x.shape[1]):
            channels = "C" if running is None else running.shape[1]
            raise ValueError(f"layer {name} got an input of shape {tuple(x.shape)}, expected (N, {channels}, *)")
        if name not in self.settings:
            self.settings[name], self.rows[name] = settings_of(layer), []
        elements = x.numel() // x.shape[1]
        weights = _weights(layer, payload_dtype(x.device))
        row = Row(0, False, layer.training, x.shape[0], elements, _statistics(x), running, weights)
        self.rows[name].append((len(self.calls) - 1, row))

    def finish(self, left: BaseException | None) -> Recording:
        """Return this rank's records, on the CPU. ``left`` is the exception that ended the block."""
        mine = Recording(dist.get_rank() if _in_a_world() else 0, failures=self.failures)
        mine.model = "model.module" if self.wrapped else "model"
        mine.block = self.block
        mine.left = None if left is None else f"{type(left).__name__}: {left}"[:200]
        try:
            self._mark_learned()
            trains = [call.training or call.learned for call in self.calls]
            counts: Counter[bool] = Counter()
            numbers = []
            for train in trains:
                counts[train] += 1
                numbers.append(counts[train])
            mine.training_steps, mine.evaluation_steps = counts[True], counts[False]
            kept = [call for steps in self._kept.values() for calls in steps.values() for call in calls]
            mine.kept = {(not trains[call], numbers[call]) for call in kept}
            mine.parameters = self._checksum, self._checksum_now()
            for name, rows in self.rows.items():
                for call, row in rows:
                    row.step, row.evaluation = numbers[call], not trains[call]
                    row.stats, row.weights = row.stats.cpu().double(), row.weights.cpu().double()
                    row.running = None if row.running is None else row.running.cpu().double()
                mine.rows[name] = [row for _, row in rows]
                running = _running(self.layers[name], torch.float64)
                mine.final[name] = None if running is None else running.cpu()
            mine.settings = {name: settings_of(self.layers[name]) for name in self.settings}  # the latest ones
        except Exception as error:
            self._failed(error)
        return mine

    def _checksum_now(self) -> float:
        """Return a checksum of all parameters outside the layers, equal on two ranks if the parameters are."""
        own = {id(p) for layer in self.layers.values() for p in layer.parameters(recurse=False)}
        others = [p.detach() for p in self._parameters if id(p) not in own and type(p) is nn.Parameter]
        return sum(float(p.double().abs().sum() + p.double().sum()) for p in others if not p.is_meta)


def _statistics(x: Tensor) -> Tensor:  # (N, C, *) -> (2, C)
    if x.numel() == 0:
        return torch.zeros(2, x.shape[1], dtype=payload_dtype(x.device), device=x.device)
    others = [d for d in range(x.dim()) if d != 1]
    var, mean = torch.var_mean(x.to(accumulator(x)), others, correction=0)
    return torch.stack([mean, var]).to(payload_dtype(x.device))


def _running(layer: Any, dtype: torch.dtype) -> Tensor | None:  # (2, C)
    if layer.running_mean is None or layer.running_var is None:
        return None
    return torch.stack([layer.running_mean, layer.running_var]).detach().to(dtype, copy=True)


def _weights(layer: Any, dtype: torch.dtype) -> Tensor:  # (2,)
    """Return a checksum of the weight and one of the bias."""
    numbers = []
    for name in ("weight", "bias"):
        p: Any = getattr(layer, name, None)
        if type(p) not in (Tensor, nn.Parameter):  # missing or sharded
            p = layer.running_mean.new_zeros(1) if layer.running_mean is not None else torch.zeros(1)
        p = p.detach().to(dtype)
        numbers.append((p * torch.arange(1, len(p) + 1, dtype=dtype, device=p.device).cos()).sum())
    return torch.stack(numbers)


# ---- exchange of the records ----

_entered: Counter[str] = Counter()  # how often a ``with`` statement was entered, by its place


def _block() -> str:
    """Return the place of the ``with`` statement that is being entered, and how often it was."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("sbnref.debugging.", "contextlib")):
        frame = frame.f_back
    place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    _entered[place] += 1
    return f"{place}/{_entered[place]}"


def _in_a_world() -> bool:
    return dist.is_available() and dist.is_initialized()


def share(mine: Recording, summarize: Callable[[dict[int, Recording]], T], timeout: float) -> T:
    """Return ``summarize(recordings)``, by rank, the same on every rank if all ranks sent their records.

    Rank 0 summarizes for all. A rank that an exception ended stores its records and does not wait. If a rank is missing
    after ``timeout`` seconds, or an exception ended it, each rank summarizes the records that it has. Records
    of another ``with`` statement, which only some ranks entered, are left out.
    """
    if not _in_a_world() or dist.get_world_size() == 1:
        return summarize({mine.rank: mine})
    try:
        store = dist.PrefixStore(f"sbnref/{mine.block}", dist.distributed_c10d._get_default_store())
        if mine.left is not None:
            store.set("incomplete", "")  # first, so that a rank that sees the records sees this
        _put(store, str(mine.rank), mine)
        if mine.left is not None:
            return summarize({mine.rank: mine})
        deadline = time.monotonic() + timeout
        came = [rank for rank in range(dist.get_world_size()) if _comes(store, str(rank), deadline)]
        if len(came) < dist.get_world_size():
            store.set("incomplete", "")
        complete = not store.check(["incomplete"])
        if complete and mine.rank != 0:
            come = _comes(store, "summary", deadline + timeout)
            return _take(store, "summary") if come else summarize({mine.rank: mine})
        summary = summarize({rank: mine if rank == mine.rank else _take(store, str(rank)) for rank in came})
        if mine.rank == 0:  # even if incomplete: a rank that saw all records waits for it
            _put(store, "summary", summary)
        return summary
    except Exception as error:  # the store ended with the rank that held it
        mine.failures.append(f"{type(error).__name__}: {error}"[:200])
        return summarize({mine.rank: mine})


def _put(store: dist.Store, key: str, value: Any) -> None:
    data = pickle.dumps(value)
    pieces = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    for number, piece in enumerate(pieces):
        store.set(f"{key}/{number}", piece)  # type: ignore[arg-type]
    store.set(key, str(len(pieces)))


def _take(store: dist.Store, key: str) -> Any:
    return pickle.loads(b"".join(store.get(f"{key}/{number}") for number in range(int(store.get(key)))))


def _comes(store: dist.Store, key: str, deadline: float) -> bool:
    """Wait for the key, and return whether it came before the deadline. Unlike ``store.wait``, an interrupt ends it."""
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
