"""A training step stage by stage: a stage's results, the results in float64, and the difference that rounding allows.

`sbnref compare` and `sbnref lab check` both use this module. Each stage gets exact inputs, so that its results show
only its own errors. The exception is ``saved``: its layout is up to the implementation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..impls import Implementation, reference
from ..modes import combine, fixed_divisor, payload_dtype, rank_weight
from ..running import RunningStats
from .oracle import elements_per_channel, flat, over

# The error that an implementation may have, in roundings of its accumulator. Sums in any sensible order stay below.
# Sums in a type too narrow, a mean rounded to one number, and E[x^2] - E[x]^2 do not.
ROUNDINGS = 16


@dataclass(frozen=True)
class Share:
    """One rank's share of a training step, and the layer's settings."""

    x: Tensor  # (N, C, *)
    dy: Tensor  # (N, C, *)
    gamma: Tensor | None  # (C,)
    beta: Tensor | None  # (C,)
    running: RunningStats | None
    eps: float
    momentum: float | None
    stats_mode: str
    world_size: int

    @property
    def weight(self) -> int:
        """Return w, the weight of this rank."""
        return rank_weight(self.stats_mode, self.x.shape[0], elements_per_channel(self.x))

    @property
    def divisor(self) -> int | None:
        """Return D, or None for the sum of the weights."""
        return fixed_divisor(self.stats_mode, self.world_size)

    @property
    def k(self) -> float:
        """Return w / m, 0 on an empty rank."""
        return self.weight / max(elements_per_channel(self.x), 1)

    def running_copy(self) -> RunningStats | None:
        """Return a copy of the running statistics, for a stage to update."""
        return self.running and RunningStats(*(None if t is None else t.clone() for t in self.running))  # type: ignore[arg-type]

    def wide(self) -> Share:
        """Return the same numbers in float64 on the CPU."""

        def widen(tensor: Tensor | None) -> Any:
            dtype = torch.float64 if tensor is not None and tensor.is_floating_point() else None
            return None if tensor is None else tensor.detach().cpu().to(dtype)

        running = self.running and RunningStats(*map(widen, self.running))
        x, dy, gamma, beta = map(widen, (self.x, self.dy, self.gamma, self.beta))
        return replace(self, x=x, dy=dy, gamma=gamma, beta=beta, running=running)


class ContractError(Exception):
    """A stage returned something of the wrong kind, shape or dtype, or changed its inputs."""


def run_stage(
    stage: str, impl: Implementation, share: Share, total: Tensor | None = None, saved: Tensor | None = None
) -> dict[str, Tensor]:
    """Call one stage, and return its results by name.

    Args:
        stage: one of :data:`sbnref.impls.STAGES`.
        impl: the implementation.
        share: the rank's share of the step.
        total: the summed payloads of the stage's pass, for the two stages that apply it.
        saved: ``saved`` from the implementation's own ``forward_apply``, for the two backward stages.

    Raises:
        ContractError: a result is of the wrong kind.
    """
    x, channels = share.x, share.x.shape[1]
    wide = payload_dtype(x.device)
    with torch.no_grad():
        if stage == "forward_stats":
            payload = impl.forward_stats(x, share.weight)
            _expect(stage, "a payload", payload, (3 * channels + 2,), wide)
            return {"payload": payload, "variance": payload[channels : 2 * channels] / payload[-2].clamp(min=1)}
        if stage == "forward_apply":
            assert total is not None
            running = share.running_copy()
            gave = impl.forward_apply(
                x, total, share.divisor, share.gamma, share.beta, share.eps, running, share.momentum
            )
            if not isinstance(gave, (tuple, list)) or len(gave) != 2 or not isinstance(gave[1], Tensor):
                raise ContractError(f"forward_apply must return (y, saved), two tensors, but returned {_kind(gave)}")
            _expect(stage, "y", gave[0], tuple(x.shape), x.dtype)
            named = zip(("running_mean", "running_var", "num_batches_tracked"), running or (), strict=False)
            return {"y": gave[0], **{name: t for name, t in named if t is not None}, "saved": gave[1]}
        assert saved is not None
        if stage == "backward_stats":
            payload = impl.backward_stats(share.dy, x, saved)
            _expect(stage, "a payload", payload, (2 * channels,), wide)
            return {"backward payload": payload}
        assert total is not None
        dx = impl.backward_apply(share.dy, x, total, saved, share.gamma, share.k)
        _expect(stage, "dx", dx, tuple(x.shape), x.dtype)
        return {"dx": dx}


def _expect(stage: str, what: str, got: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(got, Tensor) or got.shape != shape or got.dtype != dtype:
        raise ContractError(f"{stage} must return {what} of shape {shape} in {dtype}, but returned {_kind(got)}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)} in {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(map(_kind, value))}"
    return "None" if value is None else f"a {type(value).__name__}"


class Bounded(NamedTuple):
    """The exact value of a quantity, and the error that rounding allows."""

    value: Tensor  # float64
    allowed: Tensor  # float64, the same shape: the largest difference that rounding explains
    unit: torch.dtype  # differences are measured in its units in the last place


class Exact:
    """The stages in float64 for one rank's share, with what rounding allows an implementation in the share's dtype.

    The bounds follow the rounding of each term that a quantity is summed from: an accumulator's rounding times the sum
    of the magnitudes, the payload's rounding times the square of the mean (which cancels in the variance), and half a
    unit for a result that is stored in the input's dtype. The methods are called in the order of the stages.
    """

    def __init__(self, share: Share) -> None:
        self.share, self.wide = share, share.wide()
        self.acc_dtype = reference.accumulator(share.x)
        self.acc = ROUNDINGS * torch.finfo(self.acc_dtype).eps
        self.narrow = ROUNDINGS * torch.finfo(payload_dtype(share.x.device)).eps  # of numbers per channel
        self.mean_rounding = self.narrow + self.acc**2  # relative: the mean travels as hi + lo

    def forward_stats(self) -> dict[str, Bounded]:
        """Return the payload, and the variance in it."""
        wide = self.wide
        mean, var, *_ = combine(reference.forward_stats(wide.x, min(wide.weight, 1)), 1)
        std, stored = var.sqrt(), self.mean_rounding * mean.abs()
        mean_error = self.acc * std + stored
        var_error = self.acc * var + (2 * std + stored) * stored
        square_error = (2 * mean.abs() + mean_error) * mean_error + self.narrow * mean * mean
        exactly = mean.new_zeros(2)  # w and m are whole numbers
        return {
            "payload": Bounded(
                run_stage("forward_stats", reference, wide)["payload"],
                torch.cat([*(wide.weight * error for error in (mean_error, var_error, square_error)), exactly]),
                self.acc_dtype,
            ),
            "variance": Bounded(var, var_error, self.acc_dtype),
        }

    def forward_apply(self, total: Tensor) -> dict[str, Bounded]:
        """Return the output and the running statistics for ``total``, (3C + 2,)."""
        share, wide, total = self.share, self.wide, total.detach().cpu().double()
        out = run_stage("forward_apply", reference, wide, total)
        self.saved = out.pop("saved")
        stats = combine(total, wide.divisor)
        _, s2, s3 = total[:-2].abs().chunk(3)
        square = (s2 + s3) / stats.divisor + stats.mean**2
        self.var_error = self.narrow * square  # the rounding of large terms that cancel
        self.invstd_error = self.var_error / (stats.var + wide.eps) + self.narrow  # relative
        self.mean_error = self.mean_rounding * stats.mean.abs()

        invstd = self.saved[1]
        scale = (invstd if wide.gamma is None else wide.gamma * invstd).abs()
        spread = over(wide.x, scale) * (wide.x - over(wide.x, stats.mean)).abs()
        shift = torch.zeros_like(scale) if wide.beta is None else wide.beta.abs()
        allowed = self.acc * (spread + over(wide.x, shift)) + spread * over(wide.x, self.invstd_error)
        bounded = {"y": self._stored(out["y"], allowed + over(wide.x, scale * self.mean_error))}
        for name, before, after in zip(
            ("running_mean", "running_var"), wide.running or (), share.running or (), strict=False
        ):
            assert before is not None
            assert after is not None
            step = self.mean_error if name == "running_mean" else 2 * self.var_error
            stored = 2 * torch.finfo(after.dtype).eps * (before.abs() + out[name].abs())
            bounded[name] = Bounded(out[name], step + stored, after.dtype)
        if "num_batches_tracked" in out:
            steps = out["num_batches_tracked"].double()
            bounded["num_batches_tracked"] = Bounded(steps, torch.zeros_like(steps), torch.float64)
        return bounded

    def backward_stats(self) -> dict[str, Bounded]:
        """Return the payload of the backward pass."""
        wide, (mean, invstd, *_) = self.wide, self.saved
        g = flat(wide.dy).abs()
        xhat = flat(over(wide.x, invstd) * (wide.x - over(wide.x, mean))).abs()
        sum_g, sum_g_xhat = g.sum(1), (g * xhat).sum(1)
        relative = self.acc + self.invstd_error
        allowed = torch.cat([self.acc * sum_g, relative * sum_g_xhat + invstd * self.mean_error * sum_g])
        payload = run_stage("backward_stats", reference, wide, saved=self.saved)["backward payload"]
        return {"backward payload": Bounded(payload, allowed, self.acc_dtype)}

    def backward_apply(self, total: Tensor) -> dict[str, Bounded]:
        """Return the gradient with respect to the input for the backward pass's ``total``, (2C,)."""
        wide, (mean, invstd, skew, inverse_divisor) = self.wide, self.saved
        total = total.detach().cpu().double()
        a, b = total.abs().chunk(2)
        share_of_mean = wide.k * inverse_divisor
        scale = (invstd if wide.gamma is None else wide.gamma * invstd).abs()
        xhat = (over(wide.x, invstd) * (wide.x - over(wide.x, mean))).abs()
        terms = wide.dy.abs() + over(wide.x, share_of_mean * (a + skew.abs() * b))
        terms = terms + xhat * over(wide.x, share_of_mean * b)
        allowed = over(wide.x, scale * (self.acc + 3 * self.invstd_error)) * terms  # invstd enters three times
        allowed = allowed + over(wide.x, scale * share_of_mean * b * invstd * self.mean_error)
        return {"dx": self._stored(run_stage("backward_apply", reference, wide, total, self.saved)["dx"], allowed)}

    def _stored(self, value: Tensor, allowed: Tensor) -> Bounded:
        info = torch.finfo(self.share.x.dtype)
        rounding = 0.505 * info.eps * value.abs() + info.smallest_normal * info.eps
        return Bounded(value, allowed + rounding, self.share.x.dtype)


