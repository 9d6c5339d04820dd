"""The soak finds what is planted: a wrong number, shrunk to the smallest program; a leak. What is right passes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soak.run
import torch
import typer
from soak import __main__ as command
from soak.program import IMPLS, programs
from soak.rank import train

from sbnref.impls import reference

pytestmark = pytest.mark.slow

original = reference.backward_apply


def train_with_a_planted_bug(program, folder):
    """The reference forgets the term that is there only where an empty rank makes W differ from D."""

    def without_the_last_term(dy, x, total, saved, gamma, k):
        mean, invstd, skew, inverse_divisor = saved
        return original(dy, x, total, torch.stack([mean, invstd, 0 * skew, inverse_divisor]), gamma, k)

    reference.backward_apply = without_the_last_term
    return train(program, folder)


def train_and_leak(program, folder):
    """File descriptors are kept of every program."""
    reference.kept = [*getattr(reference, "kept", []), *map(os.dup, [0, 0, 0])]
    return train(program, folder)


def train_and_keep_memory(program, folder):
    """A megabyte is kept of every program."""
    reference.kept = [*getattr(reference, "kept", []), torch.ones(2**18)]
    return train(program, folder)


@pytest.fixture
def simple(monkeypatch):
    """Programs that are quick, and do not fail by themselves."""
    drawn = programs().map(lambda p: replace(p, impl="reference", compiled="no", fault=None))
    monkeypatch.setattr(command, "programs", lambda: drawn)
    yield
    soak.run.end()


@pytest.mark.usefixtures("simple")
def test_a_planted_bug_is_shrunk_to_the_smallest_program(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(soak.run, "train", train_with_a_planted_bug)
    with pytest.raises(typer.Exit) as ended:
        command.main(minutes=2, seed=0)
    assert ended.value.exit_code == 1
    printed = capsys.readouterr().out
    assert "dx" in printed
    source = printed[printed.index("import torch") :].split("\n\n")[:2]
    program = eval(source[1].removeprefix("run").rstrip(), vars(soak.program) | {"torch": torch})
    assert (program.world_size, len(program.norms), len(program.steps)) == (2, 1, 1)
    assert program.norms[0].stats_mode == "default"
    assert sorted(program.steps[0])[0] == 0 < sorted(program.steps[0])[1]

    file = tmp_path / "program.py"  # as it stands it runs; without the bug, nothing is wrong
    file.write_text("\n\n".join(source))
    subprocess.run([sys.executable, str(file)], env={"PYTHONPATH": str(Path(__file__).parent)}, check=True)


@pytest.mark.usefixtures("simple")
def test_a_leak_is_found(monkeypatch, capsys):
    monkeypatch.setattr(soak.run, "train", train_and_leak)
    monkeypatch.setattr(command, "WARM", 3)
    with pytest.raises(typer.Exit):
        command.main(minutes=2, seed=0)
    assert "descriptors" in capsys.readouterr().out


@pytest.mark.usefixtures("simple")
def test_memory_that_grows_is_found(monkeypatch, capsys):
    monkeypatch.setattr(soak.run, "train", train_and_keep_memory)
    with pytest.raises(typer.Exit) as ended:
        command.main(minutes=0.1, seed=0)
    assert ended.value.exit_code == 1
    assert "memory grows" in capsys.readouterr().out


@pytest.mark.usefixtures("simple")
def test_what_is_right_passes_and_is_reported(capsys):
    command.main(minutes=0.2, seed=0)
    report = capsys.readouterr().out
    assert all(impl in report for impl in IMPLS)
    assert "memory of a rank" in report
