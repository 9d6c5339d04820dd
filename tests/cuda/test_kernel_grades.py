"""Grading students' kernels: right kernels pass, and the report names each fault and its line."""

import json
import os
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from handing_in import ENVIRONMENT, Autograder, conforms, hand_in, scores
from nvcc import FLAGS, compile_together, needs_nvcc
from shared import blocks, cli, process, refused

from sbnref.conformance.stages import ContractError
from sbnref.lab import LABORATORY
from sbnref.lab.course.gradescope import grade
from sbnref.lab.course.make import make
from sbnref.lab.course.packing import TUTORIALS
from sbnref.lab.course.settings import Settings
from sbnref.lab.grading.kernels.check import check_kernels
from sbnref.lab.grading.kernels.source import why_rejected
from sbnref.lab.run import run
from sbnref.lab.tasks import TASKS, Task, find_task

pytestmark = pytest.mark.slow

RIGHT = Path(__file__).with_name("tasks.cu")
STEPS = {file.stem: file.read_text() for file in sorted((TUTORIALS / "kernels" / "own").glob("*.cu"))}
BROKEN = {file.stem: file.read_text() for file in sorted((TUTORIALS / "kernels" / "broken").glob("*.cu"))}
FORMULA, WIDE = STEPS["1_formula"], STEPS["4_wide"]
EVERYTHING = ("legal", "right", "efficient")
HEAD = "void batch_norm(const float* x, float* y, int N, int C, int S, float eps) {"
OWN = blocks("docs/cuda_without_a_gpu.md", "python")[0].replace("1 << 16", "1 << 14")
SAXPY = """#include <cuda_runtime.h>

__global__ void kernel(const float* x, const float* y, float* z, float a, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) z[i] = a * x[i] + y[i];
}

void saxpy(const float* x, const float* y, float* z, float a, int n) { kernel<<<(n + 63) / 64, 64>>>(x, y, z, a, n); }
"""


class InThisProcess:
    """Stand in for the student's process, which would start more slowly than these kernels are graded."""

    unconfined = None

    allow = close = lambda self, *_: None

    def __init__(self, job):
        self.job = job

    def start(self, seconds):
        self.functions = runpy.run_path(self.job.target)

    def call(self, name, *arguments):
        try:
            return self.functions[name](*arguments)
        except RuntimeError as error:
            raise ContractError(f"raised {error}") from None


@pytest.fixture
def _in_this_process(monkeypatch):
    monkeypatch.setattr("sbnref.lab.grading.kernels.check.Student", InThisProcess)


def graded(tmp_path, text, parts=("legal", "right"), task=None, **options):
    file = tmp_path / "theirs.cu"
    file.write_text(text)
    task = task or ("moments" if "void moments(" in text else "batch_norm")
    return check_kernels(file, find_task(task), parts, **{"examples": 30, "seed": 1, **options})


def first_fault(report):
    return next(part.fault for part in report.parts if part.fault)


def changed(text: str, was: str, now: str) -> str:
    assert text.count(was) == 1, (was, text.count(was))
    return text.replace(was, now)


@pytest.mark.parametrize("name", TASKS)
def test_a_right_answer_passes(name):
    report = check_kernels(RIGHT, TASKS[name], examples=8, seed=1)
    assert report.passed, str(report)
    assert 0 < report.parts[-1].score <= 1
    assert "times the least" in str(report)


@pytest.mark.usefixtures("_in_this_process")
def test_the_steps_of_the_tutorial_pass_and_improve(tmp_path):
    found = [graded(tmp_path, text, EVERYTHING, examples=8) for text in STEPS.values()]
    assert all(report.passed for report in found)
    first, second, third, fourth = (report.parts[-1].counted for report in found)
    assert first["moved"] > 1.3 * second["moved"]
    assert second["blocks"] < 132 <= third["blocks"]
    assert third["accesses"] > 3 * fourth["accesses"]
    assert found[-1].score == 1