@dataclass(frozen=True)
class Difference:
    """The difference of two tensors, and its worst place."""

    absolute: float  # the largest
    relative: float  # the largest, over the largest magnitude in its channel
    ulp: float  # the largest, in units in the last place of that magnitude
    allowed: float  # at the worst place
    ratio: float  # the difference over the allowed one, at the worst place; above 1 is more than rounding
    index: tuple[int, ...]  # the worst place: the largest ratio
    got: float  # there
    want: float  # there


def difference(got: Tensor, want: Tensor, allowed: Tensor, unit: torch.dtype) -> Difference:
    """Measure how far ``got`` is from ``want``; equal infinities and two NaN are no difference."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    if got.numel() == 0:
        return Difference(0, 0, 0, 0, 0, (), torch.nan, torch.nan)
    same = (got == want) | (got.isnan() & want.isnan())
    apart = torch.where(same, 0.0, (got - want).abs()).nan_to_num(torch.inf, torch.inf)
    others = [d for d in range(want.dim()) if d != 1]
    magnitude = want.abs() if want.dim() < 2 else want.abs().amax(others, keepdim=True)
    info = torch.finfo(unit)
    ulp = torch.exp2(magnitude.clamp(min=info.smallest_normal).log2().floor()) * info.eps
    ratios = torch.where(apart == 0, 0.0, apart / allowed).nan_to_num(torch.inf, torch.inf)
    worst = int(ratios.argmax())
    return Difference(
        float(apart.max()),
        float(torch.where(apart == 0, 0.0, apart / magnitude).nan_to_num(torch.inf, torch.inf).max()),
        float((apart / ulp).nan_to_num(torch.inf, torch.inf).max()),
        float(allowed.expand_as(ratios).flatten()[worst]),
        float(ratios.flatten()[worst]),
        tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), ratios.shape)),
        float(got.flatten()[worst]),
        float(want.flatten()[worst]),
    )


def channel_of(quantity: str, index: tuple[int, ...], channels: int) -> int | None:
    """Return the channel of an index of a quantity, None if it has none."""
    if len(index) >= 2:
        return index[1]
    if not index or (quantity in ("payload", "total") and index[0] >= 2 * channels):
        return None
    return index[0] % channels
