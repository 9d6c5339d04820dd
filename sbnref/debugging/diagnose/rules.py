"""The rules: signs of a fault in the records of a layer, their order, and the rules that explain others away."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...modes import STATS_MODES
from ..layers import differing
from ..monitor.steps import Layer, Step, average, layers_of
from ..recording import Recording
from ..report import in_words, ranks_in_words

# Thresholds. "std" is a channel's standard deviation over the batch, eps included. A gap is the upper quartile over
# channels: a few that hardly vary can be off by any factor. Batch noise is how much a batch's mean, in std, and the
# logarithm of its variance vary from step to step.
MODE_OFF = 0.02  # of a mode's mean in std, or of its variance: full batches of equal sizes are off by rounding alone
SAME = 0.01  # of running statistics of synchronized ranks: they compute the same numbers
GAP = 0.5  # std: a ReLU after the layer then treats a fifth of the elements differently in evaluation
FACTOR = 2.0  # of variances: outputs are off by 40 %; smaller ratios occur while weights move
NOISE = 4.0  # standard errors: chance exceeds them once in 16,000 channels
RECENT = 5  # recorded steps that count as recent: weights move little within them, and their noise halves
OLD_SHARE = 0.25  # of the running statistics are from before the block: a gap is then due to a slow momentum
SLOW = 0.1  # a momentum from here on forgets within 30 steps; a gap that is left then has another cause
FAST = 0.5  # a momentum from here on keeps little but the last batch
FAST_NOISE = 0.1  # std: by which batch noise may move the running mean, before evaluation depends on the last batch
FEW = 16  # values per channel: below, batch noise is more than a quarter of a std
FAR = 100.0  # std: a half-precision input, of 3 digits, then loses 10 % of a std
PAYLOAD = 0.01  # relative error of the variance between ranks, from float64 payloads: see sbnref.modes.combine
WEIGHTS = 1e-4  # relative difference of weights: more than rounding

UPDATE = "torch.optim.swa_utils.update_bn(train_loader, model)"
WRAP = "model = torch.nn.parallel.DistributedDataParallel(model)"
CONVERT = 'model = sbnref.convert_sync_batchnorm(model, stats_mode="exact")'


@dataclass(frozen=True)
class Suspect:
    """A problem, with evidence and remedy.

    Attributes:
        rule: the name of the rule that found it.
        layers: the names of the layers concerned, in the order of their calls.
        ranks: the ranks that stand out, or all.
        steps: the first and the last training step concerned.
        evidence: the evidence, for the first layer.
        advice: the remedy in words.
        code: the remedy as a line of code.
    """

    rule: str
    layers: tuple[str, ...]
    ranks: tuple[int, ...]
    steps: tuple[int, int]
    evidence: str
    advice: str
    code: str

    def where(self) -> str:
        """Return the name of the first layer and the number of others."""
        more = len(self.layers) - 1
        first = f"layer {self.layers[0]}" if self.layers[0].isdigit() else self.layers[0]
        return first + (f" and {more} more" if more else "")


class Finding(NamedTuple):
    """A finding of a rule in a layer. In ``code``, ``{layer}`` stands for the layer."""

    ranks: tuple[int, ...]
    steps: tuple[int, int]
    evidence: str
    advice: str
    code: str
    kind: Hashable = None  # findings of different kinds are different suspects


@dataclass
class Case:
    """All layers, and the findings so far.

    Attributes:
        layers: in the order of their calls.
        recordings: by rank.
        non_finite: whether in evaluation, the step and the layer of the first input with NaN or Inf. Rules skip later
            steps, which follow from it.
        found: by layer, the names of the rules that found something.
    """

    layers: list[Layer]
    recordings: dict[int, Recording]
    non_finite: tuple[bool, int, int] | None = None
    found: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = [
            (evaluation, step.number, place)
            for place, layer in enumerate(self.layers)
            for evaluation, steps in ((False, layer.steps), (True, layer.evaluations))
            for step in steps
            if step.non_finite
        ]
        self.non_finite = min(where, default=None)

    def finite(self, steps: list[Step], evaluation: bool = False) -> list[Step]:
        """Return the steps with data, with all copies in one mode, before the first NaN or Inf."""
        in_evaluation, end, _ = self.non_finite or (evaluation, float("inf"), 0)
        if in_evaluation != evaluation:
            end = float("inf") if in_evaluation else 0  # evaluation comes after training
        return [s for s in steps if any(s.elements) and s.number < end and (evaluation or not s.in_eval)]

    def parameters_differ(self, end: int) -> bool:
        """Return whether the parameters outside the layers differed between ranks, at the start (0) or the end (1)."""
        sums = [recording.parameters[end] for recording in self.recordings.values()]
        return max(sums) - min(sums) > WEIGHTS * max(abs(max(sums)), abs(min(sums)))

    def earlier(self, layer: Layer) -> set[str]:
        """Return the names of the rules with findings in earlier layers."""
        names = [other.name for other in self.layers]
        return set().union(*(self.found.get(name, set()) for name in names[: names.index(layer.name)]))


# ---- comparisons ----


class Gap(NamedTuple):
    """The distance between two pairs of mean and variance."""

    mean: float  # std
    factor: float  # of the variances, at least 1

    def beyond(self, mean: float = GAP, factor: float = FACTOR) -> bool:
        return self.mean > mean or self.factor > factor

    def size(self) -> float:
        """Return the gap relative to the thresholds."""
        return max(self.mean / GAP, math.log(self.factor) / math.log(FACTOR))

    def words(self) -> str:
        parts = [f"mean by {self.mean:.2g} std"] if self.mean > GAP or self.mean / GAP == self.size() else []
        return " and ".join(
            parts + [f"variance by a factor of {self.factor:.3g}"] * (self.factor > FACTOR or not parts)
        )


def gap(got: Tensor, true: Tensor, eps: float, var: Tensor | None = None) -> Gap:  # (2, C) each
    """Return the gap of statistics, the upper quartile over channels. ``var`` defines a std (default: the true one)."""
    variances = torch.stack([got[1], true[1], true[1] if var is None else var]).clamp(min=0) + eps
    factor = _quartile((variances[0] / variances[1]).log())
    return Gap(_quartile((got[0] - true[0]) / variances[2].sqrt()), math.exp(min(factor, 700)))


def _quartile(x: Tensor) -> float:
    return float(x.abs().flatten().quantile(0.75))


def pooled(stats: list[Tensor]) -> Tensor:  # (2, C) each -> (2, C)
    """Return mean and variance over several batches together."""
    means, variances = torch.stack(stats).unbind(1)
    return torch.stack([means.mean(0), variances.mean(0) + means.var(0, correction=0)])


class Noise(NamedTuple):
    """The batch noise, as a standard deviation."""

    mean: float  # std
    factor: float  # of the logarithm of the variance

    def margin(self, errors: float) -> tuple[float, float]:
        """Return the largest gap that is no evidence: the thresholds plus ``errors`` times the noise."""
        return GAP + errors * self.mean, FACTOR * math.exp(errors * self.factor)


def noise(stats: list[Tensor], eps: float) -> Noise:
    """Return the batch noise, from differences of successive steps: a slow drift is no noise."""
    if len(stats) < 3:
        return Noise(0.0, 0.0)
    means, variances = torch.stack(stats).unbind(1)
    changes = means.diff(dim=0) / (variances.mean(0) + eps).sqrt(), (variances + eps).log().diff(dim=0)
    # Of normal numbers, the upper quartile of a difference's absolute value is 1.63 standard deviations.
    return Noise(*(_quartile(change) / 1.63 for change in changes))


def whole(step: Step) -> Tensor:  # (2, C)
    """Return mean and variance over the ranks' batches together."""
    return torch.stack([step.mean["exact"], step.var["exact"]])


