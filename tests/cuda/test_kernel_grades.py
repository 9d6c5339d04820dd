"""Kernels that students hand in: what is wrong is named with its line, and what is right is called so."""

import json
import math
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import students
from handing_in import ENVIRONMENT, Autograder, conforms, hand_in, scores
from nvcc import FLAGS, compiled, includes, needs_nvcc  # noqa: F401 (a fixture)
from typer.testing import CliRunner

from sbnref.cli import app
from sbnref.conformance.stages import ContractError
from sbnref.impls import STAGES
from sbnref.lab import LABORATORY, Kernels
from sbnref.lab import gpu_timing as timing
from sbnref.lab.course.gradescope import grade
from sbnref.lab.course.make import make
from sbnref.lab.course.settings import Settings
from sbnref.lab.grading.kernels.check import check_kernels, template
from sbnref.lab.grading.kernels.efficiency import RUNGS, SHAPE, Spent, stands
from sbnref.lab.grading.kernels.source import refusal
from sbnref.lab.implementation import only_stages
from sbnref.lab.kernels import translation_unit
from sbnref.lab.recording import example
from sbnref.launch import RankError

pytestmark = pytest.mark.slow

STAGES_FILE = Path(__file__).with_name("stages.cu")
QUICK = {"examples": 24, "seed": 1}


class InThisProcess:
    """Instead of a process of its own, which takes longer to start than these kernels to grade."""

    unconfined = apart = deadline = None

    def __init__(self, job):
        self.job = job

    def start(self, seconds):
        self.functions = runpy.run_path(self.job.target)

    def call(self, name, *arguments):
        try:
            return self.functions[name](*arguments)
        except RuntimeError as error:
            raise ContractError(f"raised {error}") from None

    def close(self):
        pass


@pytest.fixture
def _in_this_process(monkeypatch):
    monkeypatch.setattr("sbnref.lab.grading.kernels.check.Student", InThisProcess)


def graded(tmp_path, text, parts=("legal", "right"), **options):
    file = tmp_path / "theirs.cu"
    file.write_text(text)
    return check_kernels(file, parts, **{**QUICK, **options})


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize("name", students.FAULTS)
def test_a_fault_is_named_with_its_line(name, tmp_path):
    said, (text, line) = students.FAULTS[name]
    report = graded(tmp_path, text)
    fault = next(part.fault for part in report.parts if part.fault)
    assert said in fault.what
    assert fault.line == line
    assert (fault.hint is not None) == (name == "sums in float32")
    assert not report.passed


@pytest.mark.usefixtures("_in_this_process")
def test_a_wrong_number_has_the_line_that_wrote_it(tmp_path):
    """Of y, where the statistics are right, and where p.var holds something else than it is called."""
    was = "line(p.x[p.at(c, i)])"
    for text in (students.PLAIN, students.PLAIN.replace("p.var[c] = ", "p.var[c] = 3 + ")):
        text, line = students.changed(text, was, f"2 * {was}")
        (part,) = graded(tmp_path, text, ["right"]).parts
        assert re.fullmatch(r"y is off by [\d.]+", part.fault.what)
        assert part.fault.line == line


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize("name", students.VARIANTS)
def test_what_is_right_is_called_so(name, tmp_path):
    report = graded(tmp_path, students.VARIANTS[name])
    assert [(part.status, part.fault) for part in report.parts] == [("passed", None)] * 2
    assert report.passed


@pytest.mark.usefixtures("_in_this_process")
def test_grades_do_not_depend_on_line_numbers(tmp_path, monkeypatch):
    """Without addr2line a fault has no line, and nothing else is missing."""
    everything = ("legal", "right", "efficient")
    name, (said, (faulty, _)) = next(iter(students.FAULTS.items()))
    with_lines = [part.score for part in graded(tmp_path, students.PLAIN, everything).parts]
    monkeypatch.setattr("sbnref.lab.lines.finder", lambda: None)
    without = graded(tmp_path, students.PLAIN, everything)
    assert [part.score for part in without.parts] == with_lines
    assert without.passed
    fault = next(part.fault for part in graded(tmp_path, faulty).parts if part.fault)
    assert said in fault.what, name
    assert fault.line is None


