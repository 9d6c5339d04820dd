"""Tasks for kernels: right answers pass, wrong ones are shown on a small input with a program that fails likewise."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sbnref.cli import app
from sbnref.lab.grading.kernels.task import check_task
from sbnref.lab.run import run
from sbnref.lab.tasks import TASKS, Task, find_task

pytestmark = pytest.mark.slow

RIGHT = Path(__file__).with_name("tasks.cu")
OWN = """from sbnref.lab.tasks import Task

task = Task(
    "void saxpy(const float* x, const float* y, float* z, float a, int n)",
    "z[i] = a x[i] + y[i] for i < n",
    inputs=lambda draw: {"n": (n := draw.size()), "x": draw.array(n), "y": draw.array(n), "a": 2.5},
    oracle=lambda x, y, a, n: {"z": a * x + y},
    typical=(1 << 12,),
)
"""
SAXPY = """#include <cuda_runtime.h>

__global__ void kernel(const float* x, const float* y, float* z, float a, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) z[i] = a * x[i] + y[i];
}

void saxpy(const float* x, const float* y, float* z, float a, int n) { kernel<<<(n + 63) / 64, 64>>>(x, y, z, a, n); }
"""


@pytest.mark.parametrize("name", TASKS)
def test_a_right_answer_passes(name):
    report = check_task(RIGHT, TASKS[name], examples=15, seed=1)
    assert report.passed, str(report)
    efficient = report.parts[-1]
    assert 0 < efficient.score <= 1
    assert "times the least" in efficient.note


@pytest.mark.parametrize(
    ("was", "now", "what", "line"),
    [
        ("    if (i < n) z", "    z", "right behind the end of x", 5),
        ("a * x[i] + y[i]", "a * x[i]", "z is off by", None),
        ("i < n) z", "i + 1 < n) z", "some elements of z are never written", None),
        ("+ y[i];", "+ z[i];", "which was never written", 5),
    ],
)
def test_a_wrong_answer_is_shown_on_a_small_input(tmp_path, was, now, what, line):
    assert was in SAXPY
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "mine.cu").write_text(SAXPY.replace(was, now))
    repro = tmp_path / "repro.cu"
    report = check_task(tmp_path / "mine.cu", find_task(str(tmp_path / "own.py")), examples=40, seed=1, repro=repro)
    fault = next(part.fault for part in report.parts if part.fault)
    assert what in fault.what
    assert fault.line == line
    assert "x = [" in fault.on
    assert not run(repro, timeout=60).passed


def test_the_commands_take_a_task(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "mine.cu").write_text(SAXPY)
    invoke = CliRunner().invoke
    arguments = ["lab", "check", str(tmp_path / "mine.cu"), "--task", str(tmp_path / "own.py"), "--examples", "10"]
    done = invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["score"] > 0.9
    template = invoke(app, ["lab", "template", "softmax"])
    assert TASKS["softmax"].signature in template.stdout
    unknown = invoke(app, ["lab", "check", str(tmp_path / "mine.cu"), "--task", "nothing"])
    assert unknown.exit_code == 2
    assert "expected a Python file that defines a task, or one of sum, transpose" in unknown.output


@pytest.mark.parametrize(
    "signature", ["int f(float* y)", "void f(const float* x)", "void f(float y[3])", "void f(short* y)"]
)
def test_a_signature_that_is_none_is_refused(signature):
    with pytest.raises(ValueError, match="expected"):
        _ = Task(signature, "", inputs=lambda _: {}, oracle=dict, typical=()).parameters
