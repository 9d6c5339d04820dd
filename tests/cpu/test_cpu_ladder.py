"""The tutorials' CPU ladder: every rung is right for any number of threads and any alignment of the tensors."""

import platform
import re
import shutil
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from kernels import cpu_ladder
from shared import process

from benchmarks import cpu_ladder as benchmark
from benchmarks import load
from benchmarks.figures import draw
from benchmarks.results import tabulate
from sbnref.impls.reference import forward_stats

pytestmark = pytest.mark.slow

SHAPES = {
    "aligned": (4, 6, 12, 16),
    "ragged": (3, 5, 7, 9),
    "rows shorter than a vector": (70, 3, 2),
    "rows of one element": (150, 33),
    "one channel": (3, 1, 17, 16),
    "one sample": (1, 3, 4097),
    "pieces and what is left": (3, 2, 2 * 4096 + 5),
    "several blocks of rows": (20, 2, 1000),
    "one element per channel": (1, 40, 1, 1),
    "one element": (1, 1, 1),
}
THREADED = [name for name, rung in cpu_ladder.RUNGS.items() if rung.threaded]
EXACT = list(cpu_ladder.RUNGS)[2:]


def tensor(shape: tuple[int, ...], mean: float = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean


def moments(x: torch.Tensor) -> torch.Tensor:
    return forward_stats(x.double(), 1)[: 2 * x.shape[1]].view(2, -1)


def reference(x: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x.double(), *moments(x))


def error(rung: str, x: torch.Tensor) -> float:
    return (cpu_ladder.run(rung, x) - reference(x)).abs().max().item()


def bits(rung: str, x: torch.Tensor, **how) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and the float64 statistics, which expose a changed order of additions better than float32."""
    statistics = torch.empty(2, x.shape[1], dtype=torch.float64)
    return cpu_ladder.run(rung, x, statistics=statistics, **how), statistics


def room(shape: tuple[int, ...], offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a tensor that starts ``offset`` elements into a cache line, and the memory around it."""
    size = torch.Size(shape).numel()
    memory = torch.full((size + 64,), 7.0)
    start = -memory.data_ptr() // 4 % 16 + offset
    return memory[start : start + size].view(shape), memory


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rung", cpu_ladder.RUNGS)
def test_a_rung_agrees_with_the_reference_wherever_tensors_lie_and_writes_nothing_else(rung, shape):
    kept = tensor(shape)
    want, statistics = bits(rung, kept.clone(), threads=3)
    torch.testing.assert_close(want, reference(kept).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics, moments(kept), rtol=1e-5, atol=1e-5)
    for of_x, of_y in ((0, 0), (1, 0), (0, 3), (5, 15)):
        x, _ = room(shape, of_x)
        x.copy_(kept)
        y, memory = room(shape, of_y)
        assert cpu_ladder.run(rung, x, threads=3, out=y) is y
        assert torch.equal(y, want)
        assert torch.equal(x, kept)
        y.fill_(7)
        assert (memory == 7).all()


@pytest.mark.parametrize("shape", [*SHAPES.values(), (9, 8, 28, 28)], ids=[*SHAPES, "many chunks"])
def test_the_bits_do_not_depend_on_the_threads_nor_on_streaming(shape):
    x = tensor(shape)
    want = bits("4 vectors", x)
    for rung in THREADED:
        for threads in (1, 2, 3, 7):
            assert all(map(torch.equal, bits(rung, x, threads=threads), want))


@pytest.mark.parametrize("rung", cpu_ladder.RUNGS)
def test_an_empty_tensor_and_a_nan_that_stays_in_its_channel(rung):
    for shape in ((0, 3, 4, 4), (2, 0, 4), (2, 3, 0)):
        assert cpu_ladder.run(rung, torch.zeros(shape)).shape == shape
    x = tensor((4, 3, 5, 5))
    x[2, 1, 3, 3] = torch.nan
    y = cpu_ladder.run(rung, x)
    assert y[:, 1].isnan().all()
    assert not y[:, ::2].isnan().any()


@pytest.mark.parametrize("rung", EXACT)
def test_blocks_keep_digits_at_a_large_mean_whatever_the_first_element_is(rung):
    x = tensor((16, 3, 28, 28), mean=1e3)
    assert error(rung, x) < 5e-6
    assert error(rung, x) < error("2 one pass", x) / 4  # a float32 mean is off by up to 3e-5
    x[0, :, 0, 0] = 0
    assert error(rung, x) < 1e-3
    assert error("2 one pass", x) > 0.1


def test_what_does_not_compile_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    (tmp_path / "1_naive.cpp").write_text("int f() { return missing; }")
    with pytest.raises(RuntimeError, match=r"compiling failed:(\n|.)*missing"):
        cpu_ladder.run("1 naive", torch.zeros(2, 3), kernels=tmp_path)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="skipped: names of x86's instructions")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="skipped: there is no objdump")
def test_vectors_begin_with_rung_4():
    said = process("objdump", "-d", "--no-show-raw-insn", cpu_ladder.library()._name)
    functions = dict(re.findall(r"<(\S+)>:\n((?:.+\n)+)", said.stdout))
    one, sixteen = (
        {name for name, instructions in functions.items() if re.search(rf"\bv?(add|sub|mul){kind}\b", instructions)}
        for kind in ("ss", "ps")
    )
    assert one >= {"ladder_naive", "ladder_one_pass", "ladder_blocks"}
    assert all("vector" in name for name in sixteen), sixteen
    for name in ("vector_moments", "vector_normalize"):
        assert any(name in mangled for mangled in sixteen), name


def test_the_benchmark_measures_every_rung_and_is_drawn(monkeypatch, tmp_path, request):
    files = {path.name for path in cpu_ladder.KERNELS.glob("[0-9]_*.cpp")}
    assert files == {rung.source for rung in cpu_ladder.RUNGS.values()}
    sizes = [4 * torch.Size((n, *benchmark.SAMPLE)).numel() for n in benchmark.batches()]
    caches = cpu_ladder.caches()
    assert sizes[0] <= caches["L2"]
    assert sizes[-1] >= 3 * caches["last level"]

    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    file = tmp_path / "r.json"
    monkeypatch.setattr(benchmark, "batches", lambda: [1, 2])
    monkeypatch.setattr(sys, "argv", ["cpu_ladder.py", "--seconds", "0", "--output", str(file)])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    benchmark.main()
    results = load(file)
    layers = ["copy", *cpu_ladder.RUNGS, "F.batch_norm", "impl='cpu'"]
    rows = [row for row in results.rows if row["shape"][0] == 2]
    assert [row["layer"] for row in rows if row["what"] == "1 thread"] == layers
    assert [row["layer"] for row in rows if row["what"] == "2 threads"] == ["copy", *THREADED, *layers[-2:]]
    size = 4 * torch.Size((2, *benchmark.SAMPLE)).numel()
    assert {row["bytes_moved"] / size for row in rows if row["layer"] == "copy"} == {2}
    assert {row["bytes_moved"] / size for row in rows if row["layer"] != "copy"} == {3}
    headings, inputs = tabulate(results.rows)
    assert headings == ["layer", "1 thread, µs", "×", "2 threads, µs", "×"]
    assert [line[0] for line in inputs["2×32×28×28, float32"]] == layers
    assert [path.name for path in draw(results, tmp_path, "r")] == ["r-cpu_ladder.png"]
