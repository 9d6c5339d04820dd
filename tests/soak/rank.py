"""What every rank of a program does: train, and hold every layer's numbers to the definition.

The inputs and gradients of the layers in the middle of a model come out by taps: zeros that are added before and after
each call of a layer, and whose gradients are those of what they were added to. So compiled code is watched, too.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sbnref import SyncBatchNorm
from sbnref.conformance.oracle import over, train_step
from sbnref.conformance.stages import Exact, Share, difference
from sbnref.modes import combine
from sbnref.running import RunningStats

from .program import Fault, Norm, Program

SLACK = 4  # times what a stage's own rounding explains: each inherits that of the stages before
_groups: dict[tuple[int, int], Any] = {}  # made once for a world: a group leaves sockets behind


class Block(nn.Module):
    """A norm that is called once or twice, or twins on the same tensor; and what mixes the channels after it."""

    def __init__(self, norm: Norm, into: int, **options: Any) -> None:
        super().__init__()
        settings = dict(affine=norm.affine, momentum=norm.momentum, track_running_stats=norm.running)
        made = [
            SyncBatchNorm(norm.channels, stats_mode=norm.stats_mode, **settings, **options)
            for _ in range(1 + (norm.block == "twins"))
        ]
        self.norms, self.block = nn.ModuleList(made), norm.block
        self.mix = nn.Parameter(torch.randn(into, norm.channels, dtype=options["dtype"]) / norm.channels**0.5)

    def calls(self) -> list[SyncBatchNorm]:
        """The layers in the order in which they are called."""
        return [*self.norms, *self.norms][: 1 + (self.block != "once")]

    def forward(self, x: Tensor, taps: list[Tensor], seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        y = self.tapped(self.norms[0], x, taps[:2], seen)
        if self.block == "twice":
            y = self.tapped(self.norms[0], y.tanh(), taps[2:], seen)
        if self.block == "twins":
            y = y.tanh() + self.tapped(self.norms[1], x, taps[2:], seen)
        return (y.movedim(1, -1) @ self.mix.to(y.dtype).T).movedim(-1, 1)

    def tapped(self, norm: nn.Module, x: Tensor, taps: list[Tensor], seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = x + taps[0]
        y = norm(x)
        seen.append((x, y))
        return y + taps[1]


class Model(nn.Module):
    """Blocks one after another. Besides its output it gives what each layer got and gave."""

    def __init__(self, program: Program, group: Any) -> None:
        super().__init__()
        eps = 0.1 if program.dtype == torch.float16 else 1e-5  # gradients of several layers fit into float16
        options = dict(impl=program.impl, group=group, dtype=program.parameter_dtype, eps=eps)
        into = [*(norm.channels for norm in program.norms[1:]), 2]
        self.blocks = nn.ModuleList(Block(norm, c, **options) for norm, c in zip(program.norms, into, strict=True))

    def calls(self) -> list[SyncBatchNorm]:
        """The layers in the order in which they are called."""
        return [norm for block in self.blocks for norm in block.calls()]

    def forward(self, x: Tensor, taps: list[Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        seen: list[tuple[Tensor, Tensor]] = []
        for block in self.blocks:
            many = 2 * len(block.calls())
            x, taps = block(x, taps[:many], seen), taps[many:]
        return x, seen


def train(program: Program, folder: str) -> tuple[list[str], dict[str, int]]:
    """Run the program as this rank.

    Returns:
        What is wrong: numbers of layers that are not what the definition gives. It is returned, not raised, so that
        the ranks stay for the next program.
        What this process holds afterwards: bytes of memory, file descriptors, threads.
    """
    os.environ["SBNREF_CUDASIM"] = "1"  # impl='cuda' is the simulated kernels, in this process
    rank = dist.get_rank()
    if program.fault is not None:
        Path(folder, f"pid-{rank}").write_text(str(os.getpid()))
    group = _group(program, rank)
    torch.manual_seed(program.seed)
    model = Model(program, group)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / 4)
    run: nn.Module = model
    if program.compiled != "no":
        torch._dynamo.reset()
        run = torch.compile(run, backend=program.compiled, fullgraph=True)
    if program.ddp:
        run = DistributedDataParallel(run, process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    wrong: list[str] = []
    try:
        # Rounded where eager code rounds: what comes out by the taps is then what the layers in between got.
        rounding = torch._inductor.config.patch(compile_threads=1, emulate_precision_casts=True)
        with rounding, torch._dynamo.config.patch(recompile_limit=64):
            for i in range(len(program.steps)):
                fault = program.fault
                here = fault is not None and (fault.rank, fault.step) == (rank, i)
                wrong += _step(program, i, model, run, group, fault if here else None, Path(folder))
                optimizer.step()
                optimizer.zero_grad()
    finally:
        if program.compiled != "no":
            torch._dynamo.reset()
    del model, run, optimizer
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    tasks, descriptors = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("task", "fd"))
    return wrong, {"memory": resident, "descriptors": descriptors, "threads": tasks}


def _group(program: Program, rank: int) -> Any:
    """The group that this rank's layers share statistics with; every rank of the world makes all of them."""
    if not program.split:
        return dist.group.WORLD
    key = program.world_size, program.split
    if key not in _groups:
        halves = [program.group_of(0), program.group_of(program.world_size - 1)]
        _groups[key] = [dist.new_group(ranks) for ranks in halves]
    return _groups[key][rank >= program.split]


