"""Time the ladder of tutorial 11, a copy, F.batch_norm and the package's kernels for each tensor size.

    python benchmarks/cpu_ladder.py --output NAME.json [--seconds 3]

Writes benchmarks/results/NAME.json, or the given file if its path is absolute. Measures each size for the given seconds
with one thread, then with all threads: about two minutes in all. Needs PyTorch, a C++ compiler, and an idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tutorials"))

from kernels import cpu_ladder

from benchmarks.results import Results, Row
from benchmarks.show import show
from benchmarks.timing import fill, spread

SAMPLE = (32, 28, 28)  # 98 KiB


def batches() -> list[int]:
    """Return powers of two: from x and y together in a core's L2, to x several times the last-level cache."""
    caches, sample = cpu_ladder.caches(), 4 * torch.Size(SAMPLE).numel()
    batches = [1]
    while batches[-1] * sample < 3 * caches["last level"]:
        batches.append(2 * batches[-1])
    return [n for n in batches if 4 * n * sample > caches["L2"]]


def measure(n: int, threads: int, seconds: float) -> list[Row]:
    """Measure each layer, and return its rows."""
    torch.manual_seed(0)
    x = fill((n, *SAMPLE), torch.float32, "contiguous")
    about = {
        "suite": "cpu_ladder",
        "what": f"{threads} thread{'s' if threads > 1 else ''}",
        "shape": tuple(x.shape),
        "layout": "contiguous",
        "dtype": "float32",
        "world_size": 1,
    }
    return [
        {**about, "layer": name, **spread(times), "bytes_moved": cpu_ladder.moved(name, x)}
        for name, times in cpu_ladder.times(x, threads, seconds).items()
    ]


def main() -> None:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()

    threads = torch.get_num_threads()
    results = Results(notes={"caches": cpu_ladder.caches(), "threads": threads})
    for n in batches():
        for count in dict.fromkeys((1, threads)):
            results.rows += measure(n, count, options.seconds)
    show(results)
    results.save(cpu_ladder.RESULTS / options.output)


if __name__ == "__main__":
    main()
