"""The first stage at which two implementations differ, and the report."""

import copy
import json

import pytest
import torch
import torch.distributed as dist
from planted import BUGS, one_pass_variance, replaced
from shared import cli, refused
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sbnref
from sbnref.conformance.accuracy import INPUTS
from sbnref.debugging.compare import kernels_for
from sbnref.debugging.compare.ranks import RandomLayer
from sbnref.impls import reference

SAME = ("reference", "reference")
BOTH = ("--impl", "reference", "--impl", "reference")


def register(name, **stages):
    sbnref.register_impl(name, replaced(**stages))
    return name


def network():
    torch.manual_seed(0)
    norms = sbnref.SyncBatchNorm(4), sbnref.SyncBatchNorm(3, stats_mode="N")
    return nn.Sequential(nn.Conv2d(2, 4, 3), norms[0], nn.ReLU(True), nn.Conv2d(4, 3, 3), norms[1])


@pytest.mark.ranks(3)
def test_names_the_stage_of_each_planted_bug():
    """Use an empty rank 1, and 135 elements, which is not a multiple of 4."""
    for bug, (impl, stage) in BUGS.items():
        sbnref.register_impl(bug, impl)
        x = torch.randn([3, 0, 2][dist.get_rank()], 5, 3, 3) + 1
        if bug == "half-accumulation":
            x = x.half()
        row = sbnref.compare(sbnref.SyncBatchNorm(5), x, ("reference", bug)).first_divergence
        assert (row.stage, row.wrong) == (stage, (bug,)), f"{bug}: {row}"


@pytest.mark.ranks(2)
def test_agreement_of_every_stage_on_every_rank():
    model = network()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(dist.get_rank() * 2, 2, 8, 9)
    report = sbnref.compare(DistributedDataParallel(model), x, SAME)
    assert report.agrees
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert {row.layer for row in report.rows} == {"1", "4"}
    assert {row.rank for row in report.rows} == {0, 1}
    quantities = [row.quantity for row in report.rows if (row.layer, row.rank) == ("1", 0)]
    assert quantities == [
        "payload", "variance", "total", "y", "running_mean", "running_var", "num_batches_tracked",
        "backward payload", "backward total", "dx", "dbeta", "dgamma",
    ]  # fmt: skip
    assert report.first_divergence is None
    assert "agree in every stage of 2 layers on 2 ranks" in str(report)


def one_bad_rank():
    def backward_apply(dy, x, *rest):
        dx = reference.backward_apply(dy, x, *rest)
        if dist.get_rank() == 1 and dx.shape[1] == 3:
            dx[1, 2, 0, 3] += 0.5
        return dx

    impls = ("reference", register("bad", backward_apply=backward_apply))
    return sbnref.compare(network(), torch.randn(2, 2, 8, 9), impls)


def test_names_layer_rank_channel_and_index_on_every_rank(world):
    for report in world(2).run(one_bad_rank):
        row = report.first_divergence
        assert (row.layer, row.stage, row.quantity, row.rank) == ("4", "backward_apply", "dx", 1)
        assert (row.channel, row.index) == (2, (1, 2, 0, 3))
        assert row.values["bad"] - row.values["reference"] == pytest.approx(0.5)
        assert row.exact == pytest.approx(row.values["reference"])
        assert row.wrong == ("bad",)
        assert row.absolute == pytest.approx(0.5)
        assert row.ulp > 1e5
        text = str(report)
        assert "layer '4', in dx on rank 1, worst at channel 2, index (1, 2, 0, 3)" in " ".join(text.split())
        assert text.count("DIVERGES") == 1
        assert max(map(len, text.split("layer 4")[0].splitlines())) <= 80
        assert "DIVERGES" in report._repr_html_()
        assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["first_divergence"]["rank"] == 1


@pytest.mark.parametrize(
    ("returns", "problem"),
    [
        (lambda y, saved: [][0], "raised IndexError: list index out of range"),
        (lambda y, saved: (y.double(), saved), "must return y of shape (4, 2) in torch.float32, but returned shape (4"),
        (lambda y, saved: y, "must return (y, saved), two tensors, but returned shape (4, 2)"),
        (lambda y, saved: None, "but returned None"),
    ],
)
def test_a_stage_that_breaks_the_contract_is_reported(returns, problem):
    impl = register("breaks", forward_apply=lambda *args: returns(*reference.forward_apply(*args)))
    report = sbnref.compare(sbnref.SyncBatchNorm(2), torch.randn(4, 2), ("reference", impl))
    problems = {row.stage: row.problems["breaks"] for row in report.rows if row.problems}
    assert problem in problems["forward_apply"]
    assert problems["backward_stats"] == "was not run, because forward_apply saved nothing"


def test_many_layers_take_a_line_each_unless_they_diverge():
    model = nn.Sequential(*(sbnref.SyncBatchNorm(3) for _ in range(6)))
    lines = str(sbnref.compare(model, torch.randn(4, 3), SAME)).splitlines()
    assert sum(line.startswith("layer ") and "agrees" in line for line in lines) == 6


class Twice(nn.Module):
    """A model that calls a layer twice, accepts keywords, and returns a dict with a loss."""

    def __init__(self, **options):
        super().__init__()
        self.norm = sbnref.SyncBatchNorm(3, **options)
        self.frozen = nn.Sequential(sbnref.SyncBatchNorm(3, affine=False, dtype=options.get("dtype"))).eval()
        self.unused = sbnref.SyncBatchNorm(3)

    def forward(self, x, scale, skip=False):
        if skip:
            return x
        y = self.norm(input=self.frozen(x))
        z = self.norm(y.detach() * scale).detach()
        return {"loss": (y.relu() * z).sum(), "other": [y, 3]}


