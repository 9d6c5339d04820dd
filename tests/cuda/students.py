# ruff: noqa: E501 (lines of programs, as they are to be)
"""Files of kernels as students may hand them in: the seven rungs, twelve faults, ten ways to be right.

python tests/cuda/students.py     # writes what the rungs spend to sbnref/lab/grading/kernels/rungs.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tutorials"))
from kernels import ladder  # noqa: E402

HEAD, TAIL = '#include "laboratory.cuh"\n', "\n"


def rung(name: str) -> str:
    """A rung as one file. The last one is for channels-last; it leaves other tensors to the one before it."""
    text = '#include "laboratory.cuh"\n'
    for file in sorted(ladder.KERNELS.glob("[1-7]_*.cu")):
        lines = file.read_text().splitlines(keepends=True)
        text += "".join(line for line in lines if not line.startswith(("#include", "#pragma once")))
        if file.name == ladder.RUNGS[name].source:
            break
    calls = " ".join(f"{function}(p);" for function in ladder.RUNGS[name].functions)
    if name == "7 channels-last":
        body = f"""
void forward(const Problem& given) {{
    Problem p = given;
    if (p.C > 1 && p.stride_c == 1) {{
        p.splits = std::max<int64_t>(1, std::min<int64_t>(132 / ((p.C + 31) / 32), p.count() / 8));
        {calls}
    }} else {{
        {" ".join(f"{function}(p);" for function in ladder.RUNGS["6 backwards"].functions)}
    }}
}}"""
    else:
        body = f"void forward(const Problem& p) {{ {calls} }}"
    return f"{text}\n{body}{TAIL}"


NORMALIZE = """
__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x;
    const Line line = once_per_block([&] {
        return Line{p.mean[c], 1 / sqrtf(p.var[c] + static_cast<float>(p.eps)), 0};
    });
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) p.y[p.at(c, i)] = line(p.x[p.at(c, i)]);
}

void forward(const Problem& p) {
    statistics<<<p.C, kThreads, 0, p.stream>>>(p);
    normalize<<<p.C, kThreads, 0, p.stream>>>(p);
}"""
# Of a channel, in one block: its mean, and what each thread finds of its squared deviations.
SUMS = """    const int64_t c = blockIdx.x;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) sum += p.x[p.at(c, i)];
    const double mean = sum_over_block(sum) / p.count();
    __shared__ double squares[kThreads];
    double square = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) {
        const double deviation = p.x[p.at(c, i)] - mean;
        square += deviation * deviation;
    }
    squares[threadIdx.x] = square;