# The file, the message, and text of the reported line, the first line that contains it. solution_12.py grades BROKEN.
FAULTS = {
    "a barrier between sums": (
        changed(FORMULA, "    __syncthreads();  // before the next sum uses the same shared memory\n", ""),
        "without a barrier in between", "const double all = sum_over_block(squares)"),
    "statistics that no thread wrote": (
        changed(FORMULA, "mean[c] = average;", "if (c > 0) mean[c] = average;"),
        "reads mean[0], which was never written", "center = mean[c]"),
    "vectors between boundaries": (
        changed(WIDE, "S % 4 == 0", "N * S % 4 == 0"),
        "at an address that is not a multiple of 16", "const Floats<V> values ="),
    "a shuffle that not all take part in": (
        changed(BROKEN["f"].replace("of_warp[kWarps]", "of_warp[2 * kWarps]"),
                "    for (int distance = kWarp / 2;", "    if (threadIdx.x < 8) for (int distance = kWarp / 2;"),
        "waits at __shfl_down_sync for other lanes of its warp", "sum += __shfl_down"),
    "results that are missing": (
        changed(FORMULA, "        y[at(c, i, C, S)] =", "        if (i > 0) y[at(c, i, C, S)] ="),
        "some elements of y are never written, such as y[0, 0, 0]", None),
    "the host": (changed(FORMULA, HEAD, f"{HEAD}\n    y[0] = 1;"), "the host writes y[0], which is", "    y[0] = 1;"),
}  # fmt: skip


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_line(name, tmp_path):
    text, said, marked = FAULTS[name]
    report = graded(tmp_path, text)
    fault = first_fault(report)
    assert said in fault.what
    assert fault.line == (marked and text[: text.index(marked)].count("\n") + 1)
    assert fault.hint is None
    assert not report.passed


@pytest.mark.parametrize(
    ("was", "now", "what", "line"),
    [
        ("    if (i < n) z", "    z", "just past the end of x", 5),
        ("i < n) z", "i + 1 < n) z", "some elements of z are never written", None),
    ],
)
def test_a_wrong_answer_is_shown_on_a_small_input(tmp_path, was, now, what, line):
    (tmp_path / "own.py").write_text(OWN)
    repro = tmp_path / "repro.cu"
    report = graded(tmp_path, changed(SAXPY, was, now), EVERYTHING, str(tmp_path / "own.py"), repro=repro)
    fault = first_fault(report)
    assert what in fault.what
    assert fault.line == line
    assert "x = [" in fault.on
    order = repro.read_text().splitlines()[0].rpartition(" --order ")[2]
    assert not run(repro, order=order, timeout=60).passed


@pytest.mark.usefixtures("_in_this_process")
def test_grades_do_not_depend_on_line_numbers(tmp_path, monkeypatch):
    """Without a command that finds lines, a fault has no line and the scores stay."""
    with_lines = [part.score for part in graded(tmp_path, FORMULA, EVERYTHING).parts]
    monkeypatch.setattr("sbnref.lab.lines.finder", lambda: None)
    without = graded(tmp_path, FORMULA, EVERYTHING)
    assert [part.score for part in without.parts] == with_lines
    assert without.passed
    fault = first_fault(graded(tmp_path, BROKEN["a"]))
    assert "without a barrier in between" in fault.what
    assert fault.line is None


