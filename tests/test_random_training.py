"""Random models train on random ranks: every output, gradient and running statistic equals the definition in float64.

``--random-minutes 60`` draws programs for an hour. Hypothesis shrinks a program that fails, and prints it as
``namespace(...)``; to run that program alone, call ``errors(world, SimpleNamespace(...))`` in a test.
"""

import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings, strategies
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sbnref import SyncBatchNorm
from sbnref.conformance.cases.parts import DTYPES
from sbnref.conformance.oracle import elements_per_channel, flat, forward, over, train_step
from sbnref.conformance.stages import ROUNDINGS, difference
from sbnref.impls import reference
from sbnref.modes import STATS_MODES

pytestmark = pytest.mark.slow

EPS = 0.01  # gradients of three layers fit into float16


def programs():
    """Return a strategy for programs. Tuples of four hold a number per rank; smaller worlds ignore the last numbers."""
    one_of = lambda *choices: strategies.sampled_from(choices)  # noqa: E731
    switches = dict(affine=one_of(True, False), track_running_stats=one_of(True, False))
    norm = strategies.builds(dict, stats_mode=one_of(*STATS_MODES), momentum=one_of(0.1, None, 1.0), **switches)
    step = strategies.tuples(one_of(True, True, False), strategies.tuples(*[one_of(0, 1, 2, 3, 5)] * 4))
    return strategies.builds(
        SimpleNamespace,
        world_size=one_of(1, 2, 3, 4),
        impl=one_of("reference", "cpu"),
        dtypes=one_of(*DTYPES),  # of the input and of the parameters
        channels=one_of(1, 2, 3, 8, 17),
        lengths=strategies.tuples(*[one_of(7, 2, 33, 300, 0)] * 4),  # inputs are (size, channels, length)
        offset=one_of(0, 5, 100),  # between the inputs of one rank and the next
        channels_last=one_of(False, True),
        ddp=one_of(False, True),
        norms=strategies.lists(norm, min_size=1, max_size=3),
        steps=strategies.lists(step, min_size=1, max_size=3),  # whether it trains, and the batch sizes
        seed=strategies.integers(0, 99),
    )


def train(program):
    rank, channels, (dtype, param_dtype) = dist.get_rank(), program.channels, program.dtypes
    torch.manual_seed(program.seed)
    norms = [SyncBatchNorm(channels, EPS, impl=program.impl, dtype=param_dtype, **norm) for norm in program.norms]
    model = nn.Sequential(*(module for norm in norms for module in (norm, nn.Tanh())))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) / 4
    run = DistributedDataParallel(model) if program.ddp and list(model.parameters()) else model
    calls, steps = [], []
    for norm in norms:
        norm.register_forward_hook(lambda norm, args, y: calls.append((*args, y)))
    for training, sizes in program.steps:
        torch.manual_seed(program.seed + 100 * len(steps) + 1000 * rank)
        x = torch.randn(sizes[rank], channels, program.lengths[rank]) + program.offset * rank
        x = (x.mT.contiguous().mT if program.channels_last else x).to(dtype).requires_grad_(training)
        constants = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}  # without affine
        befores = [constants | {name: t.clone() for name, t in norm.state_dict().items()} for norm in norms]
        model.zero_grad()
        with torch.set_grad_enabled(training):
            y = run.train(training)(x)
        if training:
            for tensor in sum(calls, ()):
                tensor.retain_grad()
            y.backward(torch.randn_like(y))
            for parameter in model.parameters():
                parameter.data -= 0.01 * parameter.grad
        steps.append([{"before": before} for before in befores])
        for norm, (x, y), numbers in zip(norms, calls, steps[-1], strict=True):
            tensors = {"x": x, "y": y, "dx": x.grad, "dy": y.grad, **norm.state_dict()}
            tensors |= {f"{name}.grad": parameter.grad for name, parameter in norm.named_parameters()}
            numbers |= {name: t.detach().clone() for name, t in tensors.items() if t is not None}
        calls.clear()
    return steps


