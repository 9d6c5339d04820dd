"""``sbnref.diagnose``: a planted fault is the first suspect, two are the first two, and healthy runs have none."""

import copy
import json
import pickle
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
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
from sbnref.interop.peers import MMCVSyncBatchNorm

STEPS = 30


NORMS: dict[str, Callable[..., nn.Module]] = {
    "plain": nn.BatchNorm2d,
    "mmcv": MMCVSyncBatchNorm,
    "ours": lambda channels, **options: sbnref.SyncBatchNorm(channels, stats_mode="exact", **options),
    "default": sbnref.SyncBatchNorm,
    "N": lambda channels, **options: sbnref.SyncBatchNorm(channels, stats_mode="N", **options),
    "quiet": type("QuietSyncBatchNorm", (nn.BatchNorm2d,), {}),  # named like a synchronized layer, but local
}


def network(norm: str, **options: object) -> nn.Sequential:
    torch.manual_seed(0)
    make = NORMS[norm]
    layers = {"conv1": nn.Conv2d(3, 8, 3), "bn1": make(8, **options), "relu1": nn.ReLU()}
    layers |= {"conv2": nn.Conv2d(8, 8, 3), "bn2": make(8, **options), "relu2": nn.ReLU()}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(8, 2)}
    return nn.Sequential(OrderedDict(layers))


@dataclass
class Plan:
    """A training: changes to the model, to each step's model and batch, and to an evaluation batch."""

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
    rank, inner = dist.get_rank(), network(plan.norm, **plan.options)
    plan.build(inner)
    model = DistributedDataParallel(inner, broadcast_buffers=plan.broadcast_buffers)
    if plan.warm:
        warm_up(inner, plan)
    plan.start(inner, rank)
    torch.manual_seed(rank + 100)

    def loss(step: int) -> Tensor:
        model.train(plan.train)
        plan.step(inner, rank, step)
        x, y = images(plan.size(rank, step), plan.width)
        return nn.functional.cross_entropy(model(plan.batch(x, rank, step)), y, reduction="sum") / max(len(y), 1)

    evaluations = [lambda: model(plan.evaluation(images(32, plan.width)[0], rank))] * 3
    return trained(model, loss, evaluations, plan.steps, plan.lr, plan.every)


def trained(model: nn.Module, loss: Callable[[int], Tensor], evaluations=(), steps=STEPS, lr=0.02, every=1):
    optimizer = torch.optim.SGD(model.parameters(), lr)
    with sbnref.diagnose(model, every=every, timeout=30) as d:
        for step in range(1, steps + 1):
            value = loss(step)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for evaluate in evaluations:
                evaluate()
    return d


def called(model: nn.Module, batch: Callable[[], Tensor], steps=STEPS, timeout=30) -> Diagnosis:
    with sbnref.diagnose(model, timeout=timeout) as d:
        for _ in range(steps):
            model(batch())
    return d


def images(n: int, width: int) -> tuple[Tensor, Tensor]:
    y = torch.randint(0, 2, (n,))
    return torch.randn(n, 3, width, width) + 0.5 * y[:, None, None, None], y


def warm_up(model: nn.Module, plan: Plan) -> None:
    """Set running statistics as after a long training, equal on every rank."""
    probe, dtype = copy.deepcopy(model), model.conv1.weight.dtype
    probe.bn1, probe.bn2 = (nn.BatchNorm2d(8, momentum=1.0, dtype=dtype) for _ in range(2))
    torch.manual_seed(7)
    probe(images(256, plan.width)[0].to(dtype))
    for name in ("bn1", "bn2"):
        for buffer in ("running_mean", "running_var"):
            getattr(getattr(model, name), buffer).copy_(getattr(getattr(probe, name), buffer))


def on(rank: int, change: Callable[[nn.Module], object]) -> Callable[[nn.Module, int], object]:
    return lambda model, here: here == rank and change(model)


def nan_in(x: Tensor, rank: int, step: int) -> Tensor:
    if rank == 1 and step == 5:
        x[0, 0, 0, 0] = torch.nan
    return x