def used(layer: Layer, steps: list[Step], rank: int) -> list[Tensor]:
    """Return the statistics that a rank normalized with, for the steps that it took part in."""
    if mode := layer.stats_mode:
        return [torch.stack([step.mean[mode], step.var[mode]]) for step in steps if rank in step.ranks]
    places = [(step, step.ranks.index(rank)) for step in steps if rank in step.ranks]
    return [step.local[place] for step, place in places if step.elements[place]]


def _span(steps: list[Step]) -> tuple[int, int]:
    return (steps[0].number, steps[-1].number) if steps else (0, 0)


def _recorded(layer: Layer) -> int:
    """Return the number of its recorded training steps. A step may call it several times."""
    return len({step.number for step in layer.steps})


def _sides(same: list[int], others: list[int]) -> str:
    sides = [str(s[0]) if len(s) == 1 else "{" + ", ".join(map(str, s)) + "}" for s in (same, others)]
    return f"ranks {sides[0]} and {sides[1]}"


def _fewer(same: list[int], others: list[int]) -> tuple[int, ...]:
    """Return the smaller side."""
    return tuple(others if len(others) <= len(same) else same)


# ---- the rules ----


def non_finite(layer: Layer, case: Case) -> Iterator[Finding]:
    """The first input with NaN or Inf; or running statistics with some, if the inputs in training are finite."""
    in_evaluation, _, place = case.non_finite or (True, 0, None)
    broken = tuple(rank for rank, stats in layer.final.items() if stats is not None and not stats.isfinite().all())
    if broken and in_evaluation:
        evidence = f"running statistics hold NaN or Inf on {ranks_in_words(list(broken))}"
        advice, code = "Training inputs were finite, so reset the statistics", "{layer}.reset_running_stats()"
        if not layer.steps:
            advice, code = "Load other running statistics, or estimate them again", UPDATE
        yield Finding(broken, _span(layer.steps), evidence, advice, code, "running")
    elif place is not None and layer is case.layers[place] and "NaN or Inf" not in case.earlier(layer):
        bad = [step for step in (layer.evaluations if in_evaluation else layer.steps) if step.non_finite]
        when = f"{'evaluation step' if in_evaluation else 'step'} {bad[0].number}"
        more = f" and {len(bad) - 1} later" if len(bad) > 1 else ""
        where = ranks_in_words(list(bad[0].non_finite))
        evidence = f"an input with NaN, Inf or numbers too large to square on {where} in {when}{more}"
        advice = "This is the first batch norm, so check the data"
        code = "print(batch.isfinite().all(), batch.abs().max())"
        if place > 0:
            advice = "All earlier batch norms had finite inputs, so find the operation before this one"
            code = "torch.autograd.set_detect_anomaly(True)"
        yield Finding(bad[0].non_finite, _span(bad), evidence, advice, code)


