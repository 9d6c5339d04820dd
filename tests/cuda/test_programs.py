"""Ordinary CUDA programs in the simulation: right ones run, and planted faults are reported with their line."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvcc import compile_together, needs_nvcc
from shared import blocks, python
from typer.testing import CliRunner

from sbnref.cli import app
from sbnref.impls import simulation
from sbnref.lab.lines import OPTIONS
from sbnref.lab.run import run

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PROGRAMS = sorted((HERE / "programs").glob("*.cu"))
SUM, LAST_BLOCK = HERE / "programs" / "vector_sum.cu", HERE / "programs" / "last_block.cu"
FAULTS = HERE / "faults" / "faults.cu"
PLANTED = {
    match[1]: (line, match[2])
    for line, text in enumerate(FAULTS.read_text().splitlines(), 1)
    if (match := re.search(r"// fault (\w+): (.*)", text))
}
ORDERS = ("ascending", "descending", *(f"random:{seed}" for seed in range(1, 9)))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_right_program_passes_in_every_order(program):
    for order in ORDERS:
        report = run(program, order=order, timeout=60)
        assert report.passed, (order, report.to_dict())
        assert not report.leaks


@needs_nvcc
def test_nvcc_compiles_the_programs(tmp_path):
    compile_together(PROGRAMS, tmp_path, "-std=c++17", f"-I{HERE / 'programs'}")


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_is_reported_with_its_line(name):
    report = run(FAULTS, [name], timeout=60)
    fault = report.fault or report.failed_calls[0]
    line, words = PLANTED[name]
    assert words in fault.what
    assert (fault.at[0].file, fault.at[0].line) == (str(FAULTS), line)
    assert not report.passed
    for order in ("descending", "random:1", "random:2"):
        assert not run(FAULTS, [name], order=order, timeout=60).passed


@pytest.mark.parametrize("command", OPTIONS)
def test_each_command_that_finds_lines_finds_them(command, monkeypatch):
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not on the PATH")
    monkeypatch.setattr("sbnref.lab.lines.finder", lambda: command)
    fault = run(FAULTS, ["missing_barrier"], timeout=60).fault
    assert (fault.at[0].file, fault.at[0].line) == (str(FAULTS), PLANTED["missing_barrier"][0])


def test_clang_reports_accesses_too(monkeypatch):
    if shutil.which("clang++") is None:
        pytest.skip("clang++ is not on the PATH")
    monkeypatch.setenv("CXX", "clang++")
    for program in (SUM, HERE / "programs" / "vector_loads.cu"):
        assert run(program, timeout=60).passed
    for name in ("shared_race", "uninitialized", "out_of_bounds", "misaligned", "null_pointer", "too_many_locals"):
        fault = run(FAULTS, [name], timeout=60).fault
        assert PLANTED[name][1] in fault.what
        assert fault.at[0].line == PLANTED[name][0]


# ---- the command ----


@pytest.fixture
def lab_run(capfd):
    """Return ``lab_run(argument, ...)``: run ``sbnref lab run``, return its exit status, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["lab", "run", *map(str, arguments)], env={"COLUMNS": "200"})
        return result.exit_code, capfd.readouterr().out + result.stdout, result.stderr

    return call


def test_the_table_and_the_numbers_of_launches(lab_run):
    status, out, _ = lab_run(SUM)
    assert status == 0
    assert re.search(r"add +1 +4 +256 +8,000 B +4,000 B +375 +100% +0 B +0 *\n", out), out
    status, out, _ = lab_run("--json", SUM, "100")
    (launch,) = json.loads(out)["launches"]
    assert (status, launch["grid"], launch["bytes_read"], launch["sectors"]) == (0, [1, 1, 1], 800, 39)
    status, out, _ = lab_run("--json", "--launches", 1, LAST_BLOCK)
    assert (status, len(json.loads(out)["launches"])) == (0, 1)


