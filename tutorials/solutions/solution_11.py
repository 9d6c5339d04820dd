"""Solutions to tutorial 11, from formula to CPU loop. They print times without asserts."""

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import torch

sys.path.append(str(Path(__file__).parents[1]))
from kernels import cpu_ladder

from sbnref import functional
from sbnref.lab.timing import interleaved

torch.manual_seed(0)
x = torch.randn(64, 32, 28, 28) + 1


def reference(x: torch.Tensor) -> torch.Tensor:
    """Return the output of the layer on one rank, in the precision of x."""
    return functional.sync_batch_norm(x, None, None, training=True, impl="reference")


def milliseconds(works: dict) -> dict[str, float]:
    """Return median times of runs in turns."""
    with cpu_ladder.kept_memory():
        times = interleaved(works, seconds=1)
    return {name: 1e3 * median(of) for name, of in times.items()}


# 1. The compiler can make vectors of independent operations: the loop that normalizes.
# A sum is a chain and must keep the order of its additions. So no bit changes, and the
# statistics take as long as before. If the compiler may reorder additions, it splits
# one chain into several. Rung 1 then has other bits, and often better ones, because the
# chains are shorter. Rung 5 may give other bits on another machine: the compiler
# chooses the order of additions, and the order depends on the width of the registers.
vectors = ("-ftree-vectorize",)
reordered = (
    *vectors,
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
)
for rung in cpu_ladder.RUNGS:
    run = {
        name: partial(cpu_ladder.run, rung, x, flags=flags)
        for name, flags in (
            ("as it is", ()),
            ("vectors", vectors),
            ("reordered", reordered),
        )
    }
    y = {name: work() for name, work in run.items()}
    assert torch.equal(y["as it is"], y["vectors"])
    torch.testing.assert_close(y["reordered"], reference(x), rtol=1e-3, atol=1e-3)
    took = ", ".join(f"{name} {ms:.1f} ms" for name, ms in milliseconds(run).items())
    equal = torch.equal(y["as it is"], y["reordered"])
    print(f"1. rung {rung}: {took}; reordering keeps the bits: {equal}")

# 2. If the pivot is k deviations from the mean, the sum of squares over m is v (1 + k^2),
# and v k^2 is subtracted from it. Each number is rounded to a relative 2^-24, at least
# once and at most once for every addition: if all terms are alike, many additions in a
# row can be rounded in one direction. So the error of v is between k^2 2^-24 and
# m k^2 2^-24. In rung 3, k is about zero, and a chain has 4096 terms for any m.
m = x[:, 0].numel()
for k in (1, 10, 100, 1000):
    off = x.clone()
    off[0, :, 0, 0] = off.mean([0, 2, 3]) + k
    var, mean = torch.var_mean(off.double(), [0, 2, 3], correction=0)
    errors = []
    for rung in ("2 one pass", "3 blocks"):
        statistics = torch.empty(2, 32, dtype=torch.float64)
        cpu_ladder.run(rung, off, statistics=statistics)
        errors.append((statistics[1] / var - 1).abs().max().item())
    # The outlier itself moves mean and deviation: use its distance after that.
    least = (1 + (off[0, :, 0, 0] - mean).square() / var).max().item() * 2**-24
    print(
        f"2. k = {k}: rung 2 {errors[0]:.0e}, expected {least:.0e} to {m * least:.0e}; "
        f"rung 3 {errors[1]:.0e}"
    )
    assert errors[0] < m * least
    assert errors[1] < 1e-5
assert errors[0] > 0.01

# 3. A channel that fits into a cache is fetched once, so x and y move once each, as in a
# copy. This holds if N * S * 4 bytes are less than the cache, for any C. A layer of
# several processes cannot do this, because the totals of all channels come from one
# all-reduce.
folder = Path(tempfile.mkdtemp()) / "cpu"
shutil.copytree(cpu_ladder.KERNELS, folder)
source = folder / "4_vectors.cpp"
text = source.read_text()
door = text.index("EXPORT void ladder_vectors")
source.write_text(
    text[:door]
    + """EXPORT void ladder_vectors(const Problem* problem) {
    const Problem& p = *problem;
    const Cut cut(p);
    std::vector<Line> lines(p.C);
    for (int64_t c = 0; c < p.C; ++c) {
        Moments channel;
        for (int64_t g = 0; g < cut.groups; ++g)
            for (int64_t i = 0; i < cut.pieces; ++i)
                channel = merge(
                    channel, vector_moments(p, cut.block((g * p.C + c) * cut.pieces + i)));
        lines[c] = normalizing(p, c, channel.mean, channel.squares / channel.count);
        for (int64_t n = 0; n < p.N; ++n) {  // lanes may not overwrite the next row
            const int64_t row = p.row(n, c);
            vector_normalize(p, lines, row, row + p.S, p.y + row, p.y + row + p.S);
        }
    }
}

}  // namespace sbnref::cpu::ladder
"""
)
for shape in ((64, 32, 28, 28), (3, 5, 7, 9), (2, 3, 4097), (70, 3, 2)):
    small = torch.randn(shape)
    assert torch.equal(
        cpu_ladder.run("4 vectors", small, kernels=folder),
        cpu_ladder.run("4 vectors", small),
    )
large = torch.randn(256, 64, 28, 28)  # 49 MiB; a channel has 784 KiB
took = milliseconds(
    {
        "copy": lambda: torch.empty_like(large).copy_(large),
        "rung 4": lambda: cpu_ladder.run("4 vectors", large),
        "a channel through both stages": lambda: cpu_ladder.run(
            "4 vectors", large, kernels=folder
        ),
    }
)
print("3.", ", ".join(f"{name} {ms:.1f} ms" for name, ms in took.items()))

# 4. Rungs 1 and 2 go channel by channel. If rows have one element, they use one number of
# a cache line and fetch the line again for the next channel. Rungs 3 to 6 set up and
# merge a block for at most 64 rows, even if the rows are short. In rung 4 a row of one
# element uses one lane of sixteen, and a division to find its channel. The package treats
# such rows as columns: lanes hold neighbouring channels, every column has a sum, and each
# cache line is used completely.
size = x.numel()
for length in (1, 7, 49, 784):
    rows = torch.randn(size // 64 // length, 64, length)
    rungs = ("2 one pass", "3 blocks", "4 vectors", "impl='cpu'")
    for rung in rungs[:3]:
        y = cpu_ladder.run(rung, rows)
        torch.testing.assert_close(y, reference(rows), rtol=1e-3, atol=1e-3)
    times = cpu_ladder.times(rows, threads=1, seconds=1, only=rungs)
    took = (f"{rung} {1e3 * median(times[rung]):.1f} ms" for rung in rungs)
    print(f"4. rows of {length}:", ", ".join(took))
