"""A small run of the demonstration: its command, numbers and files."""

import json
import sys

import pytest
from shared import cli, refused

from sbnref import demo


def test_demo(tmp_path, monkeypatch):
    command = ["demo", "--ranks", 2, "--steps", 6, "--output", tmp_path]
    run = cli(*command)
    assert "Relative errors of the statistics" in run.stdout
    assert "demo.png" in run.stdout
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "demo.json").read_text())
    modes = results["modes"]
    assert list(modes) == ["default", "N", "exact", "no sync"]
    assert max(modes[mode][error] for mode in ("N", "exact") for error in ("mean_error", "var_error")) < 1e-12
    assert min(modes["default"]["mean_error"], modes["no sync"]["var_error"]) > 0.01
    empty = modes["exact"]["empty_ranks"]
    assert all(mode["empty_ranks"] == empty for mode in modes.values()), "all modes see the same batches"
    assert results["share_of_steps_with_an_empty_rank"] == sum(count > 0 for count in empty) / 6
    # with one of two ranks empty, the mean of 'default' is half the true one
    halved = {round(e, 6) for e, count in zip(modes["default"]["mean_errors"], empty, strict=True) if count == 1}
    assert halved == {0.5}

    # JSON on standard output, without training again
    monkeypatch.setattr(demo, "train", lambda mode, steps, seed: modes[mode])
    assert json.loads(cli(*command, "--json").stdout) == results


def test_a_folder_that_cannot_be_is_refused_before_the_training(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(demo, "run", None)
    said = refused("demo", "--output", tmp_path / "file" / "folder")
    assert said.startswith(f"sbnref: expected a writable folder for the results, got {tmp_path}/file/folder: ")


@pytest.mark.parametrize("package", ["sklearn", "matplotlib"])
def test_a_missing_package_is_named_before_the_training(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(demo, "train", None)
    with pytest.raises(SystemExit, match=r"pip install scikit-learn matplotlib"):
        demo.run(1, 1, 0, tmp_path, as_json=False)
