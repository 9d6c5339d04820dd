"""Two implementations on the same input and the same upstream gradient: where do they part?

The model runs once. What reaches each layer, forward and backward, is kept, and then each stage of each implementation
is given the same: the layer's input, the exact totals, the upstream gradient. So a stage that is wrong is found where
it stands, and not where its error first grew large.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from .collectives import all_reduce, resolve, world_size
from .conformance.functions import import_target, load_functions
from .conformance.stages import Bounded, Exact, Share, channel_of, difference, run_stage, times_allowed
from .functional import DTYPES, check_stats_mode
from .impls import Implementation, choose_impl, impl_names, register_impl, use_impl
from .launch import launch
from .layers import input_of, synchronized_layers
from .modes import RunningStats, payload_dtype
from .module import SyncBatchNorm
from .report import Report, jsonable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Row:
    """One quantity of one stage of one layer on one rank, from both implementations.

    Attributes:
        layer: its name in the model.
        stage: the stage function, ``'all-reduce'``, or ``'parameters'`` for what follows from the backward total.
        quantity: what the stage gives: payload, total, y, running_mean, dx and so on.
        rank: the rank in the default process group.
        unit: the dtype whose units in the last place ``ulp`` counts.
        absolute: the largest difference.
        relative: the largest difference over the largest magnitude in its channel.
        ulp: the same in units in the last place.
        allowed: the difference that rounding explains, at the worst place.
        share: the difference over what is allowed, at the worst place; above 1 the two have parted.
        channel: of the worst place, None where the quantity has no channels.
        index: of the worst place.
        values: what each implementation gave there.
        exact: what float64 gives there.
        wrong: the implementations that are further from float64 than rounding explains, or broke the contract.
        problems: what an implementation did besides: raised, returned something else, gave two results in two runs.
    """

    layer: str
    stage: str
    quantity: str
    rank: int
    unit: str
    absolute: float
    relative: float
    ulp: float
    allowed: float
    share: float
    channel: int | None
    index: tuple[int, ...]
    values: dict[str, float]
    exact: float
    wrong: tuple[str, ...]
    problems: dict[str, str]

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference, and nothing else went wrong."""
        return self.share <= 1 and not self.problems


