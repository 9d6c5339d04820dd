"""Which CUDA toolkit is taken, among folders made up for it, and what is said where none fits."""

import shutil

import pytest
from toolkits import made_up

from sbnref.impls import toolkit
from sbnref.impls.toolkit import NoToolkit, find_toolkit

pytestmark = pytest.mark.slow

COMMAND = "pip install 'cuda-toolkit[nvcc,nvvm,crt,cccl]==13.0.*'"


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Where toolkits may lie, all of them empty; the packages' are of one release."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    names = {name: tmp_path / name for name in ("named", "path", "system", "packages")}
    monkeypatch.setattr(
        shutil, "which", lambda _: str(nvcc) if (nvcc := names["path"] / "bin" / "nvcc").exists() else None
    )
    monkeypatch.setattr(toolkit, "SYSTEM", names["system"])
    monkeypatch.setattr(toolkit, "_package_homes", lambda _: [names["packages"]])
    monkeypatch.setattr(toolkit.importlib.metadata, "version", lambda _: "13.0.88")
    return names


def test_the_order(places, monkeypatch):
    found = []
    for name in ("packages", "system", "path"):
        home = made_up(places[name], "13.0")
        found.append(find_toolkit("13.0"))
        assert found[-1].home == home
    home = made_up(places["named"], "13.0")
    assert find_toolkit("13.0").home == places["path"], "nothing names it yet"
    monkeypatch.setenv("CUDA_HOME", str(home))
    found.append(find_toolkit("13.0"))
    assert [str(one) for one in found] == [
        f"CUDA 13.0 in {places['packages']}, from this Python's packages",
        f"CUDA 13.0 in {places['system']}, of the system",
        f"CUDA 13.0 in {places['path']}, which is on the PATH",
        f"CUDA 13.0 in {places['named']}, which CUDA_HOME names",
    ]


def test_another_release_is_passed_over_but_not_where_it_was_named(places, monkeypatch):
    made_up(places["path"], "12.8")
    made_up(places["packages"], "13.0")
    assert find_toolkit("13.0").home == places["packages"]
    monkeypatch.setenv("CUDA_HOME", str(places["path"]))
    with pytest.raises(NoToolkit) as error:
        find_toolkit("13.0")
    nvcc = places["path"] / "bin" / "nvcc"
    assert str(error.value).startswith(
        f"building needs nvcc of CUDA 13.0: {nvcc}, which CUDA_HOME names, is of CUDA 12.8; "
        f"unset CUDA_HOME, then install it with: {COMMAND}"
    )


def test_nvcc_by_a_link(places):
    home = made_up(places["system"].with_name("elsewhere"), "13.0")
    link = places["path"] / "bin" / "nvcc"
    link.parent.mkdir(parents=True)
    link.symlink_to(home / "bin" / "nvcc")
    assert find_toolkit("13.0").home == home


def test_none(places, monkeypatch):
    with pytest.raises(NoToolkit) as error:
        find_toolkit("13.0")
    assert str(error.value).startswith(f"building needs nvcc of CUDA 13.0: none was found; install it with: {COMMAND} ")
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    with pytest.raises(NoToolkit, match="CUDA_HOME names /nonexistent, which has no bin/nvcc"):
        find_toolkit("13.0")


def test_pip_has_no_nvcc_of_cuda_12(places):
    with pytest.raises(NoToolkit, match=r"none was found; install the CUDA toolkit 12\.8 and set CUDA_HOME"):
        find_toolkit("12.8")


def test_packages_of_different_releases(places, monkeypatch):
    made_up(places["packages"], "13.0")
    versions = {"nvidia-cuda-nvcc": "13.0.88", "nvidia-cuda-crt": "13.5.37", "nvidia-nvvm": "13.5.37"}
    monkeypatch.setattr(toolkit.importlib.metadata, "version", versions.get)
    with pytest.raises(
        NoToolkit, match=r"are of different releases, nvidia-cuda-nvcc 13\.0\.88, nvidia-cuda-crt 13\.5"
    ):
        find_toolkit("13.0")


@pytest.mark.parametrize("script", ["#!/bin/sh\necho a word\n", "not a program"])
def test_an_nvcc_that_does_not_tell_its_version(places, script):
    made_up(places["system"], "13.0")
    (places["system"] / "bin" / "nvcc").write_text(script)
    with pytest.raises(NoToolkit, match="of the system, does not print its version"):
        find_toolkit("13.0")