"""
STATISTICS = (
    "\n__global__ void statistics(Problem p) {\n"
    + SUMS
    + """    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) squares[threadIdx.x] += squares[threadIdx.x + half];
    }
    if (threadIdx.x == 0) {
        p.mean[c] = static_cast<float>(mean);
        p.var[c] = static_cast<float>(squares[0] / p.count());
    }
}
"""
)
PLAIN = HEAD + STATISTICS + NORMALIZE + TAIL

# Statistics by several blocks, the last of which merges: [count, mean, m2] of each.
SPLIT = """
__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x / p.splits, split = blockIdx.x % p.splits;
    const int64_t share = (p.count() + p.splits - 1) / p.splits, begin = split * share;
    const int64_t end = begin + share < p.count() ? begin + share : p.count();
    const double first = p.count() > 0 ? p.x[p.at(c, 0)] : 0;
    double sum = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) sum += p.x[p.at(c, i)] - first;
    __shared__ double sums[kThreads];
    __shared__ double squares[kThreads];
    double square = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
        const double deviation = p.x[p.at(c, i)] - first;
        square += deviation * deviation;
    }
    sums[threadIdx.x] = sum;
    squares[threadIdx.x] = square;
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        sums[threadIdx.x] += sums[threadIdx.x + half];
        squares[threadIdx.x] += squares[threadIdx.x + half];
    }
    if (threadIdx.x != 0) return;
    p.partials[2 * blockIdx.x] = sums[0];
    p.partials[2 * blockIdx.x + 1] = squares[0];
    __threadfence();
    const unsigned last = static_cast<unsigned>(p.splits) - 1;
    if (atomicInc(&p.tickets[c], last) != last) return;
    __threadfence();
    double all = 0, all_squares = 0;
    for (int64_t s = 0; s < p.splits; ++s) {
        all += p.partials[2 * (c * p.splits + s)];
        all_squares += p.partials[2 * (c * p.splits + s) + 1];
    }
    const double about = all / p.count();
    p.mean[c] = static_cast<float>(first + about);
    p.var[c] = static_cast<float>(all_squares / p.count() - about * about);
}
"""
SPLIT_FILE = (HEAD + SPLIT + NORMALIZE + TAIL).replace("statistics<<<p.C,", "statistics<<<p.C * p.splits,")


def changed(text: str, was: str, now: str, marked: str | None = None) -> tuple[str, int]:
    """A file with a change, and the line where it goes wrong: the first that has ``marked``, or ``now``."""
    assert text.count(was) == 1, (was, text.count(was))
    text = text.replace(was, now)
    return text, line_of(text, marked or now)


def line_of(text: str, marked: str) -> int:
    """The first line that has something."""
    return text[: text.index(marked)].count("\n") + 1


def handed_out(name: str, marked: str) -> tuple[str, int]:
    """A broken kernel of tutorial 12, and the line where it goes wrong."""
    text = (ladder.KERNELS / "broken" / name).read_text()
    return text, line_of(text, marked)


SHUFFLED = """    if (threadIdx.x < 16) square += __shfl_down_sync(~0u, square, 8);
    squares[threadIdx.x] = square;"""
# What is said of it, the file, and the line.
FAULTS: dict[str, tuple[str, tuple[str, int]]] = {
    "a missing barrier": (
        "read, without a barrier in between",
        handed_out("a.cu", "sums[t] += sums[t"),
    ),
    "a tail": (
        "reads p.x[",
        handed_out("b.cu", "sum += p.x"),
    ),
    "a stride": (
        "writes p.y[1], which thread 0 wrote, without a barrier in between",
        changed(PLAIN, "i += kThreads) p.y", "i += 1) p.y"),
    ),
    "a race on the last block": (
        "without an order between the two blocks",
        handed_out("d.cu", "sums += p.partials"),
    ),
    "sums in float32": (
        ": p.var[0] is ",
        changed(
            SPLIT_FILE.replace("const double first = p.count() > 0 ? p.x[p.at(c, 0)] : 0;", "const double first = 0;"),
            "    double square = 0;",
            "    float square = 0;",
            "p.var[c] =",
        ),
    ),
    "a shared array that is too small": (
        "writes of_warp[8], right behind the end of the shared array of_warp (8 elements)",
        handed_out("f.cu", "of_warp[threadIdx.x / kWarp + kWarps] = square"),
    ),
    "a barrier that not all reach": (
        "waits at __syncthreads",
        changed(
            PLAIN,
            "        __syncthreads();\n        if (threadIdx.x < half) squares",
            "        if (threadIdx.x < half) __syncthreads();\n        else __syncthreads();\n"
            "        if (threadIdx.x < half) squares",
            "        if (threadIdx.x < half) __syncthreads();",
        ),
    ),
    "a shuffle that not all take part in": (
        "waits at __shfl_down_sync for other lanes of its warp",
        changed(PLAIN, "    squares[threadIdx.x] = square;", SHUFFLED),
    ),
    "statistics that nobody wrote": (
        "reads p.mean[0], which was never written",
        changed(PLAIN, "p.mean[c] = ", "if (p.eps < 0) p.mean[c] = ", "return Line{p.mean"),
    ),
    "two blocks that write the same": (
        "without an order between the two blocks",
        changed(PLAIN, "p.mean[c] = ", "p.mean[0] = "),
    ),
    "tickets that are not given back": (
        "p.tickets[0] is 1 in the end",
        changed(SPLIT_FILE, "atomicInc(&p.tickets[c], last)", "atomicInc(&p.tickets[c], last + 1)"),
    ),
}

WIDE = """
template <int V>
__device__ void normalize_by(const Problem& p, int64_t c, const Line& line) {
    for (int64_t i = threadIdx.x * V; i < p.count(); i += kThreads * V) {
        Floats<V> values = floats<V>(p.x + p.at(c, i));
        for (int k = 0; k < V; ++k) values.at[k] = line(values.at[k]);
        floats<V>(p.y + p.at(c, i)) = values;
    }
}
"""
FLAT = """
__global__ void normalize(Problem p) {
    const int64_t all = p.C * p.count(), threads = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < all; k += threads) {
        const int64_t c = k / p.count(), at = p.at(c, k % p.count());
        p.y[at] = (p.x[at] - p.mean[c]) / sqrtf(p.var[c] + static_cast<float>(p.eps));
    }
}