class Comparison(Report):
    """What :func:`compare` found. Printing it, or leaving it last in a notebook cell, shows a table.

    Attributes:
        impls: the names of the two implementations.
        rows: a :class:`Row` for each rank, layer, stage and quantity; layers in the order in which they were called.
    """

    def __init__(self, impls: tuple[str, str], rows: list[Row]) -> None:
        self.impls = impls
        self.rows = rows

    @property
    def agrees(self) -> bool:
        """Whether rounding explains every difference."""
        return all(row.agrees for row in self.rows)

    @property
    def empty(self) -> bool:
        """Whether no layer's input had an element on any rank, so that there was next to nothing to compare."""
        return not any(row.index for row in self.rows if row.quantity == "dx")

    @property
    def first_divergence(self) -> Row | None:
        """The worst rank's row of the first stage that diverges, None where all agree."""
        diverging = [row for row in self._worst_ranks() if not row.agrees]
        return diverging[0] if diverging else None

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has; what is not finite becomes None."""
        first = self.first_divergence
        return jsonable(
            {
                "impls": list(self.impls),
                "agrees": self.agrees,
                "empty": self.empty,
                "first_divergence": None if first is None else asdict(first),
                "rows": [{**asdict(row), "agrees": row.agrees} for row in self.rows],
            }
        )

    def verdict(self) -> str:
        """The result in a few sentences."""
        layers = len({row.layer for row in self.rows})
        ranks = len({row.rank for row in self.rows})
        first = self.first_divergence
        a, b = self.impls
        if first is None and self.empty:
            return f"Nothing was compared: the input was empty on every rank, which {a} and {b} both take."
        if first is None:
            return (
                f"{a} and {b} agree in every stage of {_count(layers, 'layer')} on {_count(ranks, 'rank')}: "
                "rounding explains every difference."
            )
        place = f"The first stage that diverges is {first.stage} of layer {first.layer!r}"
        place += f", in {first.quantity} on rank {first.rank}"
        if first.problems:
            return f"{place}: " + "; ".join(f"{impl} {problem}" for impl, problem in first.problems.items()) + "."
        at = f"channel {first.channel}, index {first.index}" if first.channel is not None else f"index {first.index}"
        values = ", ".join(f"{impl} gave {value:.9g}" for impl, value in first.values.items())
        blame = f"Wrong by itself: {', '.join(first.wrong)}." if first.wrong else "Neither is far off by itself."
        return (
            f"{place}, worst at {at}: {values}, float64 gives {first.exact:.9g}. "
            f"They are {first.absolute:.3g} apart, {times_allowed(first.share)}. {blame}"
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        layers: dict[str, list[Row]] = {}
        for row in self._worst_ranks():
            layers.setdefault(row.layer, []).append(row)
        parts: list[RenderableType] = []
        for name, rows in layers.items():
            if len(layers) <= 4 or not all(row.agrees for row in rows):
                parts += [Text(f"\nlayer {name}", "bold"), _table(rows)]
            else:
                closest = max(rows, key=lambda row: row.share)
                parts.append(
                    Text(f"layer {name}: agrees, {closest.quantity} the least ({closest.share:.2f} of what is allowed)")
                )
        color = "bold red" if not self.agrees else "yellow" if self.empty else "green"
        return Group(*parts, "", Text(self.verdict(), color))

    def _worst_ranks(self) -> list[Row]:
        """The row of the worst rank for each layer and quantity, layers and stages in order."""
        worst: dict[tuple[str, str, str], Row] = {}
        for row in self.rows:
            key = row.layer, row.stage, row.quantity
            if key not in worst or (bool(row.problems), row.share) > (bool(worst[key].problems), worst[key].share):
                worst[key] = row
        return list(worst.values())


def compare(
    model: nn.Module,
    inputs: Any,
    impls: Sequence[str] = ("reference", "cuda"),
    *,
    upstream: Any = None,
    seed: int = 0,
) -> Comparison:
    """Run the same input and the same upstream gradient through two implementations, stage by stage.

    The model itself is left as it is: a copy runs one training step. With a process group every rank of it has to
    call, each with its own share of the batch, and every rank gets the whole report.

    Args:
        model: a :class:`sbnref.SyncBatchNorm`, or a model that contains some, in training mode.
        inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.
        impls: the names of two implementations. In the report the second is measured against the first.
        upstream: the gradient by the model's output, in the structure of the output; None for random numbers (and for
            one where the output is a single number, a loss).
        seed: of those random numbers.

    Raises:
        ValueError: the model has no :class:`sbnref.SyncBatchNorm` in training mode, or there is no such implementation.
        RuntimeError: an implementation cannot run on the model's device; the message says what is missing.

    Example:
        >>> layer = sbnref.SyncBatchNorm(8, stats_mode="N")
        >>> sbnref.compare(layer, torch.randn(4, 8, 5, 5), impls=("reference", "reference")).agrees
        True
    """
    _check_two(impls)
    calls = _run_once(model, inputs, impls[0], upstream, seed)
    rows = [row for call in calls for row in _compare_call(call, (impls[0], impls[1]))]
    if resolve(None) is not None:
        by_rank: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(by_rank, rows)
        rows = [row for rows_of_rank in by_rank for row in rows_of_rank]
    return Comparison((impls[0], impls[1]), rows)


@dataclass(frozen=True)
class RandomLayer:
    """A layer and random input for it: what ``sbnref compare`` runs without a target.

    Attributes:
        shape: of each rank's input, (N, C, \\*).
        empty_rank: a rank whose input has no samples.
        dtype: of the input, by its name; parameters are float32, or float64 for float64.
        stats_mode: of the layer.
        device: where all lies.
    """

    shape: tuple[int, ...]
    empty_rank: int | None = None
    dtype: str = "float32"
    stats_mode: str = "default"
    device: str = "cpu"

    def __post_init__(self) -> None:
        names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
        if self.dtype not in names:
            raise ValueError(f"expected dtype to be one of {', '.join(names)}, got {self.dtype!r}")
        check_stats_mode(self.stats_mode)

    def __call__(self) -> tuple[nn.Module, Tensor]:
        """This rank's part: the same layer on every rank, its own input."""
        rank = dist.get_rank()
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(rank)
        samples, channels, *spatial = self.shape
        x = torch.randn(0 if rank == self.empty_rank else samples, channels, *spatial, generator=generator) + rank
        parameters = torch.promote_types(dtype, torch.float32)
        layer = SyncBatchNorm(channels, stats_mode=self.stats_mode, device=self.device, dtype=parameters)
        return layer, x.to(self.device, dtype)


