"""The four stages in a file of kernels: agreement with the reference on ragged ranks, grades and errors."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from shared import refused

import sbnref
from sbnref.impls import STAGES, impl_names
from sbnref.lab.implementation import StageKernels
from sbnref.modes import STATS_MODES

pytestmark = pytest.mark.slow

RIGHT = Path(__file__).with_name("tasks.cu")
PLANTED = {  # in each stage: the right text, and a kind of bug that libraries have shipped
    "forward_stats": ("w * m.var", "w * (m.var + m.mean * m.mean)"),
    "forward_apply": ("D > 0 ? D : weights > 1", "weights > 1"),
    "backward_stats": ("payload[c] = g, payload[C + c] = gx;", "payload[c] = gx, payload[C + c] = g;"),
    "backward_apply": (" - saved[2 * C + c] * b", ""),
}
SIZES = ((3, 2), (0, 4), (2, 3))  # per rank: samples, and the size of both spatial dimensions


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("stages") / "wrong.cu"
    text = RIGHT.read_text()
    for was, now in PLANTED.values():
        assert text.count(was) == 1, was
        text = text.replace(was, now)
    file.write_text(text)
    for compiled in (RIGHT, file):  # compile before the ranks do so concurrently
        StageKernels(compiled)
    return file


def tensor(channels_last: bool = False) -> torch.Tensor:
    """Return this rank's input; on the last rank the mean is far above the standard deviation."""
    rank = dist.get_rank()
    n, s = SIZES[rank]
    x = torch.randn(n, 5, s, s, generator=torch.Generator().manual_seed(rank)) + (1000 if rank == 2 else rank)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def register_right():
    if "right.cu" not in impl_names():
        sbnref.register_impl("right.cu", StageKernels(RIGHT))


@pytest.mark.usefixtures("wrong")
@pytest.mark.ranks(3)
def test_a_right_file_agrees_in_every_mode_with_ragged_and_empty_ranks():
    register_right()
    options = ({}, {"momentum": None, "affine": False}, {"track_running_stats": False})
    for mode, option in zip(STATS_MODES, options, strict=True):
        for last in (False, True):
            layer = sbnref.SyncBatchNorm(5, stats_mode=mode, **option)
            report = sbnref.compare(layer, tensor(last), ("reference", "right.cu"))
            assert report.agrees, str(report)
    empty = sbnref.compare(sbnref.SyncBatchNorm(5), torch.zeros(0, 5, 2), ("reference", "right.cu"))
    assert empty.agrees
    assert len(report.rows) > 20


@pytest.mark.ranks(3)
def test_the_stage_of_each_planted_bug_is_blamed(wrong):
    right, wrong = StageKernels(RIGHT), StageKernels(wrong)
    for stage in STAGES:
        stages = {name: getattr(wrong if name == stage else right, name) for name in STAGES}
        sbnref.register_impl(f"wrong {stage}", SimpleNamespace(**stages))
        report = sbnref.compare(sbnref.SyncBatchNorm(5), tensor(), ("reference", f"wrong {stage}"))
        assert (report.first_divergence.stage, report.first_divergence.wrong) == (stage, (f"wrong {stage}",))


@pytest.mark.usefixtures("wrong")
def test_a_file_runs_as_a_layer_does():
    """Forward and backward through autograd, in one process."""
    register_right()
    x = torch.randn(3, 5, 4, 4)[:, :, ::2]  # with gaps
    results = []
    for impl in ("reference", "right.cu"):
        layer = sbnref.SyncBatchNorm(5, impl=impl)
        leaf = x.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        results.append((leaf.grad, layer.weight.grad, layer.running_var))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


FAULTS = {  # in forward_stats: the text, its replacement, the message, and text of the reported line
    "a tail": ("k < N * S; k += kThreads) f(", "k <= N * S; k += kThreads) f(",
               "reads x[3], just past the end of x (3 elements) (line {line})", "sum += x[i]; });"),
    "part of the payload": ("if (c == 0) payload[3 * C] = w, payload[3 * C + 1] = N * S;", "",
                            "some elements of payload are never written, such as payload[3]", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_legal_is_said_with_the_line(name, tmp_path):
    was, now, said, marked = FAULTS[name]
    text = RIGHT.read_text()
    assert text.count(was) == 1
    text = text.replace(was, now)
    file = tmp_path / "mine.cu"
    file.write_text(text[: text.index("__global__ void forward_apply_kernel")])  # a single stage compiles faster
    kernels = StageKernels(file)
    with pytest.raises(RuntimeError) as refused:
        kernels.forward_stats(torch.randn(3, 1), 1)
    assert said.format(line=text[: text.index(marked)].count("\n") + 1) in str(refused.value)
    with pytest.raises(NotImplementedError, match="there is no function backward_stats"):
        kernels.backward_stats(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(4, 1).double())


def test_what_a_file_does_not_take_is_refused_in_a_sentence(tmp_path):
    kernels = StageKernels(RIGHT)
    with pytest.raises(TypeError, match=r"expected x in torch.float32 for CUDA files, got torch.float16"):
        kernels.forward_stats(torch.zeros(2, 3).half(), 1)
    gamma = torch.ones(3).double()
    with pytest.raises(TypeError, match=r"expected gamma in torch.float32 for CUDA files, got torch.float64"):
        kernels.forward_apply(torch.zeros(2, 3), torch.ones(8).double(), 1, gamma, None, 1e-5, None, 0.1)
    assert "in the simulation, CPU tensors" in kernels.why_not(torch.device("mps"))
    if torch.version.cuda is None:
        assert "was built without CUDA" in kernels.why_not(torch.device("cuda"))

    broken, none = tmp_path / "broken.cu", tmp_path / "none.cu"
    broken.write_text("#include <nowhere>\nvoid forward_stats() {}\n")
    none.write_text("// nothing\n")
    for arguments, what in {
        (str(RIGHT), "--dtype", "bfloat16"): "expected input in torch.float32 for",
        (str(none),): "to define forward_stats, forward_apply, backward_stats or backward_apply, found none",
        ("no.cu",): "no.cu, which does not exist",
        (str(broken),): "compiling failed",
    }.items():
        assert what in refused("compare", "--ranks", 1, "--impl", "reference", "--impl", *arguments)
    register_right()
    wide, x = sbnref.SyncBatchNorm(3, dtype=torch.float64), torch.zeros(4, 3).double()
    with pytest.raises(ValueError, match=r"expected input in torch.float32 for right.cu, got torch.float64"):
        sbnref.compare(wide, x, ("reference", "right.cu"))