LIES = {
    "nothing": lambda out: None,
    "another shape": lambda out: {**out, "outputs": {"y": out["outputs"]["y"].flatten()}},
    "no numbers": lambda out: {**out, "outputs": {"y": out["outputs"]["y"].to("meta")}},
    "no counts": lambda out: {**out, "sectors": "few"},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_the_output_of_the_process_is_validated(lie, tmp_path, monkeypatch):
    class Liar(InThisProcess):
        def call(self, name, *arguments):
            return lie(super().call(name, *arguments)) if name == "run" else super().call(name, *arguments)

    monkeypatch.setattr("sbnref.lab.grading.kernels.check.Student", Liar)
    (part,) = graded(tmp_path, FORMULA, ["right"]).parts
    assert part.status == "failed"
    assert part.fault.what.startswith("the kernels' process returned no ")


REFUSED = {
    '#include "/etc/passwd"': "includes '/etc/passwd'; a graded file may include cuda_runtime.h",
    "#include <fstream>": "includes 'fstream'",
    "# include /* */ <vector>": "includes",
    "#embed <x>": "#embed is not allowed",
    "#line 3": "#line is not allowed",
    "#pragma GCC optimize 3": "#pragma is not allowed",
    'void f() { asm volatile(""); }': "inline assembly is not allowed",
    "void f() { cudasim::set_order(); }": "the simulation's own names",
    'extern "C" int system(const char*);': "extern is not allowed",
    "void f() { std::copy(0, 0, 0); }": "std::copy is not allowed",
    "void f(float* y, float* x) { cudaMemcpy(y, x, 4, cudaMemcpyDefault); }": "cudaMemcpy is not allowed",
    "void f() __attribute__((no_sanitize(1)));": "__attribute__ is not allowed",
    "#define J(a, b) a##b": "## is not allowed",
    'auto s = R"(x)";': "raw strings are not allowed",
    "\f#include <fstream>": "includes 'fstream'",
    "void f() { a\\\nsm(); }": "inline assembly is not allowed",
    "x" * 300_000: "expected at most 200,000 characters, got 300,000",
}


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=[why[:30] for why in REFUSED.values()])
def test_what_a_file_may_not_say(text, why, tmp_path):
    above = '#include <cuda_runtime.h>  // asm "cudasim" \n/* #include <x>\n asm */ const char c = \'"\'; // R"(\n'
    line, what = why_rejected(text) if len(text) > 1000 else why_rejected(above + text)
    assert what.startswith(why)
    assert line == (1 if len(text) > 1000 else 4)
    report = graded(tmp_path, text, EVERYTHING)
    assert (report.score, report.parts[0].status, report.parts[0].fault.what) == (0, "failed", why_rejected(text)[1])
    assert {part.fault for part in report.parts} == {report.parts[0].fault}


def test_what_a_file_may_say():
    template = TASKS["softmax"].template()
    macro = "#define CHECK(call)  \\\n    if (call) \\ \n        exit(1)\n"
    texts = [template, "\ufeff" + template, template.replace("\n", "\r\n"), RIGHT.read_text(), macro + template]
    assert [why_rejected(text) for text in (*texts, *STEPS.values(), *BROKEN.values())] == [None] * 15
    assert why_rejected(macro + "\n#line 3")[0] == 5


def test_an_error_of_the_compiler_has_its_line(tmp_path):
    fault = first_fault(graded(tmp_path, changed(FORMULA, "float sum = 0;", "float sum = zero;")))
    assert "it does not compile: 'zero' was not declared in this scope" in fault.what.translate({8216: 39, 8217: 39})
    assert fault.line == FORMULA[: FORMULA.index("float sum = 0;")].count("\n") + 1
    other = first_fault(graded(tmp_path, SAXPY))
    assert f"to define {TASKS['batch_norm'].signature}, found no such function" in other.what


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("while (C > 2) {}", "timed out", "was still running after"),
        ("if (C > 1) *(volatile int*)8 = 1;", "crashed", "SIGSEGV"),
        ("if (C > 1) exit(0);", "crashed", ""),
    ],
)
def test_loops_crashes_and_exits_cost_their_part_only(body, status, said, tmp_path):
    text, timeout = changed(FORMULA, HEAD, f"{HEAD}\n    {body}"), 6 if status == "timed out" else 60
    (part,) = graded(tmp_path, text, ["legal"], timeout=timeout).parts
    assert part.status == status
    assert said in part.fault.what


