"""Fixtures: the kernels, simulated or interpreted in a separate process, and the headers to compile them."""

import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interpreted import compile_all, load
from torch.utils.cpp_extension import include_paths

import sbnref
from sbnref.impls.build import CSRC


@pytest.fixture(scope="session")
def simulation(simulated) -> Callable:
    """Return ``simulation(function, *args)``: run a function in a process where ``impl='cuda'`` accepts CPU tensors."""
    return lambda function, *args: simulated(1).run(function, *args)[0]


@pytest.fixture(scope="session")
def includes(tmp_path_factory) -> list[str]:
    """Return include options, with a stand-in for a generated header that PyTorch without CUDA lacks."""
    stand_in = tmp_path_factory.mktemp("include")
    header = Path("c10/cuda/impl/cuda_cmake_macros.h")
    folders = [*include_paths(), sysconfig.get_paths()["include"]]
    if not any((folder / header).exists() for folder in map(Path, folders)):
        (stand_in / header).parent.mkdir(parents=True)
        (stand_in / header).write_text("#define C10_CUDA_BUILD_SHARED_LIBS\n")
        folders.append(str(stand_in))
    return [f"-I{CSRC}", *(argument for folder in folders for argument in ("-isystem", folder))]


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory, includes) -> Iterator[Callable]:
    """Return ``interpreted(function, *args)``: run a function where ``impl='cuda'`` interprets the kernels' PTX."""
    folder = tmp_path_factory.mktemp("ptx")
    compile_all(folder, includes)
    with pytest.MonkeyPatch.context() as environment, sbnref.Ranks(1, timeout=300) as ranks:
        environment.setenv("SBNREF_CUDASIM", "1")
        subprocess.run((sys.executable, "-c", "from sbnref.impls import cuda; cuda.simulation()"), check=True)
        ranks.run(load, folder)
        environment.undo()
        yield lambda function, *args: ranks.run(function, *args)[0]