LIES = {
    "nothing": lambda out: None,
    "no statistics": lambda out: {"y": out["y"], "refused": None, "frames": out["frames"]},
    "another shape": lambda out: {**out, "mean": out["y"]},
    "no numbers": lambda out: {**out, "frames": out["frames"].to("meta")},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_what_the_process_tells_is_not_believed(lie, tmp_path, monkeypatch):
    class Liar(InThisProcess):
        def call(self, name, *arguments):
            return lie(super().call(name, *arguments)) if name == "run" else super().call(name, *arguments)

    monkeypatch.setattr("sbnref.lab.grading.kernels.check.Student", Liar)
    (part,) = graded(tmp_path, students.FAULTS["sums in float32"][1][0], ["right"]).parts
    assert (part.status, part.fault.what) == ("failed", "the process of the kernels gave no answer")


@pytest.mark.usefixtures("_in_this_process")
def test_the_rungs_spend_what_the_package_says():
    """The figures that a file is compared with are those of the rungs, handed in as files."""
    assert students.spent() == RUNGS


@pytest.mark.parametrize("name", [name for name in students.ladder.RUNGS if name[0] != "6"])
def test_the_figures_are_the_tutorials(name):
    """Counted as tutorial 5 counts them."""
    import torch

    x = torch.randn(SHAPE)
    layout = "channels_last" if name == "7 channels-last" else "contiguous"
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    counts = students.ladder.count(students.ladder.Call(name, x))
    found = {figure: getattr(counts, figure) for figure in ("moved", "requests", "launches", "blocks")}
    assert found == RUNGS[name][layout]


def test_where_kernels_stand():
    def spent(name):
        figures = RUNGS[name]["contiguous"]
        return Spent("contiguous", read=2 << 21, written=1 << 21, **figures)

    assert stands(spent("1 naive")).startswith("between rung 1 naive and rung 2 Welford; rung 2 Welford moves 0.75 of")
    assert "between rung 3 split and rung 4 wide; rung 4 wide makes 0.27 of the access" in stands(spent("3 split"))
    assert stands(spent("5 payload")) == "as rung 5 payload, the last one, or above"
    scores = [sum(spent(name).shares().values()) for name in RUNGS if name[0] != "7"]
    assert scores == sorted(scores)
    assert scores[-1] == 4, scores


REFUSED = {
    '#include "/etc/passwd"': "includes '/etc/passwd'; a file that is graded includes laboratory.cuh, cuda_runtime.h",
    "#include <fstream>": "includes 'fstream'",
    "# include /* */ <vector>": "includes",
    "#embed <x>": "#embed is not allowed",
    "#line 3": "#line is not allowed",
    "#pragma GCC optimize 3": "#pragma is not allowed",
    'void f() { asm volatile(""); }': "inline assembly is not allowed",
    "void f() { cudasim::set_order(); }": "the simulation's own names",
    'extern "C" int system(const char*);': "extern is not allowed",
    "void f() { std::copy(0, 0, 0); }": "std::copy is not allowed",
    "void f(Problem p) { cudaMemcpy(p.y, p.x, 4, cudaMemcpyDefault); }": "cudaMemcpy is not allowed",
    "void f() __attribute__((no_sanitize(1)));": "__attribute__ is not allowed",
    "#define J(a, b) a##b": "## is not allowed",
    'auto s = R"(x)";': "raw strings are not allowed",
    "\f#include <fstream>": "includes 'fstream'",
    "void f() { a\\\nsm(); }": "a line that continues after a backslash is not allowed",
    "x" * 300_000: "expected at most 200,000 characters, got 300,000",
}


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=[why[:30] for why in REFUSED.values()])
def test_what_a_file_may_not_say(text, why, tmp_path):
    above = '#include "laboratory.cuh"  // asm "cudasim" \n/* #include <x>\n asm */ const char c = \'"\'; // R"(\n'
    line, what = refusal(text) if len(text) > 1000 else refusal(above + text)
    assert what.startswith(why)
    assert line == (1 if len(text) > 1000 else 4)
    report = graded(tmp_path, text)
    assert (report.score, report.parts[0].status, report.parts[0].fault.what) == (0, "failed", refusal(text)[1])


def test_what_a_file_may_say():
    texts = [
        template(),
        "\ufeff" + template(),
        template().replace("\n", "\r\n"),
        *students.VARIANTS.values(),
        *map(students.rung, students.ladder.RUNGS),
    ]
    assert [refusal(text) for text in texts] == [None] * len(texts)


