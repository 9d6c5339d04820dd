"""Solutions to tutorial 12, your own kernel."""

import re
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from kernels import ladder

from sbnref.lab.grading.kernels.check import check_kernels
from sbnref.lab.task_call import TaskCall, compiled, record_task
from sbnref.lab.tasks import TASKS, Typical

TASK, MOMENTS = TASKS["batch_norm"], TASKS["moments"]
PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "teach.md").read_text()
folder = Path(tempfile.mkdtemp())


def grade(text: str, *parts: str, task=MOMENTS, examples: int = 12):
    """Grade a file of kernels with this text."""
    file = folder / "mine.cu"
    file.write_text(text)
    return check_kernels(file, task, parts, examples=examples, seed=1)


def changed(text: str, *changes: tuple[str, str]) -> str:
    """Return a text with changes; each old part must occur once."""
    for was, now in changes:
        assert text.count(was) == 1, was
        text = text.replace(was, now)
    return text


# 1. The fault of each kernel, the part of the report that finds it, and the repair. No
# input shows the third fault, because y is right. Each of its threads works on its own
# piece, as threads on a CPU would. So the lanes of a warp are far apart at any time, and
# every access moves one sector per lane but uses only 4 bytes of it.
BROKEN = {
    "a": (
        "a missing barrier",
        "legal",
        (
            "        }\n    }\n    if (t != 0)",
            "        }\n        __syncthreads();\n    }\n    if (t != 0)",
        ),
    ),
    "b": (
        "a missing bounds check",
        "legal",
        ("        sum += x[", "        if (i < count) sum += x["),
    ),
    "c": (
        "strided access",
        "efficient",
        (
            """        const int length = (count + kThreads - 1) / kThreads;
        begin = threadIdx.x * length;
        end = min(begin + length, count);
        step = 1;
""",
            """        begin = threadIdx.x;
        end = count;
        step = kThreads;
""",
        ),
    ),
    "d": (
        "a race on the last block",
        "legal",
        ("    const unsigned last", "    __threadfence();\n    const unsigned last"),
    ),
    "e": (
        "float32 sums that lose precision",
        "right",
        ("Number = float", "Number = double"),
    ),
    "f": (
        "a shared array that is too small",
        "legal",
        ("of_warp[kWarps]", "of_warp[2 * kWarps]"),
    ),
}
texts = {
    name: (ladder.KERNELS / "broken" / f"{name}.cu").read_text() for name in BROKEN
}
repaired = {
    name: changed(texts[name], change) for name, (_, _, change) in BROKEN.items()
}
for name, (wrong, question, _) in BROKEN.items():
    if question == "efficient":
        report = grade(texts[name], "legal", "right", "efficient")
        assert report.passed
        found = report.parts[-1].counted
        message = f"moves {found['moved'] / found['least']:.2f} times the least"
        assert found["moved"] > 5 * found["least"]
    else:
        fault = grade(texts[name], question, examples=40).parts[0].fault
        if question == "legal":
            message = f"line {fault.line}: {fault.what}"
        else:
            problem = re.sub(" by .*", "", fault.what)
            message = f"line {fault.line}: {problem}. {fault.hint}"
    print(f"1. {name}.cu, {wrong}; {question} reports: {message}")
    assert f"| `{name}.cu` | {wrong} | {question} | {message} |" in PAGE
    again = grade(repaired[name], "legal", "right")
    assert again.passed, again
print("1. all six are repaired")


# The player shows the third fault: before and after, equal bytes in different numbers of
# sectors.
def recorded(text: str, sizes: tuple[int, int, int]):
    """Record a file with this text."""
    file = folder / "recorded.cu"
    file.write_text(text)
    return record_task(file, MOMENTS, sizes)


sectors = []
for text in (texts["c"], repaired["c"]):
    counts = recorded(text, (6, 2, 100)).counts()
    sectors.append(counts["sectors"])
    accessed = counts["read"] + counts["written"]
    print(f"1. c.cu: {accessed:,} bytes accessed, {counts['sectors']:,} sectors moved")