def settings(layer: Layer, case: Case) -> Iterator[Finding]:
    """A setting that differs between ranks."""
    names = differing(list(layer.settings.values()))
    for name in names if "kind" not in names else ["kind"]:
        values: dict[Any, list[int]] = {}
        for rank, of_rank in layer.settings.items():
            values.setdefault(getattr(of_rank, name), []).append(rank)
        most = max(values.values(), key=len)
        odd = tuple(rank for rank in layer.ranks if rank not in most)
        here = in_words([f"{value!r} on {ranks_in_words(ranks)}" for value, ranks in values.items()])
        what, code = name, f"{{layer}}.{name} = {getattr(layer.settings[most[0]], name)!r}"
        advice = "Set it to one value on every rank"
        if name == "kind":
            what, code = "layer", "model = sbnref.convert_sync_batchnorm(model)"
        elif name in ("group", "track_running_stats"):
            advice, code = "Build it with the same settings on every rank", "print({layer})"
        yield Finding(odd, _span(layer.steps), f"{what} differs: {here}", advice, code, name)


def weights(layer: Layer, case: Case) -> Iterator[Finding]:
    """Weights that differ between ranks."""
    for step in case.finite(layer.steps):
        differ = (step.weights - step.weights[0]).abs().amax(1) > WEIGHTS * (1 + step.weights.abs().max())
        others = [rank for rank, differs in zip(step.ranks, differ, strict=True) if differs]
        if others:
            same = [rank for rank in step.ranks if rank not in others]
            evidence = f"weight or bias differs between {_sides(same, others)}, since step {step.number}"
            advice = "Load the same state on every rank"
            code = "for t in model.state_dict().values(): torch.distributed.broadcast(t, src=0)"
            if case.parameters_differ(1) and not case.parameters_differ(0):
                advice, code = "Other parameters began to differ too, so average the gradients", WRAP
            since = (step.number, layer.steps[-1].number)
            yield Finding(_fewer(same, others), since, evidence, advice, code)
            return