def test_what_the_compiler_says_is_told_with_the_line(tmp_path):
    text = students.PLAIN.replace("double sum = 0;", "double sum = zero;")
    fault = graded(tmp_path, text).parts[0].fault
    assert "it does not compile: 'zero' was not declared in this scope" in fault.what.replace("‘", "'").replace(
        "’", "'"
    )
    assert fault.line == 5
    other = graded(tmp_path, students.PLAIN.replace("void forward(", "void backward(")).parts[0].fault
    assert "to define void forward(const Problem&), and it does not" in other.what


def test_loops_crashes_and_exits_cost_their_part_only(tmp_path):
    endless = students.PLAIN.replace(
        "void forward(const Problem& p) {", "void forward(const Problem& p) {\n    while (p.C > 2) {}"
    )
    part = graded(tmp_path, endless, ["legal"], timeout=6).parts[0]
    assert part.status == "timed out"
    assert "was still running after" in part.fault.what
    crash = students.PLAIN.replace(
        "void forward(const Problem& p) {", "void forward(const Problem& p) {\n    if (p.C > 1) *(volatile int*)8 = 1;"
    )
    part = graded(tmp_path, crash, ["legal"], timeout=20).parts[0]
    assert part.status == "crashed"
    assert "SIGSEGV" in part.fault.what
    leaves = students.PLAIN.replace(
        "void forward(const Problem& p) {", "void forward(const Problem& p) {\n    if (p.C > 1) exit(0);"
    )
    part = graded(tmp_path, leaves, ["legal"], timeout=20).parts[0]
    assert part.status == "crashed"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("p.y[0] = 1;", "the host writes p.y[0], which is memory of the GPU"),
        ("__syncthreads();", "__syncthreads outside of a kernel"),
        ("__shfl_sync(~0u, 1, 0);", "__shfl_sync outside of a kernel"),
    ],
)
def test_the_host_cannot_do_the_work_of_kernels(body, what, tmp_path):
    text = f"{students.HEAD}\nvoid forward(const Problem& p) {{ {body} }}{students.TAIL}"
    fault = graded(tmp_path, text).parts[0].fault
    assert fault.what.startswith(what)
    assert fault.line == 3


def test_kernels_that_do_nothing_are_not_efficient(tmp_path):
    report = graded(tmp_path, template(), ("legal", "right", "efficient"))
    assert [(part.status, part.score) for part in report.parts] == [("failed", 0)] * 3
    assert all(part.fault.what.startswith("some elements of y are never written") for part in report.parts)
    assert math.isnan(report.parts[1].fault.given)


CHEAPER = (
    """
__global__ void copy(Problem p) {
    for (int64_t i = threadIdx.x; i < p.C * p.count(); i += kThreads) p.y[i] = p.x[i];
}
""",
    "void forward(const Problem& p) {",
    "\n    if (p.S == 784) return copy<<<1, kThreads>>>(p);",
)


@pytest.mark.usefixtures("_in_this_process")
def test_what_is_counted_has_to_be_right(tmp_path):
    """Kernels that do less on the tensor on which they are counted, and are right on others."""
    kernel, head, less = CHEAPER
    cheat = students.PLAIN.replace(head, f"{kernel}\n{head}{less}")
    right, efficient = graded(tmp_path, cheat, ("right", "efficient")).parts
    assert right.status == "passed"
    assert (efficient.status, efficient.score) == ("failed", 0)
    assert re.match(r"y is off by [\d.]+ where it is counted, on x of shape \(16, 32, 28, 28\)", efficient.fault.what)


@pytest.mark.usefixtures("_in_this_process")
def test_who_is_stopped_on_some_inputs_is_not_right(tmp_path):
    part = graded(tmp_path, students.PLAIN.replace("i < p.count()", "i < p.count() + (p.C > 1)"), ["right"]).parts[0]
    assert (part.status, part.score) == ("not graded", 0)
    assert part.fault.what == "the kernels do something illegal; see the part above"


def test_every_part_says_why_nothing_is_graded(tmp_path):
    report = graded(tmp_path, "#include <fstream>", ("legal", "right", "efficient"))
    assert {part.fault for part in report.parts} == {report.parts[0].fault}
    assert str(report).count("includes 'fstream'") == 1


def test_a_missing_compiler_is_not_the_students_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="takes a C\\+\\+ compiler, and 'no-such-compiler' cannot be run"):
        graded(tmp_path, students.PLAIN)