def _input(program: Program, step: int) -> tuple[Tensor, Tensor]:
    """This rank's input (N, C, L), laid out as the program says, and the upstream gradient (N, 2, L)."""
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(program.seed + 1000 * step + 10 * rank)
    n, length = program.steps[step][rank], program.lengths[rank]
    x = torch.randn(n, program.norms[0].channels, length, generator=generator)
    if program.values == "a mean for each rank":
        x = x + 5 * rank
    if program.values == "an outlier" and x.numel():
        x.view(-1)[0] = 100
    x = x.to(program.dtype)
    if program.layout == "channels last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if program.layout == "with gaps":
        x = torch.stack([x, x], -1)[..., 0]
    return x.requires_grad_(), torch.randn(n, 2, length, generator=generator).to(program.dtype)


def _step(
    program: Program, step: int, model: Model, run: nn.Module, group: Any, fault: Fault | None, folder: Path
) -> list[str]:
    """A forward and a backward pass; what every layer got and gave is held to the definition. Returns what is wrong."""
    x, dout = _input(program, step)
    calls = model.calls()
    taps = [x.new_zeros(x.shape[0], c.num_features, x.shape[2]).requires_grad_() for c in calls for _ in range(2)]
    before = {norm: {name: t.clone() for name, t in norm.state_dict().items()} for norm in calls}
    if fault and fault.where == "forward":
        _strike(fault, model, folder)
    out, seen = run(x, taps)
    if fault and fault.where == "backward":
        out.register_hook(lambda grad: _strike(fault, model, folder))
    out.backward(dout)
    ranks: list[Any] = [None] * dist.get_world_size(group)
    mine = [(x.detach(), tap.grad) for (x, _), tap in zip(seen, taps[1::2], strict=True)]
    dist.all_gather_object(ranks, mine, group)
    gave = [(y.detach(), tap.grad) for (_, y), tap in zip(seen, taps[::2], strict=True)]
    rank = dist.get_rank(group)
    wrong = []
    for norm in dict.fromkeys(calls):
        which = [i for i, call in enumerate(calls) if call is norm]
        try:
            _hold(norm, before[norm], [[part[i] for part in ranks] for i in which], [gave[i] for i in which], rank)
        except AssertionError as error:
            wrong.append(f"step {step}, layer {which[0]}, rank {rank} of its group: {error}")
    same = [(norm.state_dict(), [p.grad for p in norm.parameters()]) for norm in calls]
    everywhere: list[Any] = [None] * len(ranks)
    dist.all_gather_object(everywhere, same, group)
    try:
        torch.testing.assert_close(everywhere, [same] * len(ranks), rtol=0, atol=0, equal_nan=True)
    except AssertionError as error:
        wrong.append(f"step {step}, statistics or gradients differ between ranks: {error}")
    return wrong


def _strike(fault: Fault, model: Model, folder: Path) -> None:
    """Let happen to this rank what is to happen."""
    (folder / "struck").write_text(str(time.time()))
    if fault.what == "raises":
        raise LookupError("planted")
    if fault.what == "gives bad input":
        norm = model.calls()[0]
        norm(torch.randn(2, norm.num_features + 1, 3))
    if fault.what == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.what == "exits":
        os._exit(3)
    if fault.what == "interrupts the program":
        launched_by = parent_process()  # None under torchrun
        os.kill(launched_by.pid if launched_by else os.getppid(), signal.SIGINT)
    time.sleep(600)