@pytest.mark.usefixtures("_in_this_process")
def test_what_is_counted_has_to_be_right(tmp_path):
    """A kernel that does less work on the counted tensor alone gets no points for efficiency."""
    kernel = "__global__ void copy(const float* x, float* y, int n) { for (int i = 0; i < n; ++i) y[i] = x[i]; }\n"
    less = f"{kernel}\n{HEAD}\n    if (S == 784) return copy<<<132, 1>>>(x, y, N * C * S);"
    right, efficient = graded(tmp_path, changed(FORMULA, HEAD, less), ("right", "efficient")).parts
    assert right.status == "passed"
    assert (efficient.status, efficient.score) == ("not graded", 0)  # the blocks of the copy race
    less = less.replace("<<<132, 1>>>", "<<<1, 1>>>")
    (efficient,) = graded(tmp_path, changed(FORMULA, HEAD, less), ["efficient"]).parts
    assert (efficient.status, efficient.score) == ("failed", 0)
    assert "on the sizes on which traffic is counted" in efficient.fault.what


@pytest.mark.usefixtures("_in_this_process")
def test_kernels_that_are_stopped_on_some_inputs_are_not_right(tmp_path):
    text = FORMULA.replace("i < count;", "i < count + (C > 1);")
    for part in graded(tmp_path, text, ("right", "efficient")).parts:
        assert (part.status, part.score) == ("not graded", 0)
        assert part.fault.what == "the kernels do something illegal; see the part above"


ATOMIC = """#include <cuda_runtime.h>
__device__ float total;
__global__ void zero(float* y) { *y = 0; }
__global__ void add(const float* x, float* y, int n) {
    const int i = blockIdx.x * 32 + threadIdx.x;
    if (i < n) atomicAdd(y, x[i]);
}
void sum(const float* x, float* y, int n) {
    zero<<<1, 1>>>(y);
    if (n > 0) add<<<(n + 31) / 32, 32>>>(x, y, n);
}
"""


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize(
    ("was", "now", "what"),
    [
        ("if (n > 0) add", "add", "kernel add: expected a grid of at least one block"),
        ("    if (n > 0) add", "cudaGetLastError(), add", "kernel add: expected a grid of at least one block"),
        ("atomicAdd(y, x[i])", "atomicExch(y, x[i])", "y depends on the order in which"),
        ("atomicAdd(y, x[i])", "*y = atomicAdd(&total, 1)", "y changes if the function is called again"),
        ("const float* x, float* y, int n) {\n    zero", "float* x, float* y, int n) {\n    zero", "other parameters"),
        ("*y = 0", "*y = tex1D<float>(0, 0)", "theirs.cu, line 3: the simulation does not support texture memory"),
    ],
)
def test_a_sum_with_atomic_operations(was, now, what, tmp_path):
    fault = first_fault(graded(tmp_path, changed(ATOMIC, was, now), ["legal"], "sum", examples=100))
    assert what in fault.what


@pytest.mark.usefixtures("_in_this_process")
def test_atomic_operations_may_round_in_any_order(tmp_path):
    assert graded(tmp_path, ATOMIC, task="sum", examples=100).passed


def test_a_missing_compiler_is_not_the_students_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler, but 'no-such-compiler' cannot be run"):
        graded(tmp_path, FORMULA)


def test_the_commands_take_a_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    Path("mine.cu").write_text(SAXPY)
    check = ["lab", "check", "mine.cu", "--task", "own.py", "--examples", "10"]
    assert [part["name"] for part in json.loads(cli(*check, "--json").stdout)["parts"]] == list(EVERYTHING)
    cli(*check, "--part", "efficient", "--at-least", "0.9")
    Path("mine.cu").write_text(SAXPY.replace("+ y[i]", ""))
    assert "Saved repro.cu, a program with the same failure" in cli(*check, code=1).output
    assert cli("lab", "template", "softmax").stdout == TASKS["softmax"].template()
    for arguments, what in {
        "template rust": "expected a Python file that defines a task, or one of sum, transpose",
        "check mine.cu": "expected --task for a CUDA file: sum, transpose",
        "check none.cu --task sum": "got none.cu, which does not exist",
        "check mine.cu --task nothing": "expected a Python file that defines a task, or one of sum, trans",
        "check mine.cu --suite": "are for functions in Python",
        "check mine.py --task sum": "are for CUDA files",
        "check mine.cu --task sum --part fast": "expected parts among",
    }.items():
        assert what in refused("lab", *arguments.split())