def errors(world, program):
    """Run the program and describe errors beyond rounding."""
    found = []
    for i, step in enumerate(zip(*world(program.world_size).run(train, program), strict=True)):
        for norm, ranks in zip(program.norms, zip(*step, strict=True), strict=True):
            expected = (expect_training if program.steps[i][0] else expect_eval)(norm, ranks)
            for rank, name, want, allowed in expected:
                got = ranks[rank][name]
                info = torch.finfo(got.dtype if got.is_floating_point() else torch.float64)
                stored = (4 if name.endswith("grad") else 1) * info.eps  # DDP averages in the dtype of the parameters
                apart = difference(got, want, allowed + stored * (want.abs() + info.smallest_normal), torch.float64)
                if got.shape != want.shape or apart.ratio > 1:
                    found.append(f"{name} of {norm} at step {i} on rank {rank} is off by {apart}")
                if name not in ("y", "dx") and not torch.equal(got, ranks[0][name]):
                    found.append(f"{name} of {norm} at step {i} differs between ranks 0 and {rank}")
    return found


def expect_eval(norm, ranks):
    """Yield each rank's output with a bound for F.batch_norm, which may round the mean to the dtype of the input."""
    for rank, call in enumerate(ranks):
        x, before = call["x"].double(), {name: t.double() for name, t in call["before"].items()}
        _, mean, var = forward([x], before["weight"], before["bias"], "exact", EPS)
        mean, var = before.get("running_mean", mean), before.get("running_var", var)
        scale, shift = over(x, before["weight"] * (var + EPS).rsqrt()), over(x, before["bias"])
        size = scale.abs() * (x.abs() + over(x, mean.abs() + 1)) + shift.abs()
        yield rank, "y", scale * (x - over(x, mean)) + shift, ROUNDINGS * torch.finfo(call["y"].dtype).eps * size


def expect_training(norm, ranks):
    """Yield each rank's results with their bounds: rounding is relative to the magnitudes that the formulas add up."""
    xs, dys = ([call[name].double() for call in ranks] for name in ("x", "dy"))
    before = ranks[0]["before"]
    gamma, beta = before["weight"].double(), before["bias"].double()
    want = train_step(xs, dys, gamma, beta, norm["stats_mode"], EPS)
    invstd = (want.var + EPS).rsqrt()
    tilt = want.mean.abs() * invstd
    acc, wide = torch.finfo(reference.accumulator(ranks[0]["x"])).eps, torch.finfo(torch.float64).eps
    unit = ROUNDINGS * (acc + wide * (1 + tilt) ** 2)  # large terms of the payload cancel
    xhats = [over(x, invstd) * (x - over(x, want.mean)).abs() for x in xs]
    sum_g = sum(flat(dy).abs().sum(1) for dy in dys)
    sum_g_xhat = sum(flat(dy.abs() * (xhat + 1)).sum(1) for dy, xhat in zip(dys, xhats, strict=True))
    steps = before.get("num_batches_tracked", torch.tensor(0)).double() + (want.elements > 0)
    factor = 0 if not want.elements else 1 / steps if norm["momentum"] is None else norm["momentum"]
    old = {name: before.get(name, torch.zeros(1)).double() * (1 - factor) for name in ("running_mean", "running_var")}
    same = {
        "weight.grad": (want.dgamma, unit * sum_g_xhat / len(xs)),
        "bias.grad": (want.dbeta, unit * sum_g / len(xs)),
        "running_mean": (old["running_mean"] + factor * want.mean, factor * unit / invstd),
        "running_var": (old["running_var"] + factor * want.unbiased_var, 2 * factor * unit * (want.var + EPS)),
        "num_batches_tracked": (steps, 0 * steps),
    }
    for rank, (x, dy, xhat) in enumerate(zip(xs, dys, xhats, strict=True)):
        size = over(x, gamma.abs()) * (xhat + 1) + over(x, beta.abs())
        sums = over(x, sum_g) + over(x, sum_g_xhat) * (xhat + over(x, 1 + tilt))
        dx_size = over(x, gamma.abs() * invstd) * (dy.abs() + sums / max(elements_per_channel(x), 1))
        own = {"y": (want.y[rank], over(x, unit) * size), "dx": (want.dx[rank], over(x, unit) * dx_size)}
        yield from ((rank, name, *bounded) for name, bounded in (own | same).items() if name in ranks[rank])


@pytest.mark.timeout(0)  # the ranks' timeout ends a program that hangs
def test_every_number_equals_the_definition(world, pytestconfig):
    minutes = pytestconfig.getoption("random_minutes")
    end = time.monotonic() + 60 * minutes

    @settings(max_examples=25, deadline=None, database=None, derandomize=not minutes)
    @given(programs())
    def check(program):
        assert not errors(world, program)

    check()
    while time.monotonic() < end:
        check()