assert sectors[0] > 2 * sectors[1]

# 2. Without the first fence, another block may see the ticket before the sums. This is the
# fault of d.cu.
wide = (ladder.KERNELS / "own" / "4_wide.cu").read_text()
add_up = wide[wide.index("__global__ void add_up") : wide.index("// What was loaded")]
launch = wide[wide.index("    add_up<<<") : wide.index("    normalize<V><<<")]
ticket = changed(
    wide,
    (add_up, ""),
    (launch, ""),
    (
        "double* partials, int splits,",
        "double* partials, unsigned* tickets, float* mean, float* var, int splits,",
    ),
    (
        "    partials[partial(1, split, c, splits, C)] = all_squares;\n",
        """    partials[partial(1, split, c, splits, C)] = all_squares;
    __threadfence();  // other blocks see the sums before the ticket
    const unsigned last = splits - 1;
    if (atomicInc(&tickets[c], last) != last) return;
    __threadfence();
    double total = 0, total_squares = 0;
    for (int s = 0; s < splits; ++s) {
        total += partials[partial(0, s, c, splits, C)];
        total_squares += partials[partial(1, s, c, splits, C)];
    }
    store_statistics(mean, var, c, first, total, total_squares, count);
""",
    ),
    (
        "    cudaMalloc(&mean,",
        "    unsigned* tickets;\n    cudaMalloc(&tickets, C * sizeof(unsigned));\n"
        "    cudaMemset(tickets, 0, C * sizeof(unsigned));\n    cudaMalloc(&mean,",
    ),
    (
        "(x, partials, splits, count, C, S);\n",
        "(x, partials, tickets, mean, var, splits, count, C, S);\n",
    ),
    ("    cudaFree(partials);", "    cudaFree(tickets);\n    cudaFree(partials);"),
)
report = grade(ticket, "legal", "right", "efficient", task=TASK)
assert report.passed, report
print(f"2. {report.parts[-1].counted['launches']} launches, score {report.score:.2f}")
assert report.parts[-1].counted["launches"] == 2

# 3. A sector has 8 numbers, and the next element of a channel is C numbers away. So a warp
# uses 8 / C numbers of each sector, at least one. Three times min(C, 8) sizes of x move.
# The partial sums add little to this.
step = TaskCall(compiled(ladder.KERNELS / "own" / "4_wide.cu", [TASK]), TASK.signature)
for channels in (1, 2, 4, 8, 32):
    samples = 800_000 // channels
    given = TASK.given(Typical((samples, channels, 1)))
    sectors = step.run(given, {"y": given["x"].shape})["sectors"]
    moved = 32 * sectors / given["x"].nbytes
    predicted = 3 * min(channels, 8)
    print(
        f"3. {channels} channels: {moved:.2f} sizes of x moved, predicted {predicted}"
    )
    assert abs(moved / predicted - 1) < 0.06

# 4. Shared memory has 32 banks of 4 bytes, so it serves 16 lanes at once with one double
# each, if the doubles are side by side. With growing distances, neighbouring lanes access
# doubles that are 2d apart, and more and more of them share a bank. In the tree of a.cu,
# neighbouring lanes always access neighbouring doubles.
growing = changed(
    repaired["a"],
    (
        "for (unsigned half = kThreads / 2; half > 0; half /= 2) {\n        if (t < half) {",
        "for (unsigned d = 1; d < kThreads; d *= 2) {\n        if (const unsigned at = 2 * d * t; at < kThreads) {",
    ),
    (
        "sums[t] += sums[t + half]",
        "sums[at] += sums[at + d]",
    ),
    (
        "squares[t] += squares[t + half]",
        "squares[at] += squares[at + d]",
    ),
)
conflicts = []
for text in (repaired["a"], growing):
    found = recorded(text, (2, 2, 64))
    conflicts.append(found.counts()["conflicts"])
    shared = sum(step.act.is_shared for step in found.steps)
    print(
        f"4. {conflicts[-1]:,} bank conflicts in {shared:,} accesses to shared memory"
    )
assert conflicts[0] == 0 < conflicts[1]