def eval_mode(layer: Layer, case: Case) -> Iterator[Finding]:
    """A layer in eval mode while the model trains."""
    steps = [step for step in layer.steps if step.in_eval]
    if steps:
        times = len({step.number for step in steps})
        ranks = tuple(sorted({rank for step in steps for rank in step.in_eval}))
        everywhere = len(ranks) == len(layer.ranks)
        where = "every rank" if everywhere and len(ranks) > 1 else ranks_in_words(list(ranks))
        evidence = f"in eval mode on {where} in {times} of {_recorded(layer)} training steps"
        advice = "Unless it is frozen on purpose" if everywhere else "Before the training steps, on every rank"
        yield Finding(ranks, _span(steps), evidence, advice, "{layer}.train()", everywhere)


def unconverted(layer: Layer, case: Case) -> Iterator[Finding]:
    """A layer that does not synchronize, in a model with layers that do."""
    others = sum(other.synchronized for other in case.layers)
    if not layer.synchronized and others and len(case.recordings) > 1:
        kind = layer.first.kind
        layers = f"{others} synchronized layer{'s' * (others > 1)}"
        evidence = f"{kind} uses the statistics of each rank alone, next to {layers}"
        code = "model = sbnref.convert_sync_batchnorm(model)"
        yield Finding(layer.ranks, _span(layer.steps), evidence, "Convert the whole model", code)


def skipped(layer: Layer, case: Case) -> Iterator[Finding]:
    """A rank that took a step without calling the layer, while others waited for it there."""
    group = [rank for rank in layer.first.group if rank in case.recordings] if layer.synchronized else []
    steps = {
        rank: [s for s in layer.steps if rank not in s.ranks and s.number <= case.recordings[rank].whole_steps]
        for rank in group
    }
    if missed := [step for of_rank in steps.values() for step in of_rank]:
        ranks = tuple(rank for rank, of_rank in steps.items() if of_rank)
        times = len({step.number for step in missed})
        evidence = f"{ranks_in_words(list(ranks))} did not call it in {times} of {_recorded(layer)} training steps"
        advice = "Call it with an empty batch, too; to find the place, set SBNREF_DEBUG=1"
        yield Finding(ranks, _span(sorted(missed, key=lambda s: s.number)), evidence, advice, "{layer}(x[:0])")