def test_a_cache_that_is_not_writable_is_named(lab_run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    status, _, err = lab_run(SUM)
    assert status == 2
    assert err.startswith(f"sbnref: cannot write to {tmp_path / 'file'}/")
    assert err.endswith(": Not a directory; set TORCH_EXTENSIONS_DIR to another folder\n")


def test_windows_needs_wsl(lab_run, monkeypatch):
    monkeypatch.setattr(simulation, "os", SimpleNamespace(name="nt"))
    simulation.runtime.cache_clear()
    status, _, err = lab_run(SUM)
    assert (status, err.startswith("sbnref: the simulation does not run on Windows; use WSL")) == (2, True), err


def test_a_fault_and_a_leak(lab_run):
    status, out, _ = lab_run(FAULTS, "missing_barrier")
    assert status == 1
    assert f"✗ kernel simple.at(name), block 0, thread 0: {PLANTED['missing_barrier'][1]}\n    at {FAULTS}:" in out
    status, out, _ = lab_run(FAULTS)
    assert status == 0, "a leak is a warning"
    assert f"warning: never freed: x, 256 bytes, allocated at {FAULTS}:" in out


def file(folder: Path, text: str) -> Path:
    (folder / "mine.cu").write_text(text)
    return folder / "mine.cu"


def test_how_a_program_ends(lab_run, tmp_path):
    source = file(tmp_path, "#include <cstdlib>\nint main() { EXIT; return 0; }")
    assert lab_run("-DEXIT=", source)[0] == 0
    for ending, message in (("return 3", "exited with 3"), ("std::abort()", "was ended by SIGABRT")):
        status, out, _ = lab_run(f"-DEXIT={ending}", source)
        assert (status, f"✗ the program {message}" in out) == (1, True), out
    status, _, err = lab_run("--timeout", 1, "-DEXIT=for (volatile int i = 0;;) ++i", source)
    assert (status, "took longer than 1 s" in err) == (2, True)


def test_what_does_not_compile(lab_run, tmp_path):
    kernel = "__global__ void k(int* x) {\n    __shared__ int s[4], n;\n    x[0] = y;\n}\n"
    source = file(tmp_path, f"extern __shared__ int all[];\n{kernel}int main() {{}}\n")
    status, _, err = lab_run(source)
    assert status == 2
    assert f"{source}:4:" in err
    assert "‘y’ was not declared" in err or "'y'" in err
    assert lab_run(source.with_name("absent.cu"))[0] == 2
    assert "expected an order 'ascending', 'descending' or 'random:SEED'" in lab_run("--order", "sideways", SUM)[2]
    status, _, err = lab_run(file(tmp_path, "__global__ void k(int* x) {}\n"))
    assert (status, err) == (2, f"sbnref: expected a program, got {source}, which has no main()\n")
    text = "__global__ void k(int* x) {}\nint main() {\n    k<<<\n1,\n1>>>(nullptr);\n    k<<<1, 1>>>(nullptr, 3);\n}\n"
    err = lab_run(file(tmp_path, text))[2]
    assert re.search(f"{source}:6: (error: too many arguments to function|fatal error: no matching function)", err)
    assert err.count("\n") < 6, "only what the user can act on"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("cudaTextureObject_t t;", "texture memory"),
        ("#include <cuda/barrier>", "the library libcu++"),
        ("#include <thrust/sort.h>", "the libraries CUB, Thrust and CUTLASS"),
        ("nvcuda::wmma::fill_fragment(f, 0);", "tensor cores"),
    ],
)
def test_what_is_not_supported_is_named_with_its_line(lab_run, tmp_path, line, what):
    source = file(tmp_path, f"// tex2D() and cudaTextureObject_t in a comment\n\n{line}\nint main() {{}}\n")
    status, _, err = lab_run(source)
    assert (status, err) == (2, f"sbnref: {source}, line 3: the simulation does not support {what}\n")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("int main() { cudaMemset2D(nullptr, 4, 0, 4, 4); }", "cudaMemset2D"),
        ("__global__ void k(int* x) { *x = __dp4a(1, 2, 3); }", "__dp4a"),
        ("cudaArray_t array;", "cudaArray_t"),
        ("#include <cuComplex.h>", "cuComplex.h"),
    ],
)
def test_a_name_that_may_be_of_cuda_is_named(lab_run, tmp_path, line, name):
    status, _, err = lab_run(file(tmp_path, f"{line}\n"))
    assert (status, "mine.cu:1:" in err) == (2, True)
    assert f"If CUDA has {name}, the simulation does not support it." in err


def test_variables_and_macros_of_ordinary_programs(lab_run, tmp_path):
    text = """\ufeff__device__ volatile int total = 3;
#define LAUNCH(kernel, ...) \\
    kernel<<<1, \\
             1>>>(__VA_ARGS__)
__global__ void count(int n) { total += n; }
int main() {
    LAUNCH(count, 2);
    int result;
    cudaMemcpyFromSymbol(&result, total, sizeof result);
    return result - 5;
}
"""
    status, out, err = lab_run("--json", file(tmp_path, text))
    assert status == 0, err
    (launch,) = json.loads(out)["launches"]
    assert (launch["kernel"], launch["line"]) == ("count", 7)


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch):
    page = "docs/cuda_without_a_gpu.md"
    (source,), shown = blocks(page, "cuda"), [text.split("\n", 1)[1] for text in blocks(page, "console")]
    monkeypatch.chdir(tmp_path)
    right = source.replace("0.f;\n", "0.f;\n    __syncthreads();\n")
    for code, text, expected in ((1, source, shown[0]), (0, right, shown[1])):
        Path("reduce.cu").write_text(text)
        done = python("-m", "sbnref", "lab", "run", "reduce.cu", code=code, env={**os.environ, "COLUMNS": "100"})
        printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
        assert printed.replace(f"{tmp_path}/", "") == expected.rstrip(), done.stderr