def shift_on(rank: int) -> Callable[[Tensor, int, int], Tensor]:
    return lambda x, here, step: x + 3 * (here == rank)


def stuck(momentum: float) -> Callable[[nn.Module, int], None]:
    def start(model: nn.Module, rank: int) -> None:
        model.bn1.momentum = model.bn2.momentum = momentum
        model.bn1.running_mean += 2

    return start


class InfLayer(nn.Module):
    """A layer that returns Inf on one rank in one step, and its input otherwise."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / 0 if self.calls == 4 and dist.get_rank() == 2 else x


def unconvert(name: str) -> Callable[[nn.Module], object]:
    return lambda model: setattr(model, name, nn.BatchNorm2d(8))


def scale(buffer: str, factor: float, shift: float = 0) -> Callable[[nn.Module], object]:
    return lambda model: model.get_buffer(buffer).mul_(factor).add_(shift)


def frozen(name: str, on: int) -> Callable[[nn.Module, int, int], object]:
    return lambda model, rank, step: getattr(model, name).train(rank != on)


# name: (the plan, the rule, the first layer, the deviating ranks or None for all)
FAULTS = {
    "checkpoint on rank 0": (Plan(start=on(0, scale("bn1.running_var", 50))), "running statistics", "bn1", 0),
    "buffers of rank 2, plain": (
        Plan("plain", start=on(2, scale("bn1.running_mean", 1, 30))), "running statistics", "bn1", 2),
    "empty rank, mmcv": (Plan("mmcv", size=lambda r, s: 0 if r == 1 and s % 2 else 8), "statistics mode", "bn1", 1),
    "nan in the buffers": (Plan(start=on(2, scale("bn1.running_var", float("nan")))), "NaN or Inf", "bn1", 2),
    "uneven ranks, default": (Plan("default", size=lambda r, s: (2, 16, 8)[r]), "statistics mode", "bn1", None),
    "uneven maps, N": (Plan("N", batch=lambda x, r, s: x.repeat(1, 1, 1 + r, 2 * r + 1) + r * 0.4),
                       "statistics mode", "bn1", None),
    "nan in the data": (Plan("plain", batch=nan_in), "NaN or Inf", "bn1", 1),
    "inf between layers": (Plan(start=lambda m, r: setattr(m, "relu1", InfLayer())), "NaN or Inf", "bn2", 2),
    "eval mode on one rank": (Plan("plain", step=frozen("bn1", 1)), "eval mode", "bn1", 1),
    "eval mode of the model": (Plan(train=False), "eval mode", "bn1", None),
    "one layer unconverted": (Plan(build=unconvert("bn1")), "unconverted", "bn1", None),
    "eps differs": (Plan(start=on(1, lambda m: setattr(m.bn1, "eps", 1e-2))), "settings", "bn1", 1),
    "mode differs": (Plan(start=on(1, lambda m: setattr(m.bn1, "stats_mode", "default"))), "settings", "bn1", 1),
    "weights differ": (Plan("plain", start=on(1, lambda m: m.bn2.weight.data.mul_(2))), "weights", "bn2", 1),
    "biases differ": (Plan(start=on(2, lambda m: m.bn1.bias.data.add_(1))), "weights", "bn1", 2),
    "sharded by class": (Plan("plain", batch=shift_on(2)), "ranks apart", "bn1", 2),
    "stale statistics": (
        Plan(start=lambda m, r: scale("bn1.running_var", 1000)(m)), "stale statistics", "bn1", None),
    "slow momentum": (Plan(start=stuck(0.001)), "slow momentum", "bn1", None),
    "fast momentum": (Plan("plain", {"momentum": 0.9}, lambda r, s: 2, 6), "fast momentum", "bn1", None),
    "evaluation data shifted": (Plan("plain", evaluation=lambda x, r: x + 2), "evaluation inputs", "bn1", None),
    "dropout before a layer": (
        Plan(build=lambda m: setattr(m, "relu1", nn.Sequential(nn.ReLU(), nn.Dropout(0.9)))),
        "evaluation inputs", "bn2", None),
    "few values, plain": (Plan("plain", size=lambda r, s: 2, width=6), "few values", "bn2", None),
    "few values, ours": (Plan(size=lambda r, s: 1, width=6), "few values", "bn2", None),
    "far from zero": (Plan("plain", build=lambda m: m.conv1.bias.data.add_(300)), "far from zero", "bn1", None),
    "payload": (Plan(build=lambda m: m.double().conv1.bias.data.add_(1e7),
                     batch=lambda x, r, s: x.double(), evaluation=lambda x, r: x.double()),
                "payload", "bn1", None),
}  # fmt: skip

PAIRS = {
    "eval mode and checkpoint": (
        Plan("plain", start=on(1, scale("bn2.running_mean", 1, 20)), step=frozen("bn1", 0)),
        ("eval mode", "bn1"), ("running statistics", "bn2")),
    "checkpoint and empty rank": (
        Plan("default", start=on(0, scale("bn2.running_mean", 1, 7)), size=lambda r, s: 0 if r == 2 and s % 3 else 8),
        ("running statistics", "bn2"), ("statistics mode", "bn1")),
    "eps and evaluation data": (
        Plan(start=on(1, lambda m: setattr(m.bn2, "eps", 1e-2)), evaluation=lambda x, r: 3 * x + 1),
        ("settings", "bn2"), ("evaluation inputs", "bn1")),
    "shards and momentum": (
        Plan("plain", start=on(0, lambda m: setattr(m.bn2, "momentum", 0.5)), batch=shift_on(2)),
        ("settings", "bn2"), ("ranks apart", "bn1")),
    "nan and unconverted": (
        Plan(build=unconvert("bn2"), batch=nan_in), ("NaN or Inf", "bn1"), ("unconverted", "bn2")),
    "weights and shards": (
        Plan("ours", start=on(2, lambda m: m.bn2.weight.data.mul_(3)), batch=shift_on(1)),
        ("weights", "bn2"), ("ranks apart", "bn1")),
    "slow momentum and empty rank, mmcv": (
        Plan("mmcv", start=stuck(0.001), size=lambda r, s: 0 if r == 1 and s % 2 else 8),
        ("slow momentum", "bn1"), ("statistics mode", "bn1")),
    "two settings": (
        Plan(start=on(1, lambda m: (setattr(m.bn1, "eps", 1e-3), setattr(m.bn2, "momentum", 0.3)))),
        ("settings", "bn1"), ("settings", "bn2")),
}  # fmt: skip

HEALTHY = {norm: Plan(norm) for norm in NORMS if norm != "quiet"}
HEALTHY |= {
    "N, ragged": Plan("N", size=lambda r, s: 4 + 3 * r),
    "ours, ragged": Plan(size=lambda r, s: (r + s) % 5 + 1),
    "ours, empty": Plan(size=lambda r, s: 0 if r == s % 3 else 8),
    "plain, ragged": Plan("plain", size=lambda r, s: 4 + (r + s) % 3),
    "plain, empty": Plan("plain", size=lambda r, s: 0 if r == 1 and s % 3 == 0 else 8),
    "plain, buffers broadcast": Plan("plain", broadcast_buffers=True),
    "plain, cumulative": Plan("plain", {"momentum": None}),
    "momentum 0.01": Plan("ours", {"momentum": 0.01}),
    "small batch": Plan("ours", size=lambda r, s: 2, width=10),
    "every third step": Plan("plain", every=3, steps=45),
    "no running statistics": Plan("ours", {"track_running_stats": False}, warm=False),
    "offset": Plan("default", batch=lambda x, r, s: x + 5, evaluation=lambda x, r: x + 5),
    "larger steps": Plan("plain", lr=0.1, steps=60),
    "from scratch": Plan("plain", warm=False, steps=45),
    "from scratch, default": Plan("default", {"momentum": 0.2}, warm=False, size=lambda r, s: 4),
    "from scratch, ragged": Plan(warm=False, steps=45, size=lambda r, s: 2 + r + s % 2),
}


QUICK = {"empty rank, mmcv", "nan in the data", "eps differs", "few values, plain"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_the_planted_fault_is_the_first_suspect(world, name):
    plan, rule, layer, rank = FAULTS[name]
    for diagnosis in world(3).run(run, plan):
        first = diagnosis.suspects[0]
        assert (first.rule, first.layers[0]) == (rule, layer), str(diagnosis)
        assert rank is None or first.ranks == (rank,), str(diagnosis)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_two_planted_faults_are_the_first_two_suspects(world, name):
    plan, *expected = PAIRS[name]
    diagnosis = world(3).run(run, plan)[0]
    assert {(s.rule, s.layers[0]) for s in diagnosis.suspects[:2]} == set(expected), str(diagnosis)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_trainings_raise_no_suspect(world, name):
    plan = HEALTHY[name]
    diagnosis = world(3).run(run, plan)[2]
    assert diagnosis.suspects == [], str(diagnosis)
    examined = f"2 batch norms, {plan.steps} training steps, 3 evaluation steps, 3 ranks"
    assert str(diagnosis) == f"Examined: {examined}. Nothing was found."


def test_the_report_has_evidence_and_remedy(world):
    plan = Plan(start=on(0, scale("bn2.running_mean", 1, 7)))
    diagnosis = world(3).run(run, plan)[1]
    lines, ranks = str(diagnosis).splitlines(), r"ranks 0 and {1, 2}"
    assert re.fullmatch(rf"1. bn2  running statistics differ between {ranks}: mean by \d+ std, since step 1", lines[0])
    assert lines[1] == "   All settings agree, so load the same state on every rank:"
    assert lines[2] == "       for buffer in model.buffers(): torch.distributed.broadcast(buffer, src=0)"
    assert lines[3].endswith("Nothing else was found.")
    assert "running statistics differ" in diagnosis._repr_html_()
    assert json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))["suspects"][0]["ranks"] == [0]


@pytest.mark.ranks(3)
def test_remedies_are_code_for_plain_and_wrapped_models_and_inference_mode_is_seen():
    inner = network("ours")
    for model in (inner, DistributedDataParallel(inner)):
        inner.bn1.momentum = inner.bn2.momentum = 0.0
        with sbnref.diagnose(model.train()) as d:
            for _ in range(20):
                model(torch.randn(8, 3, 8, 8) + 2)
            model.eval()
            with torch.inference_mode():
                model(torch.randn(8, 3, 8, 8) + 2)
        assert (d.suspects[0].rule, d.suspects[0].layers) == ("slow momentum", ("bn1", "bn2"))
        assert d.examined == {"batch_norms": 2, "training_steps": 20, "evaluation_steps": 1, "ranks": 3}
        exec(d.suspects[0].code, {"model": model, "d": d})
        assert inner.bn1.momentum == inner.bn2.momentum == 0.1


@pytest.mark.ranks(3)
def test_it_changes_nothing_and_communicates_nothing_in_a_step():
    models, x = [network("ours") for _ in range(2)], torch.randn(4, 3, 8, 8)
    with sbnref.diagnose(models[0]), Watch() as watched:
        first = models[0](x)
    with Watch() as plain:
        second = models[1](x)
    assert len(watched.collectives) == len(plain.collectives)
    assert torch.equal(first, second)
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name
    assert not any(module._forward_pre_hooks for module in models[0].modules()), "hooks are left"


def stepped(step: Callable[[nn.Module, int, int], object], norm: str = "plain", raises: int | None = None) -> Diagnosis:
    """Diagnose six calls of ``step`` on every rank; on rank ``raises``, expect an error."""
    rank, model = dist.get_rank(), network(norm)
    expected = pytest.raises(ValueError, match="no such file") if rank == raises else nullcontext()
    with expected, sbnref.diagnose(model, timeout=200) as d:
        for i in range(6):
            step(model, rank, i)
    return d


def test_ranks_that_run_fewer_steps_keep_none_waiting(world):
    for d in world(3).run(stepped, lambda model, rank, i: i < (6, 3, 4)[rank] and model(torch.randn(8, 3, 8, 8))):
        assert d.examined["ranks"] == 3
        assert "The ranks trained different numbers of steps: 6, 3 and 4." in str(d)


def test_a_rank_that_skips_a_layer_is_named(world):
    def skip(model: nn.Module, rank: int, i: int) -> None:
        x = model[:4](torch.randn(8, 3, 8, 8))
        if rank != 1 or i < 4:
            model[4:](x)

    d = world(3).run(stepped, skip, "quiet")[0]
    assert d.suspects[0].rule == "skipped"
    assert d.suspects[0].evidence == "rank 1 did not call it in 2 of 6 training steps"


def test_a_rank_that_raises_keeps_none_waiting(world):
    def leave(model: nn.Module, rank: int, i: int) -> None:
        if rank == 1 and i == 2:
            raise ValueError("no such file")
        model(torch.randn(8, 3, 8, 8))

    ranks, start = world(3), time.perf_counter()
    results = ranks.run(stepped, leave, raises=1)
    assert time.perf_counter() - start < 150
    for d in results[::2]:
        assert d.examined["ranks"] == 3
        assert "Rank 1 left the block after 2 training steps: ValueError: no such file" in str(d)


def trains_for_long(every: int) -> tuple[list[int], list[str]]:
    rank, model = dist.get_rank(), nn.Sequential(nn.BatchNorm1d(2))
    recorder = recording.Recorder(model, dict(model.named_children()), every)
    with recorder:
        for _ in range(400 + rank):  # only rank 1 thins its record once more
            model(torch.randn(8, 2))
    recordings = recording.share(recorder.finish(None), lambda recordings: recordings, 30)
    return [row.step for row in recordings[rank].rows["0"]], [s.rule for s in rules.suspects(recordings)[0]]


def test_older_steps_are_thinned_out_and_no_rank_seems_to_skip_a_layer(world):
    for every, newest in ((1, 385), (3, 355)):
        for rank, (steps, found) in enumerate(world(2).run(trains_for_long, every)):
            assert len(steps) <= recording.MOST_STEPS
            assert steps[0] == 1
            assert steps[-recording.NEWEST] == newest + rank * (every == 1)
            assert "skipped" not in found


def alone() -> tuple[str, dict[str, int]]:
    model = network("plain")
    first = str(called(model, lambda: torch.randn(8, 3, 8, 8), steps=1, timeout=0.2)) if dist.get_rank() == 0 else ""
    with sbnref.diagnose(model) as d:
        model(torch.randn(8, 3, 8, 8))
    return first, d.examined


def test_a_rank_that_is_alone_in_the_block_waits_for_the_timeout():
    with sbnref.Ranks(2) as ranks:
        (report, _), (_, same) = ranks.run(alone)
    assert "Records of rank 1 are missing." in report
    assert (same["ranks"], same["training_steps"]) == (2, 1)


def fails(*_: object) -> None:
    raise ZeroDivisionError("planted")


def test_a_failure_inside_is_a_line_and_no_exception(monkeypatch):
    for target, line in (
        ((rules, "layers_of"), "Please report this: combining the records failed with ZeroDivisionError: planted."),
        ((recording, "_running"), "Rank 0 did not record everything: ZeroDivisionError: planted"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*target, fails)
            assert line in str(called(network("plain"), lambda: torch.randn(8, 3, 8, 8), steps=1))


def test_submodules_that_are_called_one_by_one_have_steps():
    model = network("plain")
    with sbnref.diagnose(model, every=2) as d:
        for _ in range(4):
            model.bn2(model.conv2(model.bn1(model.conv1(torch.randn(8, 3, 8, 8)))))
    assert d.examined["training_steps"] == 4
    with sbnref.diagnose(model) as d:
        pass
    assert str(d).endswith("run the model without torch.compile.")


def dead(layer: nn.Linear) -> nn.Linear:
    layer.bias.data[:2] = -100  # dead after a ReLU
    return layer


UNUSUAL = {  # the model, its batches, and the samples per batch in an evaluation, None for all
    "dead channels": (lambda: nn.Sequential(dead(nn.Linear(10, 32)), nn.ReLU(), nn.BatchNorm1d(32)),
                      lambda: torch.randn(64, 10), None),
    "rare events": (lambda: nn.Sequential(nn.BatchNorm1d(200), nn.Linear(200, 4)),
                    lambda: (torch.rand(96, 200) < torch.logspace(-3, -0.5, 200)).float(), None),
    "heavy tails": (lambda: nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, 4)),
                    lambda: (1.5 * torch.randn(64, 20)).exp(), None),
    "two samples to evaluate": (lambda: nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.Linear(32, 3)),
                                lambda: torch.randn(64, 10), 1),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_but_healthy_inputs_raise_no_suspect(name, seed):
    torch.manual_seed(seed)
    make, batch, samples = UNUSUAL[name]
    model = make()
    evaluations = [lambda: model(batch()[:samples])] * 2
    d = trained(model, lambda step: model(batch()).square().mean(), evaluations, steps=60, lr=0.05)
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


@pytest.mark.ranks(3)
def test_evaluation_of_the_inner_module_on_one_rank():
    model = DistributedDataParallel(network("ours"))
    evaluations = [lambda: model.module(40 * images(8, 8)[0] + 9)] * (3 if dist.get_rank() == 0 else 0)
    d = trained(model, lambda step: model(images(8, 8)[0]).square().mean(), evaluations)
    assert [s.rule for s in d.suspects][:1] == ["evaluation inputs"], str(d)
    assert d.examined["evaluation_steps"] == 3


def test_every_records_all_passes_of_a_step():
    """A discriminator sees real and generated data in turn; its statistics mix both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))

    def loss(step: int) -> Tensor:
        return (model(torch.randn(64, 10) - 1).mean() - model(torch.randn(64, 10) + 2).mean()).tanh()

    for every in (1, 2, 3):
        d = trained(model.train(), loss, steps=60, lr=0.01, every=every)
        assert "stale statistics" not in [s.rule for s in d.suspects], str(d)