def running(layer: Layer, case: Case) -> Iterator[Finding]:
    """Running statistics that differ between ranks; without synchronization, more than different batches explain."""
    eps, steps = layer.first.eps, case.finite(layer.steps)
    batches = {rank: used(layer, steps, rank) for rank in layer.ranks}
    recent = {rank: pooled(of_rank[-RECENT:]) for rank, of_rank in batches.items() if of_rank}
    noises = [noise(of_rank, eps) for of_rank in batches.values()]
    limit, factor = Noise(max(n.mean for n in noises), max(n.factor for n in noises)).margin(NOISE)
    if layer.synchronized:
        limit, factor = SAME, 1 + SAME

    def distance(by_rank: dict[int, Tensor], a: int, b: int) -> Gap:
        std_of = recent.get(a, by_rank[a])[1]
        how_far = gap(by_rank[b], by_rank[a], eps, std_of)
        if not layer.synchronized and a in recent and b in recent:
            own = gap(by_rank[b] - recent[b], by_rank[a] - recent[a], eps, std_of).mean
            return how_far._replace(mean=min(how_far.mean, own))
        return how_far

    states = [(s.number - 1, dict(zip(s.ranks, s.running, strict=True))) for s in steps if s.running is not None]
    if case.non_finite is None:
        states.append((_span(steps)[1], {rank: stats for rank, stats in layer.final.items() if stats is not None}))
    apart: list[tuple[float, int, str, tuple[int, ...]]] = []  # how far, after which step, in words, which ranks
    for number, by_rank in states:
        gaps = {rank: distance(by_rank, min(by_rank), rank) for rank in by_rank}
        same = [rank for rank, g in gaps.items() if not g.beyond(limit, factor)]
        others = [rank for rank in gaps if rank not in same]
        if others:
            worst = max((gaps[rank] for rank in others), key=Gap.size)
            words = f"{_sides(same, others)}: {worst.words()}"
            apart.append((worst.size(), max(number, 1), words, _fewer(same, others)))
    if apart:
        _, _, words, ranks = max(apart)
        evidence = f"running statistics differ between {words}, since step {apart[0][1]}"
        advice = "All settings agree, so load the same state on every rank"
        code = "for buffer in model.buffers(): torch.distributed.broadcast(buffer, src=0)"
        yield Finding(ranks, (apart[0][1], _span(layer.steps)[1]), evidence, advice, code)


def skew(layer: Layer, case: Case) -> Iterator[Finding]:
    """A mode that moved the statistics, measured in the steps with an empty rank if there are any."""
    if not (mode := layer.stats_mode):
        return
    finite = case.finite(layer.steps)
    empty = [step for step in finite if step.empty_ranks]
    steps = empty or finite

    def off(mode: str) -> tuple[float, float]:
        return average(s.mean_off(mode) for s in steps), average(s.var_off(mode) for s in steps)

    if not steps or max(off(mode)) <= MODE_OFF:
        return
    ranks = tuple(sorted({rank for step in empty for rank in step.empty_ranks}))
    if empty:
        seen = f"{ranks_in_words(list(ranks))} had an empty batch in {len(empty) / len(finite):.0%} of steps"
    else:
        sizes = [max(step.elements) / max(min(step.elements), 1) for step in steps]
        seen = f"ranks had unequal batches, up to {max(sizes):.2g} to 1"
    scales = [scale for step in steps if (scale := step.scaled_by(mode)) is not None]
    if len(scales) > len(steps) / 2:
        factor = average(s[0] for s in scales) - 1
        did = f"{'shrank' if factor < 0 else 'stretched'} the mean by {abs(factor):.0%}"
    else:
        did = "moved the mean by {:.2g} std and the variance by {:.0%}".format(*off(mode))
    best, *others = [m for m in reversed(STATS_MODES) if max(off(m)) <= MODE_OFF]
    advice = f"Use stats_mode={best!r}" + (f" (or {in_words(list(map(repr, others)))})" if others else "")
    code = f'model = sbnref.convert_sync_batchnorm(model, stats_mode="{best}")'
    yield Finding(ranks or layer.ranks, _span(steps), f"{seen}; {mode!r} {did}", advice, code, bool(empty))