def test_models_of_other_shapes():
    x = torch.randn(5, 3, dtype=torch.float64)
    model = Twice(momentum=None, dtype=torch.float64)
    report = sbnref.compare(model, {"x": x, "scale": 2}, SAME, upstream=[torch.ones(()), x])
    assert report.agrees
    assert {row.layer for row in report.rows} == {"norm", "norm (call 2)"}
    for options in ({"affine": False}, {"track_running_stats": False}):
        assert sbnref.compare(sbnref.SyncBatchNorm(3, **options), x, SAME).agrees


def test_bad_use_says_what_to_do():
    layer, x = sbnref.SyncBatchNorm(3), torch.randn(4, 3)
    for error, text, arguments in (
        (TypeError, "expected a torch.nn.Module, got function", (network, x, SAME)),
        (ValueError, "found none", (nn.Linear(3, 3), x, SAME)),
        (ValueError, "only BatchNorm1d; sbnref.convert_sync_batchnorm", (nn.Sequential(nn.BatchNorm1d(3)), x, SAME)),
        (ValueError, "call model.train\\(\\) first", (sbnref.SyncBatchNorm(3).eval(), x, SAME)),
        (ValueError, "but it called none", (Twice(), {"x": x, "scale": 1, "skip": True}, SAME)),
    ):
        with pytest.raises(error, match=text):
            sbnref.compare(*arguments)
    with pytest.raises(ValueError, match=r"shapes of the outputs, \[\(4, 3\)\], got \[\(3,\)\]"):
        sbnref.compare(layer, x, SAME, upstream=torch.ones(3))


def compared_with_reference(impl, name):
    torch.manual_seed(0)
    x = INPUTS[name](0)
    layer = sbnref.SyncBatchNorm(4, stats_mode="exact", dtype=torch.promote_types(x.dtype, torch.float32))
    nn.init.normal_(layer.weight)
    return sbnref.compare(layer, x, ("reference", impl))


@pytest.mark.parametrize("name", INPUTS)
def test_what_rounding_allows_is_enough_for_the_reference(name):
    assert not any(row.wrong for row in compared_with_reference("reference", name).rows)


def test_what_rounding_allows_is_too_little_for_naive_sums():
    naive = register("naive", forward_stats=one_pass_variance)
    row = compared_with_reference(naive, "mean 1e3, std 1e-2").first_divergence
    assert (row.stage, row.wrong) == ("forward_stats", ("naive",))
    assert row.ratio > 5


def test_command(tmp_path):
    target = tmp_path / "mine.py"
    target.write_text(
        "from sbnref.impls.reference import *\n"
        "import torch, sbnref\n"
        "def backward_stats(dy, x, saved): raise OSError('out of paper')\n"
        "def example(): return sbnref.SyncBatchNorm(3), torch.randn(4, 3)\n"
    )
    options = ("--impl", "reference", "--impl", target, "--ranks", 1, "--json")
    run = cli("compare", f"{target}:example", *options, code=1)
    first = json.loads(run.stdout)["first_divergence"]
    assert first["stage"] == "backward_stats"
    assert first["problems"] == {str(target): "raised OSError: out of paper"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--shape 4,0", "where only N may be 0, got '4,0'"),
        ("--empty-rank 7", "expected empty_rank to be one of the 2 ranks, 0 to 1, got 7"),
        ("--impl reference", "expected the names of two implementations, got ['reference']"),
        ("--dtype int8", "expected dtype to be one of float16, bfloat16, float32, float64, got 'int8'"),
        ("--stats-mode M", "expected stats_mode"),
        ("--impl reference --impl gpu", "expected impl to be one of"),
        ("nowhere:model", "nowhere cannot be imported"),
        ("model.py", "expected FILE.py:FUNCTION"),
        ("json:model", "expected json to define a function model"),
        ("--impl no.py --impl no.py", "no.py cannot be imported"),
    ],
)
def test_command_refuses_in_a_sentence(arguments, text):
    said = refused("compare", *arguments.split(), *([] if "--impl" in arguments else BOTH))
    assert said.startswith("sbnref: ")
    assert text in said


def test_without_names_it_is_the_reference_and_the_kernels_of_the_device(monkeypatch):
    monkeypatch.delenv("SBNREF_CUDASIM", raising=False)
    layer, x = sbnref.SyncBatchNorm(3), torch.randn(4, 3, 5)
    assert sbnref.compare(layer, x).impls == ("reference", "cpu")
    assert json.loads(cli("compare", "--ranks", 1, "--json").stdout)["impls"] == ["reference", "cpu"]
    assert kernels_for(torch.device("cuda")) == "cuda"
    monkeypatch.setenv("SBNREF_CUDASIM", "1")
    assert kernels_for(torch.device("cpu")) == "cuda"


def test_command_says_that_there_was_nothing_to_compare():
    run = cli("compare", *BOTH, "--ranks", 1, "--shape", "0,3,2", code=2)
    assert "Nothing was compared: the input was empty on every rank" in " ".join(run.stdout.split())


def test_random_layer(world):
    make = RandomLayer((4, 8, 2), empty_rank=1, dtype="bfloat16", stats_mode="N")
    for n, (layer, x) in zip((4, 0), world(2).run(make), strict=True):
        assert (x.shape, x.dtype) == ((n, 8, 2), torch.bfloat16)
        assert (layer.weight.dtype, layer.stats_mode) == (torch.float32, "N")