void forward(const Problem& p) {
    statistics<<<p.C, kThreads, 0, p.stream>>>(p);
    normalize<<<7, kThreads, 0, p.stream>>>(p);
}"""
ONE_KERNEL = (
    "\n__global__ void all_in_one(Problem p) {\n"
    + SUMS
    + """    __syncthreads();
    double all = 0;
    for (int t = 0; t < kThreads; ++t) all += squares[t];
    const double scale = 1 / sqrt(all / p.count() + p.eps);
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads)
        p.y[p.at(c, i)] = static_cast<float>((p.x[p.at(c, i)] - mean) * scale);
}

void forward(const Problem& p) { all_in_one<<<p.C, kThreads, 0, p.stream>>>(p); }"""
)
SHUFFLES = """    for (int distance = kWarp / 2; distance > 0; distance /= 2) square += __shfl_down_sync(~0u, square, distance);
    if (threadIdx.x % kWarp == 0) squares[threadIdx.x / kWarp] = square;
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = 0;
        for (int w = 0; w < kThreads / kWarp; ++w) all += squares[w];
        squares[0] = all;
    }
"""
_TREE = STATISTICS[
    STATISTICS.index("    squares[threadIdx.x] = square;") : STATISTICS.index("    if (threadIdx.x == 0) {")
]
# All of them are right.
VARIANTS = {
    "plain": PLAIN,
    "one kernel": HEAD + ONE_KERNEL + TAIL,
    "several blocks and a ticket": SPLIT_FILE,
    "two splits, always": SPLIT_FILE.replace(
        "void forward(const Problem& p) {",
        "void forward(const Problem& given) {\n    Problem p = given;\n    p.splits = 2;",
    ),
    "six splits, always": SPLIT_FILE.replace(
        "void forward(const Problem& p) {",
        "void forward(const Problem& given) {\n    Problem p = given;\n    p.splits = 6;",
    ),
    "a loop over the whole grid": HEAD + STATISTICS + FLAT + TAIL,
    "shuffles": PLAIN.replace(_TREE, SHUFFLES),
    "vectors where they fit": HEAD
    + STATISTICS
    + WIDE
    + NORMALIZE.replace(
        "    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) p.y[p.at(c, i)] = line(p.x[p.at(c, i)]);",
        "    if (p.stride_s == 1 && p.S % 4 == 0)\n        normalize_by<4>(p, c, line);\n    else\n        normalize_by<1>(p, c, line);",
    )
    + TAIL,
    "from the end to the beginning": PLAIN.replace(
        "p.y[p.at(c, i)] = line(p.x[p.at(c, i)]);",
        "{\n        const int64_t at = p.at(c, p.count() - 1 - i);\n        p.y[at] = line(p.x[at]);\n    }",
    ),
    "half of the threads": PLAIN.replace(
        "for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) sum +=",
        "if (threadIdx.x < kThreads / 2)\n        for (int64_t i = threadIdx.x; i < p.count(); i += kThreads / 2) sum +=",
    ),
}
FAULTS["vectors between boundaries"] = (
    "at an address that is no multiple of 16",
    changed(
        VARIANTS["vectors where they fit"],
        "if (p.stride_s == 1 && p.S % 4 == 0)",
        "if (p.count() % 4 == 0)",
        "Floats<V> values = floats<V>(p.x",
    ),
)


def spent() -> dict[str, dict[str, dict[str, int]]]:
    """What the rungs spend, by rung and memory format; the sixth spends what the fifth does."""
    from sbnref.lab.grading.kernels.check import check_kernels

    found: dict[str, dict[str, dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ladder.RUNGS:
            if name == "6 backwards":
                continue
            file = Path(folder, "rung.cu")
            file.write_text(rung(name))
            efficiency = check_kernels(file, ["efficient"], seed=0).efficiency
            assert efficiency is not None
            figures = ("moved", "requests", "launches", "blocks")
            found[name] = {
                one.layout: {figure: getattr(one, figure) for figure in figures}
                for one in efficiency.spent
                if one.layout == "channels_last" or name != "7 channels-last"
            }
    return found


if __name__ == "__main__":
    (ROOT / "sbnref" / "lab" / "grading" / "kernels" / "rungs.json").write_text(json.dumps(spent(), indent=1) + "\n")