def compare_on_ranks(target: str | RandomLayer, impls: Sequence[str], ranks: int) -> Comparison:
    """:func:`compare` on new ranks of this machine.

    Args:
        target: ``'FILE.py:FUNCTION'`` or ``'MODULE:FUNCTION'``, called on each rank, gives (model, inputs); or a
            :class:`RandomLayer`.
        impls: two names, or files with the four stage functions.
        ranks: how many.

    Raises:
        ValueError: there is no such target, implementation or rank.
        RuntimeError: an implementation cannot run here.
        RankError: what the target does failed.
    """
    _check_two(impls)
    make = _find(target) if isinstance(target, str) else target
    if isinstance(make, RandomLayer) and make.empty_rank is not None and not 0 <= make.empty_rank < ranks:
        raise ValueError(f"expected empty_rank to be one of the {ranks} ranks, 0 to {ranks - 1}, got {make.empty_rank}")
    for name in impls:
        _register_file(name)
        if isinstance(make, RandomLayer):
            choose_impl(name, torch.device(make.device))  # refused here, in a sentence, rather than on the ranks
    return launch(_compare_here, ranks, target, tuple(impls))[0]


def _check_two(impls: Sequence[str]) -> None:
    if len(impls) != 2:
        raise ValueError(f"expected the names of two implementations, got {list(impls)}")


def _compare_here(target: str | RandomLayer, impls: tuple[str, ...]) -> Comparison:
    for name in impls:
        _register_file(name)
    model, inputs = (_find(target) if isinstance(target, str) else target)()
    return compare(model, inputs, impls)


def _register_file(name: str) -> None:
    """A file with stage functions goes by its path."""
    if name.endswith(".py") and name not in impl_names():
        register_impl(name, load_functions(name))


def _find(target: str) -> Callable[[], tuple[nn.Module, Any]]:
    """The function that ``'FILE.py:FUNCTION'`` or ``'MODULE:FUNCTION'`` names."""
    place, _, name = target.rpartition(":")
    if not place:
        raise ValueError(f"expected FILE.py:FUNCTION or MODULE:FUNCTION, got {target!r}")
    try:
        function = getattr(import_target(place), name, None)
    except (ImportError, OSError) as error:
        raise ValueError(f"{place} cannot be imported: {error}") from error
    if not callable(function):
        raise ValueError(f"expected {place} to have a function {name} that returns (model, inputs), but it has none")
    return function


@dataclass
class _Call:
    """What reached a layer in one call."""

    name: str
    layer: SyncBatchNorm
    x: Tensor
    running: RunningStats | None
    dy: Tensor | None = None

    @property
    def group(self) -> ProcessGroup | None:
        return resolve(self.layer.group)


def _run_once(model: nn.Module, inputs: Any, impl: str, upstream: Any, seed: int) -> list[_Call]:
    """One training step of a copy of the model; what reached each of its layers."""
    if isinstance(model, DistributedDataParallel):
        model = model.module  # its averaging of gradients is not what is compared
    layers = synchronized_layers(model)
    if not any(layer.training for layer in layers.values()):
        raise ValueError(
            f"expected a synchronized batch norm in training mode, but all {len(layers)} of the model are in eval "
            "mode, where nothing is synchronized; call model.train() first"
        )
    model = copy.deepcopy(model)
    calls: list[_Call] = []
    with ExitStack() as hooks:
        for name, layer in synchronized_layers(model).items():
            for handle in (
                layer.register_forward_pre_hook(_keep_input(name, calls), with_kwargs=True),
                layer.register_forward_hook(_keep_gradient(calls)),
            ):
                hooks.callback(handle.remove)
        inputs = tree_map(lambda t: t.detach().requires_grad_() if _is_float(t) else t, inputs)
        with use_impl(impl), torch.enable_grad():
            if isinstance(inputs, dict):
                output = model(**inputs)
            else:
                output = model(*(inputs if isinstance(inputs, (tuple, list)) else (inputs,)))
            outputs = [t for t in tree_leaves(output) if _is_float(t) and t.requires_grad]
            if not calls:
                raise ValueError(
                    "expected the model to call its synchronized batch norms, but this input reached none of them"
                )
            torch.autograd.backward(outputs, _upstream(outputs, upstream, seed))
    for call in calls:
        if call.dy is None:  # nothing came back to it
            call.dy = _random_like([call.x], seed)[0]
    return calls


