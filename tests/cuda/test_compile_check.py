"""Everything compiles for the GPUs, without a warning, and the compiler's report shows kernels that fill them."""

import re

import pytest
from nvcc import FLAGS, compiled, cuda_includes, includes, needs_nvcc  # noqa: F401 (a fixture)

from sbnref.impls.build import CSRC, CUDA_SOURCES, HOST_SOURCES

ARCHITECTURES = ("80", "90")
INSTANCES = 4 * 4  # element types times layouts and access widths
REGISTERS = 65536  # of a multiprocessor
HALF_OCCUPANCY = 1024  # of the 2048 threads that it can hold

pytestmark = needs_nvcc


@pytest.mark.parametrize("source", CUDA_SOURCES)
def test_kernels(source, includes, tmp_path):  # noqa: F811
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    flags = [*FLAGS, "-Werror=all-warnings", "-Xptxas=-v", "-t2"]
    report = compiled(["nvcc", *flags, *targets, *includes, "-c", str(CSRC / source), "-o", str(tmp_path / "kernel.o")])

    kernels = re.findall(r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?Used (\d+) registers", report, re.DOTALL)
    assert len(kernels) == INSTANCES * len(ARCHITECTURES)
    for name, architecture, registers in kernels:
        assert int(registers) * HALF_OCCUPANCY <= REGISTERS, f"{name} for sm_{architecture}: {registers} registers"
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(memory) >= len(kernels)
    assert {numbers for numbers in memory} == {("0", "0", "0")}, f"local memory is used:\n{report}"


@pytest.mark.parametrize("source", HOST_SOURCES)
def test_bindings(source, includes, tmp_path):  # noqa: F811
    flags = ["-std=c++20", "-O0", "-fPIC", "-Wall", "-Wextra", "-Werror", "-DTORCH_EXTENSION_NAME=sbnref_kernels"]
    compiled(["c++", *flags, *cuda_includes(), *includes, "-c", str(CSRC / source), "-o", str(tmp_path / "host.o")])