def _hold(
    norm: SyncBatchNorm,
    settings: dict[str, Tensor],
    inputs: list[list[tuple[Tensor, Tensor]]],
    gave: list[tuple[Tensor, Tensor]],
    rank: int,
) -> None:
    """Hold a layer's step to the oracle.

    Args:
        norm: the layer, after the step.
        settings: its state dict before it.
        inputs: for each call of it, every rank's input and upstream gradient.
        gave: for each call, this rank's output and gradient of the input.
        rank: this rank in the layer's group.
    """
    gamma, beta = (settings.get(k, torch.full((norm.num_features,), v)) for k, v in (("weight", 1.0), ("bias", 0.0)))
    nothing = torch.zeros(norm.num_features, dtype=torch.float64)
    expected = {name: (nothing, nothing) for name in ("gradient of weight", "gradient of bias")}  # and what is allowed
    got = {**norm.state_dict(), **{f"gradient of {name}": p.grad for name, p in norm.named_parameters()}}
    tracked = settings.get("num_batches_tracked")
    if norm.track_running_stats:
        expected |= {name: (settings[name].double(), nothing) for name in ("running_mean", "running_var")}
    for shares, (y, dx) in zip(inputs, gave, strict=True):
        xs, dys = map(list, zip(*shares, strict=True))
        want = train_step(xs, dys, gamma, beta, norm.stats_mode, norm.eps)
        allowed = _allowed(norm, xs, dys, gamma, beta, rank)
        _close("y", y, want.y[rank], allowed["y"])
        _close("dx", dx, want.dx[rank], allowed["dx"])
        moves = {"gradient of weight": want.dgamma, "gradient of bias": want.dbeta}
        keep = 1.0
        if tracked is not None and want.elements:
            tracked = tracked + 1
            factor = 1 / tracked.item() if norm.momentum is None else norm.momentum
            keep = 1 - factor
            moves |= {"running_mean": want.mean * factor, "running_var": want.unbiased_var * factor}
        for name, move in moves.items():
            value, bound = expected[name]
            value = value * (keep if name.startswith("running") else 1) + move
            rounds = torch.finfo(got[name].dtype) if name in got else None
            rounding = 0 if rounds is None else rounds.eps * (value.abs() + move.abs() + rounds.smallest_normal)
            expected[name] = value, bound + allowed[name] + rounding
    for name, (value, bound) in expected.items():
        if name in got:
            _close(name, got[name], value, bound)
    assert got.get("num_batches_tracked") == tracked, f"num_batches_tracked: {got['num_batches_tracked']} for {tracked}"


def _allowed(
    norm: SyncBatchNorm, xs: list[Tensor], dys: list[Tensor], gamma: Tensor, beta: Tensor, rank: int
) -> dict[str, Tensor]:
    """How far rounding may lead from the oracle: in each stage, and by what it inherits from the one before."""
    running = RunningStats(torch.zeros_like(gamma), torch.ones_like(gamma), torch.tensor(0))
    ranks = [
        Exact(Share(x, dy, gamma, beta, running, norm.eps, 1.0, norm.stats_mode, len(xs)))
        for x, dy in zip(xs, dys, strict=True)
    ]
    sent = [one.forward_stats() for one in ranks]
    total = torch.stack([one["payload"].value for one in sent]).sum(0)
    stats = combine(total, ranks[0].share.divisor)
    applied = [one.forward_apply(total) for one in ranks][rank]

    mean_error = torch.zeros_like(stats.mean)
    var_error = torch.zeros_like(stats.mean)
    for one, what in zip(ranks, sent, strict=True):
        weight = max(one.share.weight, 1)
        mean, error = (t[: norm.num_features] / weight for t in (what["payload"].value, what["payload"].allowed))
        part = one.share.weight / stats.divisor
        mean_error += part * error
        var_error += part * (what["variance"].allowed + 2 * (mean - stats.mean).abs() * error)
    for one in ranks:
        one.mean_error = one.mean_error + mean_error
        one.invstd_error = one.invstd_error + var_error / (stats.var + norm.eps)
    back = [one.backward_stats()["backward payload"] for one in ranks]
    dx = ranks[rank].backward_apply(torch.stack([one.value for one in back]).sum(0))["dx"]
    sum_error = torch.stack([one.allowed for one in back]).sum(0)
    bias, weight = (sum_error / len(xs)).chunk(2)

    x, invstd = xs[rank].double(), (stats.var + norm.eps).rsqrt()
    scale = gamma.double().abs() * invstd
    xhat = over(x, invstd) * (x - over(x, stats.mean))
    skew = invstd * stats.mean * (1 - stats.weight / stats.divisor)
    a_error, b_error = sum_error.chunk(2)
    inherited = over(x, a_error) + over(x, b_error) * (xhat.abs() + over(x, skew.abs()))
    spread = over(x, gamma.double().abs()) * xhat.abs()
    return {
        "y": applied["y"].allowed + over(x, scale * mean_error) + spread * over(x, var_error * invstd**2),
        "dx": dx.allowed + over(x, scale) * ranks[rank].share.k / stats.divisor * inherited,
        "gradient of weight": weight,
        "gradient of bias": bias,
        "running_mean": applied["running_mean"].allowed + mean_error,
        "running_var": applied["running_var"].allowed + 2 * var_error,
    }


def _close(name: str, got: Tensor, want: Tensor, allowed: Tensor) -> None:
    apart = difference(got, want, SLACK * allowed, got.dtype)
    where = f"{name}[{', '.join(map(str, apart.index))}] is {apart.got!r}, expected {apart.want!r}"
    assert apart.share <= 1, f"{where}: {apart.share:.3g} times what is allowed"
