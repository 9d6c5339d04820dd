"""Solutions to tutorial 5, from formula to kernel."""

import shutil
import sys
import tempfile
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))
from kernels import ladder

from sbnref import functional

torch.manual_seed(0)


def reference(x: torch.Tensor) -> torch.Tensor:
    """Return the output of the layer on one rank, in the precision of x."""
    return functional.sync_batch_norm(x, None, None, training=True, impl="reference")


# 1. Let the cache hold K bytes, and let x have X bytes. Forwards, if K < X, the start of x
# is gone, and each fetch evicts the sectors that are needed next. If K > X, there is room
# for the first K - X bytes of y; then y evicts the next bytes of x. Backwards, y evicts
# the oldest bytes of x. Reading and eviction meet when K / 2 bytes are read and K / 2
# bytes are written.
x = torch.randn(16, 32, 28, 28)
calls = [ladder.Call(rung, x) for rung in ("5 payload", "6 backwards")]
counts = [ladder.count(call) for call in calls]
for capacity in (0.4, 0.8, 1.2, 1.6):
    predicted = 1 - max(0, capacity - 1), 1 - capacity / 2
    got = [
        ladder.fetched(call, count, int(capacity * x.nbytes))
        for call, count in zip(calls, counts, strict=True)
    ]
    print(
        f"1. a cache of {capacity} x: forwards {got[0]:.2f}, predicted {predicted[0]:.2f}; "
        f"backwards {got[1]:.2f}, predicted {predicted[1]:.2f}"
    )
    assert abs(got[0] - predicted[0]) < 0.1
    assert abs(got[1] - predicted[1]) < 0.1


def changed(source: str, old: str, new: str) -> Path:
    """Return a copy of the kernels with one change."""
    folder = Path(tempfile.mkdtemp()) / "kernels"
    shutil.copytree(ladder.KERNELS, folder)
    text = (folder / source).read_text()
    assert old in text
    (folder / source).write_text(text.replace(old, new))
    return folder


# 2. The simulation reports a read of an element that another thread wrote since the last
# barrier, or that no thread has written yet. The order of the threads decides which of
# the two it reports, but it always reports one. A GPU reports nothing, and its result may
# even be right most of the time.
kernels = changed("2_welford.cu", "__syncthreads();", "")
for order in ("ascending", "descending", "random:0"):
    ladder.set_order(order, kernels)
    try:
        ladder.Call("2 Welford", x[:2], kernels=kernels).run()
    except RuntimeError as error:
        print(f"2. {order}: {error}")
    else:
        raise AssertionError("the missing barrier went unnoticed")

# 3. w = m on every rank gives 'exact', because then S1 / W is the mean of all elements.
# 'default' divides by D = G, the number of ranks. Rung 5 divides by W, the number of ranks
# with data.
parts = [torch.randn(4, 6, 8, 8) + 2, torch.randn(0, 6, 8, 8)]
calls = [ladder.Call("5 payload", part, weight=part[:, 0].numel()) for part in parts]
for call in calls:
    call.run("payload_stats")
total = sum(call.payload for call in calls)
for call in calls:
    call.payload.copy_(total)
    call.run("payload_apply")
torch.testing.assert_close(
    torch.cat([call.y for call in calls]),
    reference(torch.cat(parts)),
    rtol=1e-5,
    atol=1e-5,
)
print("3. both ranks normalize by the statistics of all elements")

# 4. Deviations from a value of the data are small, so float32 rounds their running mean
# finely.
kernels = changed(
    "7_channels_last.cu",
    "add(mine, x);",
    "if (mine.count == 0) shift = x; add(mine, x - shift);",
)
source = kernels / "7_channels_last.cu"
text = source.read_text().replace(
    "Moments<float> mine{};", "Moments<float> mine{};\n    float shift = 0;"
)
text = text.replace(
    "{mine.count, mine.mean, mine.m2}",
    "{mine.count, static_cast<double>(shift) + mine.mean, mine.m2}",
)
source.write_text(text)
far = (torch.randn(8, 32, 14, 14) + 1e4).contiguous(memory_format=torch.channels_last)
errors = []
for folder in (ladder.KERNELS, kernels):
    y = ladder.Call("7 channels-last", far, kernels=folder).run()
    errors.append((y - reference(far.double())).abs().max().item())
print(f"4. at a mean of 10^4: error {errors[0]:.0e} before, {errors[1]:.0e} after")
assert errors[1] < errors[0] / 10