class Masked(nn.BatchNorm1d):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x) * mask


class Duck(nn.Module):
    """A batch norm by its attributes alone, which does nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps, self.momentum, self.weight = 1e-5, 0.0, None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_an_unusual_layer_hides_nothing():
    masked = Masked(4, momentum=0.0)
    with sbnref.diagnose(masked) as d:
        for _ in range(30):
            masked(torch.randn(64, 4) + 5, torch.ones(64, 1))
    assert [s.rule for s in d.suspects] == ["slow momentum"]

    model = nn.Sequential(Duck(3), nn.Flatten(), Duck(12))
    d = called(model, lambda: torch.randn(64, 4, 3) + 5)  # channels last
    assert [(s.rule, s.layers) for s in d.suspects] == [("slow momentum", ("2",))]
    assert "layer 0 got an input of shape (64, 4, 3), expected (N, 3, *)" in str(d)


def test_a_rule_that_fails_hides_no_other(monkeypatch):
    monkeypatch.setattr(rules, "RULES", (rules.Rule("planted", fails), *rules.RULES))
    d = called(nn.Sequential(nn.BatchNorm1d(12, momentum=0.0)), lambda: torch.randn(64, 12) + 5)
    assert [s.rule for s in d.suspects] == ["slow momentum"]
    assert "the rule 'planted' failed on layer 0 with ZeroDivisionError: planted." in str(d)


@pytest.mark.ranks(3)
def test_a_missing_ddp_is_named():
    model, cross_entropy = network("plain"), nn.functional.cross_entropy
    torch.manual_seed(dist.get_rank())
    d = trained(model, lambda step: cross_entropy(model(images(8, 8)[0]), torch.randint(0, 2, (8,))), lr=0.1)
    first = d.suspects[0]
    assert (first.rule, first.code) == ("weights", "model = torch.nn.parallel.DistributedDataParallel(model)")


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