def _training_gap(layer: Layer, case: Case) -> tuple[int, Gap] | None:
    """Return the rank with the largest gap between its running statistics and its recent batches, and the gap."""
    steps, eps = case.finite(layer.steps), layer.first.eps
    gaps: list[tuple[int, Gap]] = []
    if len(steps) < RECENT:
        return None
    for rank, final in layer.final.items():
        batches = used(layer, steps, rank)
        if final is not None and batches and case.non_finite is None:
            recent = torch.stack(batches[-RECENT:]).mean(0)  # running statistics estimate this average
            how_far, chance = gap(final, recent, eps), noise(batches, eps)
            if how_far.beyond(*Noise(min(chance.mean, GAP), min(chance.factor, math.log(FACTOR))).margin(2)):
                gaps.append((rank, how_far))
    return max(gaps, key=lambda found: found[1].size(), default=None)


def slow_momentum(layer: Layer, case: Case) -> Iterator[Finding]:
    """Running statistics that are behind the batches because the momentum is small."""
    momentum, seen = layer.first.momentum, _training_gap(layer, case)
    old = 0.0 if momentum is None else (1 - momentum) ** max(r.training_steps for r in case.recordings.values())
    if seen and momentum is not None and momentum < SLOW and old > OLD_SHARE:
        behind = f"running statistics are behind the batches: {seen[1].words()}"
        evidence = f"{behind}; with momentum={momentum:g}, {old:.0%} of them are from before these steps"
        yield Finding(layer.ranks, _span(layer.steps), evidence, "Use a larger momentum", "{layer}.momentum = 0.1")


def stale(layer: Layer, case: Case) -> Iterator[Finding]:
    """Running statistics that are far from the recent batches' for another reason."""
    if seen := _training_gap(layer, case):
        where = f" on rank {seen[0]}" if len(layer.ranks) > 1 and not layer.synchronized else ""
        evidence = f"running statistics are far from those of recent batches{where}: {seen[1].words()}"
        yield Finding(layer.ranks, _span(layer.steps), evidence, "Estimate them again before you evaluate", UPDATE)


def evaluation_inputs(layer: Layer, case: Case) -> Iterator[Finding]:
    """Evaluation inputs that differ from those in training, in the first such layer: later layers follow from it."""
    steps = case.finite(layer.evaluations, evaluation=True)
    if not steps or case.earlier(layer) & {*EXPLAIN_INPUTS, "evaluation inputs"}:
        return
    training = case.finite(layer.steps)
    trained = [whole(step) for step in training][-RECENT:]
    finals = [stats for stats in layer.final.values() if stats is not None]
    if not trained and not finals:
        return
    eps = layer.first.eps
    how_far = gap(pooled([whole(step) for step in steps]), pooled(trained) if trained else finals[0], eps)
    values = sum(sum(step.elements) for step in steps)
    per_step = sum(sum(step.elements) for step in training) / max(len(training), 1)
    errors = NOISE * (max(per_step, 1) / values) ** 0.5  # for the number of values in evaluation
    if how_far.beyond(*noise([whole(step) for step in training], eps).margin(errors)):
        what = "those in training" if trained else "the running statistics"
        evidence = f"evaluation inputs differ from {what}: {how_far.words()}"
        advice = "This is the first batch norm, so prepare evaluation data as in training, and move dropout after it"
        code = "eval_set.transform = train_set.transform  # without random augmentation"
        if not trained:
            advice, code = "Load trained statistics, or estimate them", UPDATE
        elif layer is not case.layers[0]:  # gaps add up over the layers if weights move fast or units drop out
            advice, code = "Move dropout after this layer; without dropout, estimate the statistics again", UPDATE
        yield Finding(layer.ranks, _span(steps), evidence, advice, code)


