"""Run the kernels on threads that ThreadSanitizer tracks; ``make test-sanitized`` calls this script."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from torch.utils.cpp_extension import include_paths

from sbnref.impls.build import CPU, CSRC


def test_no_two_threads_touch_the_same_place(tmp_path):
    program = tmp_path / "race"
    stages = [str(CSRC / source) for source in CPU.sources if source != "cpu/operators.cpp"]
    includes = [word for folder in include_paths() for word in ("-isystem", folder)]
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++20", *CPU.flags, "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{CSRC}"]
    source = str(Path(__file__).with_name("race.cpp"))
    subprocess.run([*compiler, *flags, *includes, source, *stages, "-o", str(program)], check=True)
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []  # older sanitizers fail with randomized addresses
    ran = subprocess.run([*fixed, str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
