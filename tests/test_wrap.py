"""Under torch's wrappers: parallel training, meshes, checkpoints, autocast, gradient scaling, torch.func."""

import copy
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import sbnref
from sbnref import SyncBatchNorm, groups_of
from sbnref.conformance.cases.validation import expect_error
from sbnref.conformance.watch import Watch

SIZES = [[3, 2], [4, 0], [0, 0], [1, 5]]  # of the ranks' batches, step by step


def network(norm=SyncBatchNorm, **options) -> nn.Sequential:
    torch.manual_seed(0)
    norms = norm(4, **options), norm(3, **options)
    return nn.Sequential(nn.Conv1d(2, 4, 3), norms[0], nn.SiLU(), nn.Conv1d(4, 3, 1), norms[1]).double()


def batches(sizes: list[int]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(sum(sizes))
    whole = torch.randn(sum(sizes), 2, 6, dtype=torch.float64)
    return whole, whole.split(sizes)[dist.get_rank()]


def loss(y: Tensor) -> Tensor:
    """Sum over samples, so that the ranks' gradients add up to the whole batch's gradient."""
    return y.tanh().pow(2).sum()


def agree(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for (name, tensor), expected in zip(got.items(), want.values(), strict=True):
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        torch.testing.assert_close(full, expected, msg=lambda text, name=name: f"{name}: {text}")


def training(wrap, accumulate: bool = False) -> None:
    """Compare a wrapped model's steps with one process on the whole batch; the wrapper averages over ranks."""
    alone, wrapped = network(nn.BatchNorm1d), wrap(network(stats_mode="exact"))
    optimizers = [torch.optim.SGD(m.parameters(), 0.01) for m in (alone, wrapped)]
    steps = [sizes for sizes in SIZES if sum(sizes)]
    for i, sizes in enumerate(steps):
        whole, mine = batches(sizes)
        last = not accumulate or i == len(steps) - 1
        loss(alone(whole)).backward()
        with nullcontext() if last else wrapped.no_sync():
            (loss(wrapped(mine)) * dist.get_world_size()).backward()
        if last:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    agree(wrapped.state_dict(), alone.state_dict())


@pytest.mark.ranks(2)
def test_ddp_with_every_option() -> None:
    for options in ({"broadcast_buffers": False}, {"static_graph": True}, {"gradient_as_bucket_view": True}):
        training(lambda model, options=options: DistributedDataParallel(model, **options))
    training(DistributedDataParallel, accumulate=True)


def uneven(model: nn.Module, x: Tensor) -> None:
    with Join([model], throw_on_early_termination=True):
        for _ in range(2 + dist.get_rank()):
            loss(model(x)).backward()


@pytest.mark.ranks(2)
def test_join_is_refused() -> None:
    model = DistributedDataParallel(network())
    _, mine = batches([3, 2])
    with pytest.raises(RuntimeError, match="expected no Join around a model with SyncBatchNorm"), Join([model]):
        model(mine)
    with Join([model], enable=False):
        loss(model(mine)).backward()
    model = DistributedDataParallel(network())
    with pytest.raises(RuntimeError, match="exhausted"):
        uneven(model, mine)


@pytest.mark.ranks(2)
def test_fully_shard_layer_by_layer() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def shard(model: nn.Sequential) -> nn.Module:
        for layer in (model[0], model[1], model[3]):
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    training(shard)

    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = fully_shard(network().float(), mesh=mesh, mp_policy=half)
    y = model(batches([3, 2])[1].float())
    loss(y).backward()
    assert y.dtype == torch.bfloat16
    assert model[1].weight.grad.dtype == model[1].running_var.dtype == torch.float32


@pytest.mark.ranks(2)
def test_running_statistics_of_several_groups_under_ddp():
    """A broadcast makes the statistics equal to rank 0's before each forward pass; the pass moves them apart."""
    rank, mean = dist.get_rank(), torch.tensor([2.0, 3.0])
    for broadcast in (True, False):
        norm = SyncBatchNorm(2, group=groups_of(1))
        model = DistributedDataParallel(norm, broadcast_buffers=broadcast)
        for _ in range(2):
            model(torch.arange(6.0).view(3, 2) + rank).sum().backward()
        source = 0 if broadcast else rank
        torch.testing.assert_close(norm.running_mean, 0.09 * (mean + source) + 0.1 * (mean + rank))
        model.eval()(torch.ones(1, 2))
        torch.testing.assert_close(norm.running_mean, 0.19 * (mean + source))


@pytest.mark.ranks(2)
def test_checkpoints_update_running_statistics_once() -> None:
    for momentum, use_reentrant in itertools.product((0.1, None), (False, True)):
        plain = network(momentum=momentum)
        saving = copy.deepcopy(plain)
        for sizes in SIZES:
            _, x = batches(sizes)
            xs = [x.clone().requires_grad_() for _ in range(2)]
            loss(plain(xs[0])).backward()
            with Watch() as watch:
                loss(checkpoint(saving, xs[1], use_reentrant=use_reentrant)).backward()
            assert len(watch.collectives) == 6, "two layers, each forward, forward again and backward"
            torch.testing.assert_close(xs[0].grad, xs[1].grad)
        agree(saving.state_dict(), plain.state_dict())
        agree({n: p.grad for n, p in saving.named_parameters()}, {n: p.grad for n, p in plain.named_parameters()})


def test_a_call_from_a_hook_of_the_backward_pass_counts_as_a_repetition():
    layer, x = SyncBatchNorm(3), torch.randn(4, 3, requires_grad=True)
    x.register_hook(lambda dx: layer(dx.detach() + torch.randn(4, 3)))
    x.square().sum().backward()
    assert layer.num_batches_tracked == 0
    assert not layer.running_mean.any()


@pytest.mark.ranks(2)
def test_autocast_and_gradient_scaling() -> None:
    """Check that under autocast the layer accepts bfloat16 from a convolution and accumulates in float32."""
    model = DistributedDataParallel(network(stats_mode="exact").float())
    alone = network(nn.BatchNorm1d).float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    whole, mine = batches([3, 2])
    with torch.autocast("cpu", torch.bfloat16):
        y = model(mine.float())
    assert (y.dtype, model.module[1].running_var.dtype) == (torch.bfloat16, torch.float32)
    (scaler.scale(loss(y.float())) * 2).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    loss(alone(whole.float())).backward()
    scaler.unscale_(optimizer)
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0.1, atol=0.1)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**12

    with torch.autocast("cpu", torch.bfloat16):
        y = model(mine.float() * (torch.inf if dist.get_rank() else 1))
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    scaler.scale(loss(y.float())).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**11, "an overflow on one rank is seen on all"
    agree({n: p for n, p in model.named_parameters()}, {n: before[n] for n, _ in model.named_parameters()})


@pytest.mark.parametrize("training", [True, False])
def test_torch_func_in_one_process(training):
    """Compare with F.batch_norm in one process; the conformance suite tests several ranks."""
    layer, (x, v) = SyncBatchNorm(3).double().train(training), torch.randn(2, 4, 3, dtype=torch.float64)
    statistics = (None, None) if training else (torch.zeros(3).double(), torch.ones(3).double())

    def transformed(f):
        cubed = lambda x: f(x).pow(3).sum()  # noqa: E731
        gradients = torch.func.grad(cubed)(x), torch.func.hessian(cubed)(x)
        return [*gradients, *torch.func.jvp(f, (x,), (v,)), torch.func.jacrev(f)(x)]

    want = transformed(lambda x: F.batch_norm(x, *statistics, training=training))
    torch.testing.assert_close(transformed(layer), want)


def test_half_precision_in_eval_mode_within_a_transform():
    layer, x = SyncBatchNorm(4).half().eval(), torch.randn(3, 2, 4, 5).half()
    mapped = torch.func.vmap(layer)(x)
    assert mapped.dtype == torch.float16
    torch.testing.assert_close(mapped, torch.stack([layer(part) for part in x]))
    assert torch.func.jvp(layer, (x[0],), (x[1],))[1].dtype == torch.float16


class Prompted(nn.Module):
    """A model with an optional part before the norm, registered after it: DDP gets its gradients at different times."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(2, 2, bias=False), norm, nn.Linear(2, 2, bias=False)
        self.prompt = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor, prompted: Tensor) -> Tensor:
        h = self.stem(x)
        if prompted.any():
            h = h + self.prompt(x) * prompted
        return self.head(self.norm(h)).pow(3).sum()


def prompted_gradients(rank: int, ranks: int) -> Tensor:
    """Return the stem's gradients; the last two of four samples have a prompt."""
    torch.manual_seed(0)
    model = Prompted(SyncBatchNorm(2, stats_mode="exact", impl="cpu")).double()
    x, prompted = torch.randn(4, 2).double(), torch.tensor([[0], [0], [1], [1]])
    wrapped = model
    if ranks > 1:  # a bucket per parameter, to imitate a large model
        wrapped = DistributedDataParallel(model, find_unused_parameters=True, bucket_cap_mb=1e-6)
    for _ in range(2):
        model.zero_grad()
        wrapped(x.chunk(ranks)[rank], prompted.chunk(ranks)[rank]).backward()
    return model.stem.weight.grad * ranks


def test_ddp_where_ranks_use_different_parts():
    """Use a new world, whose default group no layer has replaced."""
    want = prompted_gradients(0, 1)
    for got in sbnref.launch(lambda: prompted_gradients(dist.get_rank(), 2), 2, timeout=120):
        torch.testing.assert_close(got, want)


def of_a_world_before(folder: str, make: Callable[[list[int]], Any], compiled: bool) -> str:
    """Return the error of a layer whose destroyed group's name belongs to a new group."""
    rank = dist.get_rank()
    layer = SyncBatchNorm(3, group=make([0, 1]), stats_mode="exact", impl="reference")
    run = torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer
    x = torch.randn(4, 3)
    if rank < 2:
        run(x)
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    make([1, 2])  # reuses the name
    moved = layer.num_batches_tracked.clone()
    try:
        run(x)
    except Exception as error:
        assert rank == 2 or layer.num_batches_tracked == moved
        return str(error)
    return "no error"


MESH = partial(DeviceMesh, "cpu")


@pytest.mark.parametrize(("make", "compiled"), [(dist.new_group, False), (dist.new_group, True), (MESH, False)])
def test_a_group_of_a_world_before_is_refused(make, compiled, tmp_path):
    first, second, outside = sbnref.launch(of_a_world_before, 3, str(tmp_path), make, compiled, timeout=120)
    for message in (first, second):
        assert "got a destroyed one; set layer.group again" in message
    assert "a group without rank 2" in outside


@pytest.mark.ranks(2)
def test_distributed_buffers_are_refused_before_anything_is_communicated():
    layer = distribute_module(SyncBatchNorm(3, impl="reference"), init_device_mesh("cpu", (2,)))
    message = "expected running_mean to be a plain Tensor, got a DTensor; leave this layer out of"
    with expect_error(TypeError, message):
        layer(torch.randn(4, 3))


@pytest.mark.filterwarnings("ignore")
def test_a_masked_tensor_is_refused():
    x = torch.randn(4, 3)
    with pytest.raises(TypeError, match="got a MaskedTensor, which replaces PyTorch's operations"):
        SyncBatchNorm(3)(torch.masked.masked_tensor(x, x > 0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_fairscales_checkpoints_update_running_statistics_once():
    checkpoint_wrapper = pytest.importorskip("fairscale.nn.checkpoint").checkpoint_wrapper
    torch.manual_seed(0)
    x = torch.randn(4, 3, requires_grad=True)
    plain, wrapped = SyncBatchNorm(3), checkpoint_wrapper(nn.Sequential(SyncBatchNorm(3)))
    plain(x).sum().backward()
    wrapped(x).sum().backward()
    torch.testing.assert_close(dict(wrapped[0].named_buffers()), dict(plain.named_buffers()))