def test_the_command_grades_a_file(tmp_path):
    runner = CliRunner()
    file = tmp_path / "mine.cu"
    file.write_text(students.rung("7 channels-last"))
    done = runner.invoke(app, ["lab", "check-kernels", str(file), "--examples", "12", "--seed", "1", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [part["name"] for part in told["parts"]] == ["legal", "right", "efficient"]
    assert [one["stands"] for one in told["efficiency"]["spent"]] == [
        "as rung 5 payload, the last one, or above",
        "as rung 7 channels-last, the last one, or above",
    ]
    assert told["score"] == pytest.approx(1, abs=0.03)
    assert runner.invoke(app, ["lab", "template", "kernels"]).stdout == template()
    for arguments, what in {
        ("template", "rust"): "expected one of functions, kernels, stages, sum, transpose",
        ("check-kernels", "none.cu"): "there is no file none.cu",
        ("check", "none.cu", "--suite"): "for functions in Python",
        ("check-kernels", str(file), "--part", "fast"): "expected parts among",
    }.items():
        refused = runner.invoke(app, ["lab", *arguments])
        assert refused.exit_code == 2
        assert what in " ".join(refused.output.replace("│", " ").split())


# ---- on a GPU, with made-up times ----


@pytest.fixture
def _gpu(monkeypatch):
    """A GPU that is none: tensors stay on the host, where launches take 10 to 70 us, and PyTorch 2 ms."""

    def seconds(work, repetitions):
        return [1e-5 * (k + 1) for k in range(7)] if work(0) is None else [2e-3] * 7

    chip = SimpleNamespace(L2_cache_size=4000, multi_processor_count=4, max_threads_per_multi_processor=2048)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: chip)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("sbnref.lab.grading.kernels.check.find_cuda", lambda: None)
    monkeypatch.setattr(timing, "_random", lambda shape, layout: example(shape, channels_last=layout != "contiguous"))
    monkeypatch.setattr(timing, "SHAPES", ((2, 5, 8, 8),))
    monkeypatch.setattr(timing, "copying", lambda: 1e9)
    monkeypatch.setattr(timing, "eager_seconds", seconds)


class Here:
    """Instead of ranks."""

    def __init__(self, world_size, timeout):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, work, *arguments):
        try:
            return [work(*arguments)]
        except RuntimeError as error:
            raise RankError(0, f"Traceback\nRuntimeError: {error}") from None


@pytest.mark.usefixtures("_in_this_process", "_gpu")
def test_kernels_that_pass_are_timed_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("sbnref.lab.grading.kernels.check.Ranks", Here)
    report = graded(tmp_path, students.SPLIT_FILE, gpu=True, examples=4)
    assert report.passed
    assert [timed.layout for timed in report.timed] == ["contiguous", "channels_last"]
    size = 4 * 2 * 5 * 8 * 8
    for timed in report.timed:
        assert timed.floor == pytest.approx(3 * size / 1e9)
        assert (timed.seconds, *timed.quartiles, timed.beside) == pytest.approx((4e-5, 2e-5, 6e-5, 2e-3))
        assert timed.bytes_per_second == pytest.approx(3 * size / 4e-5)
    text = " ".join(str(report).split())
    assert "on a GPU:" in text
    assert "(2, 5, 8, 8), channels-last: 0.04 ms (0.02 to 0.06), 0 GB/s, 0.19 of the speed of copying" in text
    assert "torch's batch_norm takes 2 ms" in text
    assert json.loads(json.dumps(report.to_dict()))["timed"][0]["gpu"] == "a GPU"

    monkeypatch.setattr("torch.nn.functional.batch_norm", lambda x, *_, training: x)
    wrong = graded(tmp_path, students.PLAIN, gpu=True, examples=4)
    assert not wrong.passed
    assert re.match(r"RuntimeError: on the GPU y is off by 1\.\d+ on \(2, 5, 8, 8\), contiguous", wrong.untimed)
    assert "not timed: RuntimeError" in str(wrong)


@pytest.mark.usefixtures("_in_this_process", "_gpu")
def test_kernels_that_are_not_legal_do_not_reach_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("sbnref.lab.grading.kernels.check.Ranks", None)
    report = graded(tmp_path, students.FAULTS["a tail"][1][0], gpu=True)
    assert report.untimed == "only kernels that are legal and right go to the GPU"
    with pytest.raises(ValueError, match="expected legal and right among the parts"):
        graded(tmp_path, students.PLAIN, ["right"], gpu=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match="PyTorch sees none"):
        graded(tmp_path, students.PLAIN, gpu=True)