def _keep_input(name: str, calls: list[_Call]) -> Callable[..., None]:
    def hook(layer: SyncBatchNorm, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if not layer.training:
            return
        before = sum(call.layer is layer for call in calls)
        running = None
        if layer.track_running_stats and layer.running_mean is not None and layer.running_var is not None:
            steps = layer.num_batches_tracked
            running = RunningStats(
                layer.running_mean.clone(), layer.running_var.clone(), None if steps is None else steps.clone()
            )
        called = f"{name} (call {before + 1})" if before else name
        calls.append(_Call(called, layer, input_of(args, kwargs).detach().clone(), running))

    return hook


def _keep_gradient(calls: list[_Call]) -> Callable[..., None]:
    def hook(layer: SyncBatchNorm, args: tuple[Tensor, ...], y: Tensor) -> None:
        if layer.training and y.requires_grad:
            call = calls[-1]

            def keep(dy: Tensor) -> None:
                call.dy = dy.detach().clone()

            y.register_hook(keep)

    return hook


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _upstream(outputs: list[Tensor], upstream: Any, seed: int) -> list[Tensor]:
    if upstream is not None:
        given = [t for t in tree_leaves(upstream) if isinstance(t, Tensor)]
        if [t.shape for t in given] != [t.shape for t in outputs]:
            raise ValueError(
                f"expected upstream with the shapes of the outputs, {[tuple(t.shape) for t in outputs]}, "
                f"got {[tuple(t.shape) for t in given]}"
            )
        return given
    return [
        torch.ones_like(t) if t.dim() == 0 else dy for t, dy in zip(outputs, _random_like(outputs, seed), strict=True)
    ]


def _random_like(tensors: list[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in tensors]


def _compare_call(call: _Call, impls: tuple[str, str]) -> list[Row]:
    """The four stages of both implementations. Every rank goes through the same collectives, whatever a stage does."""
    layer, group = call.layer, call.group
    assert call.dy is not None
    share = Share(
        call.x,
        call.dy,
        layer.weight,
        layer.bias,
        call.running,
        layer.eps,
        layer.momentum,
        layer.stats_mode,
        world_size(group),
    )
    runs = [_Run(name, choose_impl(name, call.x.device), share) for name in impls]
    exact = Exact(share)
    rows: list[Row] = []

    def measure(stage: str, expected: dict[str, Bounded]) -> None:
        for quantity, bounded in expected.items():
            rows.append(_row(call, stage, quantity, bounded, runs))

    def reduce(payload: str, bounded: Bounded, to: str) -> Bounded:
        """The payloads' total: each implementation's own to look at, and the exact one for the next stage to use."""
        for run in runs:
            run.gave[to] = all_reduce(run.gave.get(payload, on_device(bounded.value)), group)
        value, allowed = (all_reduce(on_device(t), group).cpu().double() for t in (bounded.value, bounded.allowed))
        total = Bounded(value, allowed + exact.narrow * value.abs(), bounded.unit)
        measure("all-reduce", {to: total})
        return total

    def on_device(tensor: Tensor) -> Tensor:
        return tensor.to(call.x.device, payload_dtype(call.x.device))

    for run in runs:
        run.stage("forward_stats")
    forward = exact.forward_stats()
    measure("forward_stats", forward)
    total = reduce("payload", forward["payload"], "total")

    for run in runs:
        run.stage("forward_apply", total=on_device(total.value))
    measure("forward_apply", exact.forward_apply(total.value))

    for run in runs:
        run.stage("backward_stats", saved=run.gave.get("saved"))
    backward = exact.backward_stats()
    measure("backward_stats", backward)
    total = reduce("backward payload", backward["backward payload"], "backward total")

    for run in runs:
        run.stage("backward_apply", total=on_device(total.value), saved=run.gave.get("saved"))
    measure("backward_apply", exact.backward_apply(total.value))

    for half, (quantity, parameter) in enumerate((("dbeta", layer.bias), ("dgamma", layer.weight))):
        if parameter is not None:
            for run in runs:
                run.gave[quantity] = _average(run.gave["backward total"], half, share.world_size).to(parameter.dtype)
            value, allowed = (_average(t, half, share.world_size) for t in (total.value, total.allowed))
            stored = torch.finfo(parameter.dtype).eps * value.abs()
            measure("parameters", {quantity: Bounded(value, allowed + stored, parameter.dtype)})
    return rows


def _average(total: Tensor, half: int, ranks: int) -> Tensor:
    """The gradient of beta (half 0) or gamma (half 1), averaged over the ranks."""
    return total.chunk(2)[half] / ranks


class _Run:
    """An implementation on its way through the stages: what it gave, and what went wrong."""

    def __init__(self, name: str, impl: Implementation, share: Share) -> None:
        self.name, self.impl, self.share = name, impl, share
        self.gave: dict[str, Tensor] = {}
        self.problems: dict[str, str] = {}  # by quantity

    def stage(self, stage: str, total: Tensor | None = None, saved: Tensor | None = None) -> None:
        """Run a stage twice: a race shows as two results."""
        if stage.startswith("backward") and saved is None:
            self.problems[stage] = "was not run, for want of what forward_apply saves"
            return
        try:
            once, again = (run_stage(stage, self.impl, self.share, total, saved) for _ in range(2))
        except Exception as error:
            self.problems[stage] = f"raised {type(error).__name__}: {error}"
            return
        self.gave |= once
        for quantity, value in once.items():
            if not torch.equal(value.nan_to_num(), again[quantity].nan_to_num()):
                what = "saved two different things" if quantity == "saved" else "gave two results"
                self.problems[stage if quantity == "saved" else quantity] = f"{what} in two runs on the same input"


def _row(call: _Call, stage: str, quantity: str, bounded: Bounded, runs: list[_Run]) -> Row:
    a, b = (run.gave.get(quantity, bounded.value) for run in runs)
    allowed = 2 * bounded.allowed  # each may be off by it
    apart = difference(b, a, allowed, bounded.unit)
    problems = {r.name: p for r in runs if (p := r.problems.get(quantity) or r.problems.get(stage))}
    wrong = [
        run.name
        for run, value in zip(runs, (a, b), strict=True)
        if run.name in problems or difference(value, bounded.value, bounded.allowed, bounded.unit).share > 1
    ]
    exact = float(bounded.value[apart.index]) if apart.index or bounded.value.dim() == 0 else math.nan
    return Row(
        layer=call.name,
        stage=stage,
        quantity=quantity,
        rank=dist.get_rank() if dist.is_initialized() else 0,
        unit=str(bounded.unit).removeprefix("torch."),
        absolute=apart.absolute,
        relative=apart.relative,
        ulp=apart.ulp,
        allowed=apart.allowed,
        share=apart.share,
        channel=channel_of(quantity, apart.index, call.x.shape[1]),
        index=apart.index,
        values={runs[0].name: apart.want, runs[1].name: apart.got},
        exact=exact,
        wrong=tuple(wrong),
        problems=problems,
    )


def _table(rows: list[Row]) -> RenderableType:
    """One layer's quantities, in the order of the stages; fits a terminal of 80 columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading, width in (("stage", 14), ("quantity", 12)):
        table.add_column(heading, min_width=width)
    for heading, width in (("rank", 4), ("absolute", 8), ("relative", 8), ("ulp", 7), ("/ allowed", 9)):
        table.add_column(heading, min_width=width, justify="right")
    table.add_column("", min_width=8)
    stage = ""
    for row in rows:
        table.add_row(
            row.stage if row.stage != stage else "",
            {"num_batches_tracked": "steps"}.get(row.quantity, row.quantity.removeprefix("backward ")),
            str(row.rank),
            *(_short(v) for v in (row.absolute, row.relative, row.ulp)),
            f"{row.share:.2f}" if row.share < 100 else _short(row.share),
            Text("agrees", "green") if row.agrees else Text("DIVERGES", "bold red"),
        )
        stage = row.stage
    return table


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