def ranks_apart(layer: Layer, case: Case) -> Iterator[Finding]:
    """Ranks with batches that differ in every step: their data are not shuffled alike."""
    steps, eps = case.finite(layer.steps), layer.first.eps
    own = {
        rank: [s.local[p] for s in steps if rank in s.ranks and s.elements[p := s.ranks.index(rank)]]
        for rank in layer.ranks
    }
    own = {rank: batches for rank, batches in own.items() if len(batches) > 2}
    if len(own) < 2 or case.earlier(layer) & {"settings", "weights", "eval mode"}:  # these make outputs differ
        return
    centre = torch.stack([torch.stack(batches).mean(0) for batches in own.values()]).quantile(0.5, 0)
    gaps = {rank: gap(torch.stack(batches).mean(0), centre, eps) for rank, batches in own.items()}
    apart = [rank for rank, g in gaps.items() if g.beyond(*noise(own[rank], eps).margin(NOISE / len(own[rank]) ** 0.5))]
    if apart:
        furthest = max(apart, key=lambda rank: gaps[rank].size())
        evidence = f"the batches of rank {furthest} differ from the others' in every step: {gaps[furthest].words()}"
        advice = "Shuffle the data over all ranks"
        code = "DataLoader(data, sampler=DistributedSampler(data, shuffle=True))"
        if case.parameters_differ(0) or case.parameters_differ(1):
            evidence += "; so do the model's parameters"
            advice, code = "Start from the same parameters and average the gradients", WRAP
        yield Finding(tuple(apart), _span(steps), evidence, advice, code)


def fast_momentum(layer: Layer, case: Case) -> Iterator[Finding]:
    """A momentum with which evaluation depends on the last batch."""
    momentum = layer.first.momentum
    if momentum is None or momentum < FAST or not layer.ranks:
        return
    steps = case.finite(layer.steps)
    moved = noise(used(layer, steps, layer.ranks[0]), layer.first.eps).mean * (momentum / (2 - momentum)) ** 0.5
    if moved > FAST_NOISE:
        evidence = f"with momentum={momentum:g} the running mean follows single batches: noise of {moved:.2g} std"
        yield Finding(layer.ranks, _span(steps), evidence, "Use a smaller momentum", "{layer}.momentum = 0.1")


def payload(layer: Layer, case: Case) -> Iterator[Finding]:
    """A mean so large that float64 payloads lose the variance between ranks: see :func:`sbnref.modes.combine`."""
    steps = [step for step in case.finite(layer.steps) if sum(m > 0 for m in step.elements) > 1]
    errors = [float((1e-15 * s.mean["exact"] ** 2 / (s.var["exact"] + layer.first.eps)).max()) for s in steps]
    if layer.synchronized and errors and max(errors) > PAYLOAD:
        off = min(max(errors), 1)
        evidence = f"the mean is so far from zero that float64 loses the variance: it may be off by {off:.0%}"
        yield Finding(layer.ranks, _span(steps), evidence, "Subtract a constant before the layer", "x = x - x_mean")


