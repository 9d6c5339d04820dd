"""``sbnref.diagnose``: every planted fault is the first suspect, two are the first two, and healthy runs have none."""

import copy
import json
import pickle
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sbnref
from sbnref.conformance.watch import Watch
from sbnref.debugging import recording
from sbnref.debugging.diagnose import Diagnosis, rules
from sbnref.functional import sync_batch_norm
from sbnref.interop.peers import MMCVSyncBatchNorm

STEPS = 30


class SyncBatchNormLikeTorchs(nn.modules.batchnorm._BatchNorm):
    """torch's synchronized layer refuses CPU tensors; this one computes what it does."""

    def forward(self, x: Tensor) -> Tensor:
        buffers = self.running_mean, self.running_var
        if not self.training:
            return nn.functional.batch_norm(x, *buffers, self.weight, self.bias, False, 0, self.eps)
        tracked = self.num_batches_tracked
        return sync_batch_norm(
            x, *buffers, self.weight, self.bias, True, self.momentum, self.eps,
            num_features=self.num_features, num_batches_tracked=tracked, stats_mode="exact",
        )  # fmt: skip


NORMS: dict[str, Callable[..., nn.Module]] = {
    "plain": nn.BatchNorm2d,
    "torch": SyncBatchNormLikeTorchs,
    "mmcv": MMCVSyncBatchNorm,
    "ours": lambda channels, **options: sbnref.SyncBatchNorm(channels, stats_mode="exact", **options),
    "default": sbnref.SyncBatchNorm,
    "N": lambda channels, **options: sbnref.SyncBatchNorm(channels, stats_mode="N", **options),
}


def network(norm: str, **options: object) -> nn.Sequential:
    torch.manual_seed(0)
    make = NORMS[norm]
    layers = {
        "conv1": nn.Conv2d(3, 8, 3),
        "bn1": make(8, **options),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(8, 8, 3),
        "bn2": make(8, **options),
        "relu2": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(8, 2),
    }
    return nn.Sequential(OrderedDict(layers))


@dataclass
class Plan:
    """A training: what is done to the model, to each step's model and batch, and to an evaluation batch."""

    norm: str = "ours"
    options: dict = field(default_factory=dict)
    size: Callable[[int, int], int] = lambda rank, step: 8
    width: int = 8
    build: Callable[[nn.Module], object] = lambda model: None
    start: Callable[[nn.Module, int], object] = lambda model, rank: None
    step: Callable[[nn.Module, int, int], object] = lambda model, rank, step: None
    batch: Callable[[Tensor, int, int], Tensor] = lambda x, rank, step: x
    evaluation: Callable[[Tensor, int], Tensor] = lambda x, rank: x
    steps: int = STEPS
    every: int = 1
    broadcast_buffers: bool = False
    train: bool = True
    warm: bool = True
    lr: float = 0.02


