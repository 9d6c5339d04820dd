"""torch.compile: whole graphs, few recompilations, eager numbers, errors, and side effects that happen once."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from planted import replaced
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import sbnref
from sbnref import SyncBatchNorm, impls
from sbnref.functional import masked
from sbnref.impls import reference


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    """Reset the compiler of this process; tests on ranks reset theirs."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(model: nn.Module, x: Tensor, *more: Tensor, dynamic: bool = True) -> dict[str, Tensor]:
    """Run a training step; return all computed and changed tensors by name."""
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    if dynamic and len(x) > 1:
        torch._dynamo.mark_dynamic(leaf, 0)
    y = model(leaf, *more)
    y.pow(2).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {"y": y.detach(), "dx": leaf.grad, **gradients, **{n: b.clone() for n, b in model.named_buffers()}}


def agree(got: dict[str, Tensor], want: dict[str, Tensor], message: str) -> None:
    for name, tensor in got.items():
        name = name.replace("_orig_mod.", "").replace("module.", "")
        text = f"{name} on rank {dist.get_rank()}, {message}"
        torch.testing.assert_close(tensor, want[name], rtol=1e-5, atol=1e-5, msg=lambda m, text=text: f"{text}: {m}")


@pytest.mark.parametrize("cut", [slice(None), slice(0, None, 2)], ids=["dense", "not dense"])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.ranks(1)
def test_channels_last_inputs(impl, cut):
    torch._dynamo.reset()
    x = torch.randn(4, 6, 8, 8).to(memory_format=torch.channels_last)[..., cut]
    layer = SyncBatchNorm(6, impl=impl)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    agree(step(compiled, x, dynamic=False), step(layer, x, dynamic=False), impl)
    assert compiled(x).stride() == layer(x).stride()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"impl": "reference", "affine": False, "track_running_stats": False}, {"impl": "cpu"}]
)
@pytest.mark.ranks(2)
def test_an_empty_rank_makes_the_collectives_of_a_full_one_in_their_order(options):
    """On an empty rank no collective depends on another's result, so a compiler could reorder them."""
    torch._dynamo.reset()
    norms = [SyncBatchNorm(width, **options) for width in (3, 5, 1, 1)]
    chain = nn.Sequential(norms[0], nn.Tanh(), nn.Conv1d(3, 5, 1), norms[1], nn.Tanh(), nn.Conv1d(5, 1, 1))

    def forward(x: Tensor) -> Tensor:
        x = chain(x)
        return norms[2](x).tanh() * norms[3](x)  # with equal payloads

    def made(work: Callable[[], Tensor | None]) -> tuple[Tensor | None, list[int]]:
        """Run ``work``; return its result and the sizes of its collectives in order."""
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            result = work()
        events = sorted(profiler.events(), key=lambda event: event.time_range.start)
        return result, [event.input_shapes[0][0] for event in events if event.name == "gloo:all_reduce"]

    with torch._inductor.config.patch(compile_threads=1):
        compiled = torch.compile(forward, fullgraph=True)
        x = torch.randn((4, 0)[dist.get_rank()], 3, 6, requires_grad=True)
        loss, first = made(lambda: compiled(x).sum())
        _, second = made(loss.backward)
    torch._dynamo.reset()
    assert first == [3 * c + 2 for c in (3, 5, 1, 1)], f"the sizes of the collectives in the forward pass: {first}"
    assert second == [2 * c for c in (1, 1, 5, 3)], f"the sizes of the collectives in the backward pass: {second}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "use_reentrant", "where"),
    [
        ("inductor", False, "around"),
        ("aot_eager", True, "around"),
        ("eager", False, "within"),  # "eager" around a checkpoint rejects BatchNorm too: its input changes
    ],
)
@pytest.mark.ranks(2)
def test_checkpoints_on_ranks_of_which_some_are_empty(backend, use_reentrant, where):
    """Two layers in a checkpoint, compiled within it or around it; an empty rank has nothing to recompute."""
    torch._dynamo.reset()
    rank = dist.get_rank()
    torch.manual_seed(0)
    eager = nn.Sequential(SyncBatchNorm(3, impl="reference"), nn.GELU(), SyncBatchNorm(3, impl="reference"), nn.Tanh())
    within = copy.deepcopy(eager)

    def forward(x: Tensor) -> Tensor:
        return checkpoint(run, x, use_reentrant=use_reentrant)

    with torch._inductor.config.patch(compile_threads=1):
        compiler = partial(torch.compile, fullgraph=True, backend=backend)
        run = compiler(within) if where == "within" else within
        compiled = forward if where == "within" else compiler(forward)
        for sizes in ((4, 3), (0, 0), (4, 0)):  # each rank compiles two sizes, at the same steps
            x = torch.randn(sizes[rank], 3, 5)
            xs = [x.clone().requires_grad_() for _ in range(2)]
            for f, leaf in zip((compiled, eager), xs, strict=True):
                f(leaf).pow(2).sum().backward()
            torch.testing.assert_close(xs[0].grad, xs[1].grad)
    if where == "around":  # code compiled on its own cannot detect the recomputation
        torch.testing.assert_close(within.state_dict(), eager.state_dict())
    for p, q in zip(within.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    torch._dynamo.reset()


@pytest.mark.ranks(2)
def test_what_a_layer_was_built_with_may_change_after_compilation():
    rank = dist.get_rank()
    groups = [dist.new_group([r]) for r in range(2)]
    layer = SyncBatchNorm(5)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    for choice in ({}, {"stats_mode": "N"}, {"group": groups[rank]}, {"group": None}, {"training": False}):
        for name, value in choice.items():
            setattr(layer, name, value)
            setattr(compiled, name, value)
        x = torch.randn(2 + rank, 5, 3) + rank
        torch.testing.assert_close(compiled(x), layer(x), msg=lambda text, choice=choice: f"{choice}: {text}")
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_second_derivative_of_compiled_code_is_an_error(backend):
    layer = torch.compile(SyncBatchNorm(3), backend=backend)
    x = torch.randn(4, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"not currently support double backward|does not require grad"):
        torch.autograd.grad(dx.pow(2).sum(), x)


def test_use_impl_is_honoured_after_compilation():
    def forward_apply(*args):
        y, saved = reference.forward_apply(*args)
        return y + 100, saved

    sbnref.register_impl("louder", replaced(forward_apply=forward_apply))
    layer = SyncBatchNorm(3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3)
    assert compiled(x).mean() < 50
    with sbnref.use_impl("louder"):
        assert compiled(x).mean() > 50
    assert compiled(x).mean() < 50
    layer.impl = "louder"
    assert compiled(x).mean() > 50


def test_the_fallback_of_auto_warns_and_breaks_no_graph():
    @torch.compile(fullgraph=True, backend="eager")
    def channel_sums(x):
        return impls.choose_impl(None, torch.device("cuda")).sum_of(x)

    with patch.object(impls, "why_not", lambda name, device: "there is none here"), pytest.warns(match="none here"):
        channel_sums(torch.ones(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("impl", "backend"), [("reference", "inductor"), ("cpu", "aot_eager")])
def test_torch_func_around_and_within_compiled_code_gives_eager_numbers(impl, backend):
    """A compiled gradient must keep the part that flows through the statistics."""
    layer = SyncBatchNorm(3, impl=impl)
    x = torch.randn(4, 3, 5)

    def gradient(layer):
        return torch.func.grad(lambda x: layer(x).pow(3).sum())

    want = gradient(partial(F.batch_norm, running_mean=None, running_var=None, training=True))(x)
    compiled = torch.compile(layer, backend=backend)
    compiled(x)  # compiles outside of a transform: a transform must not reuse this code
    torch.testing.assert_close(gradient(compiled)(x), want)
    for got, expected in zip(*(torch.func.jvp(f, (x,), (x.sin(),)) for f in (compiled, layer)), strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.compile(gradient(layer), backend=backend)(x), want)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="not compiled within a transform"):
        torch.compile(gradient(layer), backend=backend, fullgraph=True)(x)


# Valid positions of each sample on two ranks: none on one rank, on the other, on both; one; all.
LENGTHS = [([5, 2, 0, 6], [1, 1, 3, 0]), ([0] * 4, [6, 6, 1, 2]), ([3, 0, 0, 1], [0] * 4), ([0] * 4, [0] * 4)]
LENGTHS += [([1, 0, 0, 0], [0] * 4), ([1, 0, 0, 0], [0, 0, 1, 0]), ([6] * 4, [6] * 4)]


class Padded(nn.Module):
    """Two layers, whose collectives a compiler could merge or reorder."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(SyncBatchNorm(3, stats_mode="exact") for _ in range(2))
        self.between = nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return masked(self.norms[1], self.between(masked(self.norms[0], x, mask).relu()), mask)


@pytest.mark.slow
@pytest.mark.parametrize(("whole", "backend"), [(False, "aot_eager"), (True, "inductor")])
@pytest.mark.ranks(2)
def test_masked_steps_compile(whole, backend):
    """The graph breaks at the gather of positions, unless the compiler captures dynamic output shapes."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = Padded().double()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=whole, recompile_limit=32):
        compiled = torch.compile(copy.deepcopy(eager), fullgraph=whole, backend=backend)
        for lengths in LENGTHS:
            mask = torch.arange(6) < torch.tensor(lengths[dist.get_rank()])[:, None]
            x = torch.randn(4, 3, 6, dtype=torch.float64)
            want = step(eager, x, mask, dynamic=False)
            agree(step(compiled, x, mask, dynamic=False), want, f"{lengths} valid")
    torch._dynamo.reset()
