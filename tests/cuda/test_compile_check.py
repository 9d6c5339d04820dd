"""Everything compiles for the GPUs without a warning, and the kernels reach half occupancy in the compiler's report."""

import json
import re
from pathlib import Path

import pytest
import sass
from nvcc import FLAGS, compiled, cuda_includes, needs_nvcc

from sbnref.impls.build import CSRC, CUDA_SOURCES, HOST_SOURCES, STABLE

ARCHITECTURES = ("80", "90")
INSTANCES = 6 + 6 + 5 + 4  # per element type: two layouts, and a third with every access width
REGISTERS = 65536  # per multiprocessor
HALF_OCCUPANCY = 1024  # of a multiprocessor's 2048 threads

pytestmark = [needs_nvcc, pytest.mark.slow]


@pytest.mark.parametrize("source", CUDA_SOURCES)
def test_kernels(source, includes, tmp_path):
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
    check_machine_code(Path(source).stem, tmp_path / "kernel.o")


def check_machine_code(stage: str, file: Path) -> None:
    """Check that the loops' accesses are 16 bytes wide, and that memory, not instruction issue, bounds the kernels."""
    budget = json.loads((CSRC / "budgets.json").read_text())[stage]
    wide = {"d": 2, "f": 4, "N3c108BFloat16E": 8, "N3c104HalfE": 8}
    checked = 0
    for name, code in sass.kernels(file, f"sm_{ARCHITECTURES[-1]}").items():
        element, layout, vector = re.search(r"kernelI(\w+?)LNS_6LayoutE(\d)ELi(\d+)E", name).groups()
        if int(vector) != wide[element]:
            continue
        loop = sass.streaming_loop(code)
        what = f"{stage} of {element}, layout {layout}: {loop}"
        assert loop.loads == (3 if stage.startswith("forward") and wide[element] == 8 and layout != "0" else 4), what
        assert loop.stores == {"forward_apply": loop.loads, "backward_apply": loop.loads // 2}.get(stage, 0), what
        assert loop.per_access <= budget[str(16 // wide[element])], what
        assert loop.ceiling >= 6, what
        checked += 1
    assert checked == 3 * len(wide)  # layouts


@pytest.mark.parametrize("source", HOST_SOURCES)
def test_operators(source, includes, tmp_path):
    flags = ["-std=c++20", "-O0", "-fPIC", "-Wall", "-Wextra", "-Werror", STABLE]
    compiled(["c++", *flags, *cuda_includes(), *includes, "-c", str(CSRC / source), "-o", str(tmp_path / "host.o")])