def run(plan: Plan) -> Diagnosis:
    rank = dist.get_rank() if dist.is_initialized() else 0
    inner = network(plan.norm, **plan.options)
    plan.build(inner)
    model = inner
    if dist.is_initialized():
        model = DistributedDataParallel(inner, broadcast_buffers=plan.broadcast_buffers)
    torch.manual_seed(rank + 1)
    if plan.warm:
        warm_up(inner, plan)
    plan.start(inner, rank)
    optimizer = torch.optim.SGD(model.parameters(), plan.lr)
    torch.manual_seed(rank + 100)
    with sbnref.diagnose(model, every=plan.every, timeout=30) as d:
        for step in range(1, plan.steps + 1):
            model.train(plan.train)
            plan.step(inner, rank, step)
            x, y = images(plan.size(rank, step), plan.width)
            scores = model(plan.batch(x, rank, step))
            loss = nn.functional.cross_entropy(scores, y, reduction="sum") / max(len(y), 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for _ in range(3):
                model(plan.evaluation(images(32, plan.width)[0], rank))
    return d


def images(n: int, width: int) -> tuple[Tensor, Tensor]:
    y = torch.randint(0, 2, (n,))
    return torch.randn(n, 3, width, width) + 0.5 * y[:, None, None, None], y


def warm_up(model: nn.Module, plan: Plan) -> None:
    """Running statistics as after a long training, the same on every rank."""
    probe, dtype = copy.deepcopy(model), model.conv1.weight.dtype
    probe.bn1, probe.bn2 = (nn.BatchNorm2d(8, momentum=1.0, dtype=dtype) for _ in range(2))
    torch.manual_seed(7)
    probe(images(256, plan.width)[0].to(dtype))
    for name in ("bn1", "bn2"):
        for buffer in ("running_mean", "running_var"):
            getattr(getattr(model, name), buffer).copy_(getattr(getattr(probe, name), buffer))


def on(rank: int, change: Callable[[nn.Module], object]) -> Callable[[nn.Module, int], None]:
    def start(model: nn.Module, here: int) -> None:
        if here == rank:
            change(model)

    return start


def nan_in(x: Tensor, rank: int, step: int) -> Tensor:
    if rank == 1 and step == 5:
        x[0, 0, 0, 0] = torch.nan
    return x


def shift_on(rank: int) -> Callable[[Tensor, int, int], Tensor]:
    return lambda x, here, step: x + 3 * (here == rank)


def set_all(**values: object) -> Callable[[nn.Module, int], None]:
    def change(model: nn.Module, rank: int) -> None:
        for layer in (model.bn1, model.bn2):
            vars(layer).update(values)

    return change


class InfLayer(nn.Module):
    """Makes Inf of what it is given, on one rank in one step."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / 0 if self.calls == 4 and dist.get_rank() == 2 else x


def unconvert(name: str) -> Callable[[nn.Module], object]:
    return lambda model: setattr(model, name, nn.BatchNorm2d(8))


def scale(buffer: str, factor: float, shift: float = 0) -> Callable[[nn.Module], object]:
    return lambda model: model.get_buffer(buffer).mul_(factor).add_(shift)


def frozen(name: str, ranks: tuple[int, ...]) -> Callable[[nn.Module, int, int], object]:
    return lambda model, rank, step: getattr(model, name).train(rank not in ranks)


def few(rank: int, step: int) -> int:
    return 1


def hold(model: nn.Module, rank: int) -> None:
    model.bn1.running_mean += 2


# name: (the plan, the rule, the first layer, the ranks that stand out or None for all)
FAULTS = {
    "checkpoint on rank 0, ours": (Plan(start=on(0, scale("bn2.running_mean", 1, 7))), "running statistics", "bn2", 0),
    "checkpoint on rank 0, torch": (
        Plan("torch", start=on(0, scale("bn1.running_var", 50))), "running statistics", "bn1", 0),
    "buffers of rank 2, plain": (
        Plan("plain", start=on(2, scale("bn1.running_mean", 1, 30))), "running statistics", "bn1", 2),
    "buffers of rank 1, mmcv": (
        Plan("mmcv", start=on(1, scale("bn2.running_mean", 1, 7))), "running statistics", "bn2", 1),
    "empty rank, default": (
        Plan("default", size=lambda r, s: 0 if r == 2 and s % 3 else 8), "statistics mode", "bn1", 2),
    "empty rank, mmcv": (Plan("mmcv", size=lambda r, s: 0 if r == 1 and s % 2 else 8), "statistics mode", "bn1", 1),
    "nan in the buffers": (Plan(start=on(2, scale("bn1.running_var", float("nan")))), "NaN or Inf", "bn1", 2),
    "uneven ranks, default": (Plan("default", size=lambda r, s: (2, 16, 8)[r]), "statistics mode", "bn1", None),
    "uneven maps, N": (Plan("N", batch=lambda x, r, s: x.repeat(1, 1, 1 + r, 2 * r + 1) + r * 0.4),
                       "statistics mode", "bn1", None),
    "nan in the data, ours": (Plan(batch=nan_in), "NaN or Inf", "bn1", 1),
    "nan in the data, plain": (Plan("plain", batch=nan_in), "NaN or Inf", "bn1", 1),
    "inf between layers": (Plan(start=lambda m, r: setattr(m, "relu1", InfLayer())), "NaN or Inf", "bn2", 2),
    "eval mode on one rank": (Plan("plain", step=frozen("bn1", (1,))), "eval mode", "bn1", 1),
    "eval mode on all ranks": (Plan(step=frozen("bn2", (0, 1, 2))), "eval mode", "bn2", None),
    "eval mode of the model": (Plan(train=False), "eval mode", "bn1", None),
    "one layer unconverted": (Plan(build=unconvert("bn2")), "unconverted", "bn2", None),
    "one layer unconverted, torch": (Plan("torch", build=unconvert("bn1")), "unconverted", "bn1", None),
    "momentum differs": (Plan(start=on(2, lambda m: setattr(m.bn2, "momentum", 0.01))), "settings", "bn2", 2),
    "eps differs": (Plan(start=on(1, lambda m: setattr(m.bn1, "eps", 1e-2))), "settings", "bn1", 1),
    "eps differs, plain": (Plan("plain", start=on(0, lambda m: setattr(m.bn1, "eps", 0.1))), "settings", "bn1", 0),
    "mode differs": (Plan(start=on(1, lambda m: setattr(m.bn1, "stats_mode", "default"))), "settings", "bn1", 1),
    "weights differ": (Plan("plain", start=on(1, lambda m: m.bn2.weight.data.mul_(2))), "weights", "bn2", 1),
    "weights differ, ours": (Plan(start=on(2, lambda m: m.bn1.bias.data.add_(1))), "weights", "bn1", 2),
    "sharded by class, ours": (Plan(batch=shift_on(1)), "ranks apart", "bn1", 1),
    "sharded by class, plain": (Plan("plain", batch=shift_on(2)), "ranks apart", "bn1", 2),
    "stale statistics, ours": (
        Plan(start=lambda m, r: scale("bn1.running_var", 1000)(m)), "stale statistics", "bn1", None),
    "frozen momentum": (
        Plan(start=lambda m, r: (set_all(momentum=0.001)(m, r), hold(m, r))), "slow momentum", "bn1", None),
    "frozen momentum, plain": (
        Plan("plain", start=lambda m, r: (set_all(momentum=0.0)(m, r), hold(m, r))), "slow momentum", "bn1", None),
    "fast momentum, plain": (Plan("plain", {"momentum": 0.9}, lambda r, s: 2, 6), "fast momentum", "bn1", None),
    "fast momentum, ours": (Plan("ours", {"momentum": 1.0}, lambda r, s: 1, 6), "fast momentum", "bn1", None),
    "evaluation data not normalized": (Plan(evaluation=lambda x, r: 3 * x + 1), "evaluation inputs", "bn1", None),
    "evaluation data, plain": (Plan("plain", evaluation=lambda x, r: x + 2), "evaluation inputs", "bn1", None),
    "dropout before a layer": (
        Plan(build=lambda m: setattr(m, "relu1", nn.Sequential(nn.ReLU(), nn.Dropout(0.9)))),
        "evaluation inputs", "bn2", None),
    "few values, plain": (Plan("plain", size=lambda r, s: 2, width=6), "few values", "bn2", None),
    "few values, ours": (Plan(size=few, width=6), "few values", "bn2", None),
    "far from zero": (Plan("plain", build=lambda m: m.conv1.bias.data.add_(300)), "far from zero", "bn1", None),
    "payload": (Plan(build=lambda m: m.double().conv1.bias.data.add_(1e7),
                     batch=lambda x, r, s: x.double(), evaluation=lambda x, r: x.double()),
                "payload", "bn1", None),
}  # fmt: skip

PAIRS = {
    "eval mode and checkpoint": (
        Plan("plain", start=on(1, scale("bn2.running_mean", 1, 20)), step=frozen("bn1", (0,))),
        {("eval mode", "bn1"), ("running statistics", "bn2")},
    ),
    "checkpoint and empty rank": (
        Plan("default", start=on(0, scale("bn2.running_mean", 1, 7)), size=lambda r, s: 0 if r == 2 and s % 3 else 8),
        {("running statistics", "bn2"), ("statistics mode", "bn1")},
    ),
    "eps and evaluation data": (
        Plan(start=on(1, lambda m: setattr(m.bn2, "eps", 1e-2)), evaluation=lambda x, r: 3 * x + 1),
        {("settings", "bn2"), ("evaluation inputs", "bn1")},
    ),
    "shards and momentum": (
        Plan("plain", start=on(0, lambda m: setattr(m.bn2, "momentum", 0.5)), batch=shift_on(2)),
        {("settings", "bn2"), ("ranks apart", "bn1")},
    ),
    "nan and unconverted": (
        Plan("torch", build=unconvert("bn2"), batch=nan_in), {("NaN or Inf", "bn1"), ("unconverted", "bn2")},
    ),
    "weights and shards": (
        Plan("ours", start=on(2, lambda m: m.bn2.weight.data.mul_(3)), batch=shift_on(1)),
        {("weights", "bn2"), ("ranks apart", "bn1")},
    ),
    "slow momentum and empty rank, mmcv": (
        Plan("mmcv", start=lambda m, r: (set_all(momentum=0.001)(m, r), hold(m, r)),
             size=lambda r, s: 0 if r == 1 and s % 2 else 8),
        {("slow momentum", "bn1"), ("statistics mode", "bn1")},
    ),
    "two settings": (
        Plan(start=lambda m, r: r == 1 and (setattr(m.bn1, "eps", 1e-3), setattr(m.bn2, "momentum", 0.3))),
        {("settings", "bn1"), ("settings", "bn2")},
    ),
}  # fmt: skip

HEALTHY = {
    "ours": Plan(),
    "plain": Plan("plain"),
    "torch": Plan("torch"),
    "mmcv": Plan("mmcv"),
    "default": Plan("default"),
    "N": Plan("N"),
    "N, ragged": Plan("N", size=lambda r, s: 4 + 3 * r),
    "ours, ragged": Plan(size=lambda r, s: (r + s) % 5 + 1),
    "ours, empty": Plan(size=lambda r, s: 0 if r == s % 3 else 8),
    "torch, ragged": Plan("torch", size=lambda r, s: 2 + 5 * r),
    "plain, ragged": Plan("plain", size=lambda r, s: 4 + (r + s) % 3),
    "plain, empty": Plan("plain", size=lambda r, s: 0 if r == 1 and s % 3 == 0 else 8),
    "plain, buffers broadcast": Plan("plain", broadcast_buffers=True),
    "plain, cumulative": Plan("plain", {"momentum": None}),
    "ours, cumulative": Plan("ours", {"momentum": None}),
    "momentum 0.01": Plan("ours", {"momentum": 0.01}),
    "momentum 0.3": Plan("torch", {"momentum": 0.3}, size=lambda r, s: 16),
    "eps 1e-3": Plan("plain", {"eps": 1e-3}),
    "large batch": Plan("ours", size=lambda r, s: 32, width=10),
    "small batch": Plan("ours", size=lambda r, s: 2, width=10),
    "every third step": Plan("plain", every=3, steps=45),
    "no running statistics": Plan("ours", {"track_running_stats": False}, warm=False),
    "offset": Plan("default", batch=lambda x, r, s: x + 5, evaluation=lambda x, r: x + 5),
    "larger steps": Plan("plain", lr=0.1, steps=60),
    "from scratch": Plan("plain", warm=False, steps=45),
    "from scratch, ours": Plan(warm=False, steps=45, width=10),
    "from scratch, default": Plan("default", {"momentum": 0.2}, warm=False, size=lambda r, s: 4),
    "from scratch, torch, ragged": Plan("torch", warm=False, steps=45, size=lambda r, s: 2 + r + s % 2),
}


def check(diagnosis: Diagnosis, rule: str, layer: str, rank: int | None) -> None:
    first = diagnosis.suspects[0]
    assert (first.rule, first.layers[0]) == (rule, layer), str(diagnosis)
    assert rank is None or first.ranks == (rank,), str(diagnosis)


QUICK = {"checkpoint on rank 0, ours", "empty rank, mmcv", "nan in the data, plain", "eps differs", "few values, plain"}


@pytest.mark.parametrize("name", sorted(QUICK))
def test_the_planted_fault_is_the_first_suspect(world, name):
    plan, *expected = FAULTS[name]
    for diagnosis in world(3).run(run, plan):
        check(diagnosis, *expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAULTS.keys() - QUICK))
def test_every_planted_fault_is_the_first_suspect(world, name):
    test_the_planted_fault_is_the_first_suspect(world, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_two_planted_faults_are_the_first_two_suspects(world, name):
    plan, expected = PAIRS[name]
    diagnosis = world(3).run(run, plan)[0]
    assert {(s.rule, s.layers[0]) for s in diagnosis.suspects[:2]} == expected, str(diagnosis)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_trainings_raise_no_suspect(world, name):
    plan = HEALTHY[name]
    diagnosis = world(3).run(run, plan)[2]
    assert diagnosis.suspects == [], str(diagnosis)
    assert str(diagnosis) == (
        f"Examined: 2 batch norms, {plan.steps} training steps, 3 evaluation steps, 3 ranks. Nothing was found."
    )


def test_the_report_has_evidence_and_remedy(world):
    plan = Plan(start=on(0, scale("bn2.running_mean", 1, 7)))
    diagnosis = world(3).run(run, plan)[1]
    lines = str(diagnosis).splitlines()
    assert re.fullmatch(
        r"1. bn2  running statistics differ between ranks 0 and {1, 2}: mean by \d+ std, since step 1", lines[0]
    )
    assert lines[1] == "   All settings agree, so load the same state on every rank:"
    assert lines[2] == "       for buffer in model.buffers(): torch.distributed.broadcast(buffer, src=0)"
    assert lines[3].endswith("Nothing else was found.")
    assert "running statistics differ" in diagnosis._repr_html_()
    assert json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))["suspects"][0]["ranks"] == [0]


def test_remedies_name_the_layers_in_code():
    model = network("plain", momentum=0.0)
    with sbnref.diagnose(model) as d:
        for _ in range(30):
            model(torch.randn(8, 3, 8, 8) + 2)
    assert d.suspects[0].layers == ("bn1", "bn2")
    exec(d.suspects[0].code, {"model": model, "d": d})
    assert model.bn1.momentum == model.bn2.momentum == 0.1
    assert d.examined == {"batch_norms": 2, "training_steps": 30, "evaluation_steps": 0, "ranks": 1}


def wrapped_and_evaluated() -> tuple[str, tuple[float, float], int]:
    """The remedy in a wrapped model, the momenta after it ran, and the evaluation steps, in inference mode."""
    model = DistributedDataParallel(network("ours", momentum=0.0))
    with sbnref.diagnose(model) as d:
        for _ in range(20):
            model(torch.randn(8, 3, 8, 8) + 2)
        model.eval()
        with torch.inference_mode():
            model(torch.randn(8, 3, 8, 8) + 2)
    exec(d.suspects[0].code, {"model": model, "d": d})
    return d.suspects[0].rule, (model.module.bn1.momentum, model.module.bn2.momentum), d.examined["evaluation_steps"]


def test_remedies_fit_wrapped_models_and_inference_mode_is_seen(world):
    assert world(3).run(wrapped_and_evaluated) == [("slow momentum", (0.1, 0.1), 1)] * 3


def calls() -> tuple[bool, int, int]:
    """Whether outputs and buffers are equal with and without; collectives in the steps; hooks that are left."""
    models = [network("ours") for _ in range(2)]
    x = torch.randn(4, 3, 8, 8)
    with sbnref.diagnose(models[0]), Watch() as watched:
        first = models[0](x)
    with Watch() as plain:
        second = models[1](x)
    states = zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True)
    same = torch.equal(first, second) and all(torch.equal(a, b) for a, b in states)
    hooks = sum(len(m._forward_pre_hooks) for m in models[0].modules())
    return same, len(watched.collectives) - len(plain.collectives), hooks


def test_it_changes_nothing_and_communicates_nothing_in_a_step(world):
    assert world(3).run(calls) == [(True, 0, 0)] * 3


def leaves_early() -> Diagnosis:
    rank, model = dist.get_rank(), network("plain")
    with sbnref.diagnose(model, timeout=30) as d:
        for step in range(6):
            if rank == 2 and step == 4:
                break
            if rank != 1 or step % 2:  # rank 1 trains half of the steps
                model(torch.randn(8, 3, 8, 8))
    return d


def test_ranks_that_run_fewer_steps_keep_none_waiting(world):
    for d in world(3).run(leaves_early):
        assert d.examined["ranks"] == 3
        assert "The ranks trained different numbers of steps: 6, 3 and 4." in str(d)


class QuietSyncBatchNorm(nn.BatchNorm2d):
    """Synchronized by its name alone, so that no rank waits for one that skips it."""


def skips() -> Diagnosis:
    model = network("plain")
    model.bn1, model.bn2 = QuietSyncBatchNorm(8), QuietSyncBatchNorm(8)
    with sbnref.diagnose(model, timeout=30) as d:
        for step in range(6):
            x = model[:4](torch.randn(8, 3, 8, 8))
            if dist.get_rank() != 1 or step < 4:
                model[4:](x)
    return d


def test_a_rank_that_skips_a_layer_is_named(world):
    d = world(3).run(skips)[0]
    assert d.suspects[0].rule == "skipped"
    assert d.suspects[0].evidence == "rank 1 did not call it in 2 of 6 training steps"


def raises() -> tuple[Diagnosis, float, bool]:
    rank, model, caught = dist.get_rank(), network("plain"), False
    start = time.perf_counter()
    try:
        with sbnref.diagnose(model, timeout=30) as d:
            for step in range(3):
                if rank == 1 and step == 2:
                    raise ValueError("no such file")
                model(torch.randn(8, 3, 8, 8))
    except ValueError:
        caught = True
    return d, time.perf_counter() - start, caught


def test_a_rank_that_raises_keeps_none_waiting(world):
    results = world(3).run(raises)
    assert [caught for *_, caught in results] == [False, True, False]
    assert max(seconds for _, seconds, _ in results) < 20
    for d, *_ in results[::2]:
        assert d.examined["ranks"] == 3
        assert "Rank 1 left after 2 training steps: ValueError: no such file" in str(d)


def trains_for_long(every: int) -> tuple[list[int], list[str]]:
    rank, model = dist.get_rank(), nn.Sequential(nn.BatchNorm1d(2))
    recorder = recording.Recorder(model, dict(model.named_children()), every)
    with recorder:
        for _ in range(400 + rank):  # so that rank 1 alone thins out once more
            model(torch.randn(8, 2))
    recordings = recording.share(recorder.finish(None), lambda recordings: recordings, 30)
    return [row.step for row in recordings[rank].rows["0"]], [s.rule for s in rules.suspects(recordings)[0]]


def test_older_steps_are_thinned_out_and_no_rank_seems_to_skip_a_layer(world, monkeypatch):
    for every, newest in ((1, 385), (3, 355)):
        for rank, (steps, found) in enumerate(world(2).run(trains_for_long, every)):
            assert len(steps) <= recording.MOST_STEPS
            assert steps[0] == 1
            assert steps[-recording.NEWEST] == newest + rank * (every == 1)
            assert "skipped" not in found


def alone() -> str | None:
    if dist.get_rank() != 0:
        return None
    model = network("plain")
    with sbnref.diagnose(model, timeout=0.2) as d:
        model(torch.randn(8, 3, 8, 8))
    return str(d)


def test_a_rank_that_is_alone_in_the_block_waits_for_the_timeout():
    with sbnref.Ranks(2) as ranks:
        assert "Records of rank 1 are missing." in ranks.run(alone)[0]


def test_a_failure_inside_is_a_line_and_no_exception(monkeypatch):
    def fails(*_: object) -> None:
        raise ZeroDivisionError("planted")

    for target, line in (
        ((recording, "_statistics"), "Rank 0 did not record all: ZeroDivisionError: planted"),
        ((rules, "layers_of"), "Please report this: combining the records failed with ZeroDivisionError: planted."),
        ((recording, "_running"), "Rank 0 did not record all: ZeroDivisionError: planted"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*target, fails)
            model = network("plain")
            with sbnref.diagnose(model) as d:
                model(torch.randn(8, 3, 8, 8))
            assert line in str(d)


def test_submodules_that_are_called_one_by_one_have_steps():
    model = network("plain")
    with sbnref.diagnose(model, every=2) as d:
        for _ in range(4):
            model.bn2(model.conv2(model.bn1(model.conv1(torch.randn(8, 3, 8, 8)))))
    assert d.examined["training_steps"] == 4
    with sbnref.diagnose(model) as d:
        pass
    assert str(d).endswith("call the model without it.")


class Duck(nn.Module):
    """A batch norm by its attributes alone, as mmcv's is."""

    def __init__(self) -> None:
        super().__init__()
        self.eps, self.momentum, self.weight = 1e-5, 0.0, None
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


def test_a_batch_norm_is_known_by_its_attributes():
    model = nn.Sequential(Duck())
    with sbnref.diagnose(model) as d:
        for _ in range(5):
            model(torch.randn(64, 3) + 5)
    assert [(s.rule, s.layers) for s in d.suspects] == [("slow momentum", ("0",))]


def healthy(model: nn.Module, batch, steps: int = 60, evaluate=None, **options) -> Diagnosis:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with sbnref.diagnose(model, **options) as d:
        for _ in range(steps):
            loss = model(batch()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for x in evaluate or [batch(), batch()]:
                model(x)
    return d


def dead(layer: nn.Linear) -> nn.Linear:
    layer.bias.data[:2] = -100  # with a ReLU behind it
    return layer


UNUSUAL = {
    "dead channels": (lambda: nn.Sequential(dead(nn.Linear(10, 32)), nn.ReLU(), nn.BatchNorm1d(32)),
                      lambda: torch.randn(64, 10), None),
    "rare events": (lambda: nn.Sequential(nn.BatchNorm1d(200), nn.Linear(200, 4)),
                    lambda: (torch.rand(96, 200) < torch.logspace(-3, -0.5, 200)).float(), None),
    "heavy tails": (lambda: nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, 4)),
                    lambda: (1.5 * torch.randn(64, 20)).exp(), None),
    "two samples to evaluate": (lambda: nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.Linear(32, 3)),
                                lambda: torch.randn(64, 10), [torch.randn(1, 10), torch.randn(1, 10)]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_but_healthy_inputs_raise_no_suspect(name, seed):
    torch.manual_seed(seed)
    make, batch, evaluate = UNUSUAL[name]
    d = healthy(make(), batch, evaluate=evaluate)
    assert d.suspects == [], str(d)


def test_a_copy_of_the_model_has_no_recorder():
    model = network("plain")
    with sbnref.diagnose(model) as d:
        model(torch.randn(8, 3, 8, 8))
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for other in copies:
            other(torch.randn(8, 3, 8, 8))
    assert d.examined["training_steps"] == 1
    hooks = [hook for other in copies for module in other.modules() for hook in module._forward_pre_hooks.values()]
    assert {hook.__qualname__ for hook in hooks} == {"nullcontext.__exit__"}


def evaluates_from_inside() -> Diagnosis:
    model = DistributedDataParallel(network("ours"))
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    with sbnref.diagnose(model, timeout=30) as d:
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(images(8, 8)[0]).square().mean().backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for _ in range(3 if dist.get_rank() == 0 else 0):
                model.module(40 * images(8, 8)[0] + 9)
    return d


def test_evaluation_of_the_inner_module_on_one_rank(world):
    d = world(3).run(evaluates_from_inside)[1]
    assert [s.rule for s in d.suspects][:1] == ["evaluation inputs"], str(d)
    assert d.examined["evaluation_steps"] == 3


def test_every_records_all_passes_of_a_step():
    """A discriminator sees real and generated data in turn, and its statistics are those of both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for every in (1, 2, 3):
        with sbnref.diagnose(model, every=every) as d:
            for _ in range(60):
                loss = model(torch.randn(64, 10) - 1).mean() - model(torch.randn(64, 10) + 2).mean()
                optimizer.zero_grad()
                loss.tanh().backward()
                optimizer.step()
        assert "stale statistics" not in [s.rule for s in d.suspects], str(d)


class Masked(nn.BatchNorm1d):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x) * mask


class ChannelsLast(Duck):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_an_unusual_layer_hides_nothing():
    masked = Masked(4, momentum=0.0)
    with sbnref.diagnose(masked) as d:
        for _ in range(30):
            masked(torch.randn(64, 4) + 5, torch.ones(64, 1))
    assert [s.rule for s in d.suspects] == ["slow momentum"]

    model = nn.Sequential(ChannelsLast(), nn.Flatten(), nn.BatchNorm1d(12, momentum=0.0))
    with sbnref.diagnose(model) as d:
        for _ in range(30):
            model(torch.randn(64, 4, 3) + 5)
    assert [(s.rule, s.layers) for s in d.suspects] == [("slow momentum", ("2",))]
    assert "layer 0 got an input of shape (64, 4, 3), expected (N, 3, *)" in str(d)

    def fails(*_: object) -> None:
        raise ZeroDivisionError("planted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "RULES", (rules.Rule("planted", fails), *rules.RULES))
        with sbnref.diagnose(model) as d:
            for _ in range(30):
                model[1:](torch.randn(64, 4, 3) + 5)
    assert [s.rule for s in d.suspects] == ["slow momentum"]
    assert "the rule 'planted' failed on layer 2 with ZeroDivisionError: planted." in str(d)


def without_ddp() -> Diagnosis:
    model = network("plain")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(dist.get_rank())
    with sbnref.diagnose(model, timeout=30) as d:
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images(8, 8)[0]), torch.randint(0, 2, (8,))).backward()
            optimizer.step()
    return d


def test_a_missing_ddp_is_named(world):
    d = world(3).run(without_ddp)[0]
    assert (d.suspects[0].rule, d.suspects[0].code) == (
        "weights",
        "model = torch.nn.parallel.DistributedDataParallel(model)",
    )


def test_settings_that_change_during_training():
    model = nn.Sequential(nn.BatchNorm1d(8, momentum=0.9))
    with sbnref.diagnose(model) as d:
        for step in range(60):
            model[0].momentum = max(0.05, 0.9 * 0.9**step)
            model(torch.randn(16, 8))
    assert "fast momentum" not in [s.rule for s in d.suspects]


def test_the_report_before_the_end_and_after_few_steps():
    model = network("plain")
    with sbnref.diagnose(model) as d:
        assert str(d).endswith("The block has not ended yet.")
        model(torch.randn(8, 3, 8, 8))
    assert d.suspects == []
    assert "1 training step is too few: record 30 or more." in str(d)


def test_bad_use_says_what_to_do():
    for error, message, model, every in (
        (ValueError, "a batch norm, found none in Sequential", nn.Sequential(nn.InstanceNorm2d(3)), 1),
        (ValueError, "every to be at least 1, got 0", nn.BatchNorm2d(3), 0),
        (TypeError, "got list", [], 1),
    ):
        with pytest.raises(error, match=message), sbnref.diagnose(model, every=every):
            pass