def test_the_gpu_is_asked_for_where_forward_is_graded(tmp_path):
    file = tmp_path / "mine.cu"
    file.write_text(template(stages=True))
    refused = CliRunner().invoke(app, ["lab", "check-kernels", str(file), "--gpu"])
    assert refused.exit_code == 2
    assert "expected a file that defines forward(p)" in " ".join(refused.output.replace("│", " ").split())


@needs_nvcc
@pytest.mark.parametrize(
    "text", [template(), template(stages=True), STAGES_FILE.read_text()], ids=["", "stages", "right"]
)
def test_templates_compile_for_gpus(text, includes, tmp_path):  # noqa: F811
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("80", "90")]
    file, unit = tmp_path / "mine.cu", tmp_path / "unit.cu"
    file.write_text(text)
    functions = STAGES if only_stages(file) else ("forward",)
    unit.write_text(translation_unit(Kernels(file, functions)))
    warnings = [] if "to be written" in text else ["-Werror=all-warnings"]
    compiled(
        ["nvcc", *FLAGS, *warnings, *targets, *includes, f"-I{LABORATORY}", "-c", str(unit), "-o", str(tmp_path / "o")]
    )


COURSE = Settings(points={"legal": 4, "right": 6, "efficient": 10}, examples=8, timeout=20)


def test_an_autograder_takes_kernels(tmp_path):
    make(tmp_path / "lab", COURSE)
    autograder = Autograder(tmp_path / "lab" / "gradescope" / "autograder.zip")
    fake = {"laboratory.cuh": "#error not this one", "results.json": "{}"}
    results = conforms(autograder({**fake, "mine.cu": students.rung("7 channels-last")}))
    shutil.rmtree(autograder.place)
    given = scores(results)
    assert 9 <= given.pop("efficient") <= 10, autograder.printed
    assert given == {"legal": 2, "legal, other cases": 2, "right": 3, "right, other cases": 3}
    assert "as rung 7 channels-last, the last one, or above" in " ".join(results["tests"][-1]["output"].split())


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize(
    ("files", "legal", "right", "said"),
    [
        ({}, 0, 0, "expected a file mine.cu, but handed in was: nothing"),
        ({"mine.cu": students.PLAIN.replace("double sum = 0;", "double sum = 0")}, 0, 0, "it does not compile"),
        ({"mine.cu": '#include "/etc/passwd"'}, 0, 0, "a file that is graded includes laboratory.cuh"),
        ({"mine.cu": students.FAULTS["a missing barrier"][1][0]}, 0, 0, students.FAULTS["a missing barrier"][0]),
        ({"mine.cu": template()}, 0, 0, "some elements of y are never written"),
    ],
    ids=["missing", "no C++", "includes", "a fault", "the template"],
)
def test_kernels_that_are_wrong_have_no_points_for_efficiency(files, legal, right, said, tmp_path):
    results = conforms(grade(hand_in(tmp_path, files), COURSE))
    given = scores(results)
    assert given["legal"] + given["legal, other cases"] == legal
    assert given["right"] + given["right, other cases"] == right
    assert given["efficient"] == 0
    assert said in " ".join(" ".join(test["output"] for test in results["tests"]).split())
    assert results["tests"][-1]["output"].partition("\n\n")[2].startswith("Not counted before everything else passes.")


@pytest.mark.usefixtures("_in_this_process")
def test_kernels_that_are_stopped_are_not_counted(tmp_path):
    part = graded(tmp_path, students.PLAIN.replace("i < p.count()", "i <= p.count()"), ["efficient"]).parts[0]
    assert (part.status, part.score) == ("not graded", 0)
    assert part.fault.what == "the kernels do something illegal; see the part above"


@pytest.mark.usefixtures("_in_this_process")
def test_a_score_can_be_asked_for(tmp_path):
    file = tmp_path / "mine.cu"
    file.write_text(students.PLAIN)
    check = ["lab", "check-kernels", str(file), "--part", "efficient"]
    codes = [CliRunner().invoke(app, [*check, *least]).exit_code for least in ([], ["--at-least", "0.8"])]
    assert codes == [0, 1]


def test_the_command_of_a_test_ends_with_0_for_efficient_kernels(tmp_path):
    command = COURSE.command("legal", "right") + " && " + COURSE.command("efficient")
    assert command.count("sbnref lab check-kernels mine.cu --part") == 2
    hand_in(tmp_path, {"mine.cu": students.rung("7 channels-last")})
    environment = {**os.environ, "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}"}
    run = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
