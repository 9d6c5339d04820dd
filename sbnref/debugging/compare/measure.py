"""Measure each stage of both implementations, on the same arguments, against each other and against float64."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ...collectives import all_reduce, world_size
from ...conformance.stages import Bounded, Exact, Share, channel_of, difference, run_stage
from ...impls import Implementation, choose_impl
from ...modes import payload_dtype
from .report import Row
from .run import Call


def compare_call(call: Call, impls: tuple[str, str]) -> list[Row]:
    """Measure the four stages of both implementations. Ranks issue the same collectives, even if a stage fails."""
    layer, group = call.layer, call.group
    assert call.dy is not None
    tensors, ranks = (call.x, call.dy, layer.weight, layer.bias), world_size(group)
    share = Share(*tensors, call.running, layer.eps, layer.momentum, layer.stats_mode, ranks)
    runs = [_Run(name, choose_impl(name, call.x.device), share) for name in impls]
    exact = Exact(share)
    rows: list[Row] = []

    def measure(stage: str, expected: dict[str, Bounded]) -> None:
        for quantity, bounded in expected.items():
            rows.append(_row(call, stage, quantity, bounded, runs))

    def reduce(payload: str, bounded: Bounded, to: str) -> Bounded:
        """Sum the payloads: each implementation's own for the report, and the exact ones for the next stage."""
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
    """Return the gradient of beta (half 0) or gamma (half 1), averaged over the ranks."""
    return total.chunk(2)[half] / ranks


class _Run:
    """An implementation's run through the stages: its results and its problems."""

    def __init__(self, name: str, impl: Implementation, share: Share) -> None:
        self.name, self.impl, self.share = name, impl, share
        self.gave: dict[str, Tensor] = {}
        self.problems: dict[str, str] = {}  # by quantity

    def stage(self, stage: str, total: Tensor | None = None, saved: Tensor | None = None) -> None:
        """Run a stage twice: a race shows as two results."""
        if stage.startswith("backward") and saved is None:
            self.problems[stage] = "was not run, because forward_apply saved nothing"
            return
        try:
            once, again = (run_stage(stage, self.impl, self.share, total, saved) for _ in range(2))
        except Exception as error:
            self.problems[stage] = f"raised {type(error).__name__}: {error}"
            return
        self.gave |= once
        for quantity, value in once.items():
            if not torch.equal(value.nan_to_num(), again[quantity].nan_to_num()):
                what = "saved different values" if quantity == "saved" else "gave different results"
                self.problems[stage if quantity == "saved" else quantity] = f"{what} in two runs on the same input"


def _row(call: Call, stage: str, quantity: str, bounded: Bounded, runs: list[_Run]) -> Row:
    a, b = (run.gave.get(quantity, bounded.value) for run in runs)
    allowed = 2 * bounded.allowed  # each of the two may be off by bounded.allowed
    apart = difference(b, a, allowed, bounded.unit)
    problems = {r.name: p for r in runs if (p := r.problems.get(quantity) or r.problems.get(stage))}
    wrong = [
        run.name
        for run, value in zip(runs, (a, b), strict=True)
        if run.name in problems or difference(value, bounded.value, bounded.allowed, bounded.unit).ratio > 1
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
        ratio=apart.ratio,
        channel=channel_of(quantity, apart.index, call.x.shape[1]),
        index=apart.index,
        values={runs[0].name: apart.want, runs[1].name: apart.got},
        exact=exact,
        wrong=tuple(wrong),
        problems=problems,
    )