def few_values(layer: Layer, case: Case) -> Iterator[Finding]:
    """Too few values per channel, so that the statistics are mostly noise."""
    counts = [
        sum(step.elements) if layer.synchronized else m for step in case.finite(layer.steps) for m in step.elements if m
    ]
    median = sorted(counts)[len(counts) // 2] if counts else FEW
    if median < FEW:
        evidence = f"{median} values per channel in most steps: batch noise of {median**-0.5:.2g} std"
        advice, code = "Use larger batches, or a norm without batch statistics", "torch.nn.GroupNorm(groups, C)"
        if not layer.synchronized and len(layer.ranks) > 1:
            advice, code = "Synchronize, or use larger batches", CONVERT
        yield Finding(layer.ranks, _span(layer.steps), evidence, advice, code)


def far_from_zero(layer: Layer, case: Case) -> Iterator[Finding]:
    """A mean many standard deviations from zero. Channels that hardly vary do not count."""
    steps, eps = case.finite(layer.steps), layer.first.eps
    steps = [step for step in steps if (step.var["exact"] > eps).any()]
    ratios = [float((s.mean["exact"].abs() / s.var["exact"].sqrt())[s.var["exact"] > eps].max()) for s in steps]
    if ratios and max(ratios) > FAR:
        evidence = f"the mean of a channel is {max(ratios):.3g} std from zero: half precision loses its variance"
        yield Finding(layer.ranks, _span(steps), evidence, "Subtract a constant before the layer", "x = x - x_mean")


class Rule(NamedTuple):
    """A row of the table of rules."""

    name: str
    find: Callable[[Layer, Case], Iterator[Finding]]
    explained_by: tuple[str, ...] = ()  # rules that found something in the same layer


EXPLAIN_INPUTS = {
    *("settings", "weights", "eval mode", "running statistics", "statistics mode", "slow momentum"),
    *("stale statistics", "fast momentum", "NaN or Inf", "few values", "ranks apart"),
}
EXPLAIN_A_GAP = ("settings", "weights", "eval mode", "running statistics")
RULES = (  # the most harmful first, and causes before their effects
    Rule("NaN or Inf", non_finite),
    Rule("settings", settings),
    Rule("weights", weights),
    Rule("eval mode", eval_mode),
    Rule("unconverted", unconverted, ("settings", "eval mode")),
    Rule("skipped", skipped),
    Rule("running statistics", running, ("settings", "weights", "eval mode", "skipped")),
    Rule("statistics mode", skew, ("settings",)),
    Rule("ranks apart", ranks_apart, ("weights",)),
    Rule("slow momentum", slow_momentum, EXPLAIN_A_GAP),
    Rule("stale statistics", stale, (*EXPLAIN_A_GAP, "slow momentum", "ranks apart")),
    Rule("fast momentum", fast_momentum, ("settings",)),
    Rule("few values", few_values),
    Rule("evaluation inputs", evaluation_inputs, tuple(EXPLAIN_INPUTS)),
    Rule("payload", payload),
    Rule("far from zero", far_from_zero, ("payload",)),
)


def suspects(recordings: dict[int, Recording]) -> tuple[list[Suspect], list[str]]:
    """Apply the rules.

    Returns:
        A suspect for each kind of finding of a rule, the most harmful first; and the failures of rules, in words.
    """
    case = Case(layers_of(recordings), recordings)
    ranked: list[Suspect] = []
    failures: dict[str, None] = {}
    for rule in RULES:
        kinds: dict[Hashable, list[tuple[Layer, Finding]]] = {}
        for layer in case.layers:
            if not case.found.get(layer.name, set()) & set(rule.explained_by):
                try:
                    for finding in rule.find(layer, case):
                        kinds.setdefault(finding.kind, []).append((layer, finding))
                        case.found.setdefault(layer.name, set()).add(rule.name)
                except Exception as error:  # must not hide the findings of other rules
                    words = f"the rule {rule.name!r} failed on layer {layer.name}"
                    failures[f"{words} with {type(error).__name__}: {error}"] = None
        for found in kinds.values():
            model = next(iter(recordings.values())).model
            ranked.append(_suspect(rule.name, found, len(ranked), model))
    return ranked, list(failures)


def _suspect(rule: str, found: list[tuple[Layer, Finding]], number: int, model: str) -> Suspect:
    layer, first = found[0]
    names = tuple(dict.fromkeys(layer.name for layer, _ in found))
    ranks = tuple(sorted({rank for _, finding in found for rank in finding.ranks}))
    steps = (min(f.steps[0] for _, f in found), max(f.steps[1] for _, f in found))
    one = model if names[0] == layer.first.kind else f'{model}.get_submodule("{names[0]}")'  # the model is the layer
    code = first.code.replace("{layer}", one)
    if len(names) > 1 and "{layer}" in first.code:
        code = f"for n in d.suspects[{number}].layers: " + first.code.replace("{layer}", f"{model}.get_submodule(n)")
    return Suspect(rule, names, ranks, steps, first.evidence, first.advice, code)