@pytest.mark.parametrize(
    "signature", ["int f(float* y)", "void f(const float* x)", "void f(float y[3])", "void f(short* y)"]
)
def test_a_signature_that_is_none_is_refused(signature):
    with pytest.raises(ValueError, match="expected"):
        _ = Task(signature, "", inputs=lambda _: {}, oracle=dict, typical=()).parameters


@needs_nvcc
def test_templates_and_steps_compile_for_gpus(includes, tmp_path):
    for name, task in TASKS.items():
        (tmp_path / f"{name}.cu").write_text(task.template())
    options = (*FLAGS, *includes, f"-I{LABORATORY}")
    compile_together(tmp_path.glob("*.cu"), tmp_path, *options)
    kernels = (RIGHT, *(TUTORIALS / "kernels").glob("own/*.cu"), *(TUTORIALS / "kernels").glob("broken/*.cu"))
    compile_together(kernels, tmp_path, "-Werror=all-warnings", *options)


# ---- a course ----

COURSE = Settings(points={"legal": 4, "right": 6, "efficient": 10}, examples=8, timeout=20)


def test_an_autograder_takes_kernels_for_a_task_of_the_teachers(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    make(tmp_path / "lab", replace(COURSE, task=str(tmp_path / "own.py")))
    handout = tmp_path / "lab" / "handout"
    assert "void saxpy(" in (handout / "mine.cu").read_text()
    assert (handout / "task.py").read_text() == OWN
    assert "sbnref lab check mine.cu --task task.py" in (handout / "README.md").read_text()
    autograder = Autograder(tmp_path / "lab" / "gradescope" / "autograder.zip")
    results = conforms(autograder({"task.py": "", "results.json": "{}", "mine.cu": SAXPY}))
    two = {"legal": 2, "legal, other cases": 2, "right": 3, "right, other cases": 3}
    assert scores(results) == {**two, "efficient": 10}, autograder.printed


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "expected a file mine.cu in the submission, got nothing"),
        ({"mine.cu": FORMULA.replace("float sum = 0;", "float sum = 0")}, "it does not compile"),
        ({"mine.cu": FAULTS["a barrier between sums"][0]}, "without a barrier in between"),
    ],
    ids=["missing", "no C++", "a fault"],
)
def test_kernels_that_are_wrong_have_no_points(files, said, tmp_path):
    results = conforms(grade(hand_in(tmp_path, files), COURSE))
    assert set(scores(results).values()) == {0}
    assert said in " ".join(" ".join(test["output"] for test in results["tests"]).split())
    assert results["tests"][-1]["output"].partition("\n\n")[2].startswith("Not counted before everything else passes.")


def test_the_command_of_a_test_ends_with_0_for_efficient_kernels(tmp_path):
    start = "sbnref lab check mine.cu --task batch_norm --part legal --part right "
    assert COURSE.command("legal", "right").startswith(start)
    hand_in(tmp_path, {"mine.cu": WIDE})
    environment = {**os.environ, "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}"}
    process("bash", "-c", COURSE.command("efficient"), cwd=tmp_path, env=environment)


def test_a_task_that_lacks_an_array_is_named():
    task = Task("void f(const float* x, float* y)", "", inputs=lambda _: {}, oracle=lambda x: {"z": x}, typical=())
    with pytest.raises(ValueError, match="expected inputs of the task f to return x, got"):
        task.given(None)
    with pytest.raises(ValueError, match="expected oracle of the task f to return y, got z"):
        task.expected({"x": None})
