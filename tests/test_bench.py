"""The benchmarks: measuring, keeping, comparing and drawing results. No test asserts a time."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from shared import ROOT, cli, refused

from benchmarks import compare, load, suites, timing
from benchmarks.__main__ import app
from benchmarks.figures import draw
from benchmarks.results import Results, tabulate
from sbnref.lab.timing import interleaved


def row(median, layer="reference", **more):
    spread = {"median": median, "first_quartile": 0.9 * median, "third_quartile": 1.1 * median, "repetitions": 9}
    about = {"suite": "one_process", "layer": layer, "what": "forward + backward", "shape": [4, 2], "world_size": 1}
    return {**about, "layout": "contiguous", "dtype": "float32", **spread, **more}


def test_compare_flags_what_is_beyond_noise():
    before = Results(rows=[row(1.0, name) for name in "abcd"])
    after = Results(rows=[row(1.0, "a"), row(1.04, "b"), row(2.0, "c"), row(0.5, "d"), row(1.0, "new")])
    assert [r["verdict"] for r in compare(before, after)] == ["same", "same", "slower", "faster"]
    after.machine = {"cpu": "another"}
    with pytest.raises(ValueError, match="expected results of one machine, got"):
        compare(before, after)


def test_peak_memory_counts_what_is_held_at_once():
    x = torch.zeros(1000, 1000)
    assert timing.peak_bytes(lambda: (x + 1) + 1) == pytest.approx(2 * 4e6, rel=0.01)
    assert timing.peak_bytes(lambda: [x + 1, x + 1, x + 1]) == pytest.approx(3 * 4e6, rel=0.01)


def test_the_reference_holds_no_more_than_batch_norm():
    x, dy = (timing.fill((8, 16, 32, 32), torch.float32, "contiguous") for _ in range(2))
    layers = suites.ours(16), torch.nn.BatchNorm2d(16)
    peaks = [timing.peak_bytes(partial(suites._step, layer, x, dy)) for layer in layers]
    assert peaks[0] <= 1.02 * peaks[1]  # numbers per channel are float64


def test_rounds_are_interleaved():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleaved(works, 0.0)
    assert order[:6] == ["a"] * 3 + ["b"] * 3
    rounds = {tuple(order[i : i + 2]) for i in range(6, 16, 2)}
    assert rounds == {("a", "b"), ("b", "a")}, "in every round each, and not always after the same"
    assert [len(t) for t in times.values()] == [5, 5]


@pytest.mark.slow
def test_every_suite_runs_small(monkeypatch, tmp_path):
    small = {"QUICK": [(2, 4, 3, 3)], "SEQUENCES": [(2, 4, 6)], "COMPILED": {}, "QUICK_WORLDS": (2,)}
    for name, value in small.items():
        monkeypatch.setattr(suites, name, value)
    file = tmp_path / "r.json"
    cli("--quick", "--output", file, app=app)
    rows = json.loads(file.read_text())["rows"]
    assert {r["suite"] for r in rows} == set(suites.SUITES)
    of = {(r["suite"], r["layer"]): r for r in rows}
    assert of["processes", "reference"]["collectives"] == 2
    assert of["processes", "reference"]["bytes_sent"] == 8 * (5 * 4 + 2)
    assert of["processes", "fairscale"]["collectives"] == 3
    assert of["overhead", "reference"]["host_reads"] == 0

    cli("compare", file, file, app=app)
    said = cli("show", file, "--figures", tmp_path, app=app).output
    assert all(word in said for word in ("peak", "collectives", "reads", "E[x²]−E[x]²", "2×4×3×3"))
    for suite in ("one_process", "scaling"):
        assert (tmp_path / f"r-{suite}.png").read_bytes().startswith(b"\x89PNG")


def test_a_gpus_results_are_drawn_against_the_bandwidth_of_copying(tmp_path):
    rows = [
        row(size / speed, layer, suite="gpu", what=what, layout=layout, bytes_moved=size, over_floor=2e12 / speed)
        for layer, speed in (("sbnref", 1.9e12), ("torch sync", 0.8e12))
        for what in ("forward, graph", "backward, graph", "both, graph")
        for layout in ("contiguous", "channels_last")
        for size in (1e7, 1e8)
    ]
    figures = draw(Results(rows=rows, notes={"bandwidth": 2e12}), tmp_path, "h100")
    assert [figure.name for figure in figures] == ["h100-gpu.png"]
    headings, inputs = tabulate(rows)
    assert headings[-1] == "over the floor"
    assert [lines[0][-1] for lines in inputs.values()] == ["1.05", "1.05"]


def test_a_file_is_whole_or_as_it_was_before(tmp_path, monkeypatch):
    file = tmp_path / "folder" / "r.json"
    results = Results(rows=[row(1.0), row(2.0, "copy")], notes={"a": 1})
    results.save(file)
    assert load(file) == results
    assert results.machine["cores"]
    assert results.versions["torch"] == torch.__version__
    before = file.read_text()

    def full(path, text):
        path.write_bytes(text[: len(text) // 2].encode())
        raise OSError("no space is left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        Results(rows=[row(2)]).save(file)
    assert file.read_text() == before


@pytest.mark.parametrize("content", ["{}", "[1]", "not JSON", '{"rows": [], "more": 1}'])
def test_what_is_not_a_file_of_results_or_a_suite_is_named(content, tmp_path):
    file = tmp_path / "r.json"
    file.write_text(content)
    for command in (["show", file], ["compare", file, file]):
        said = refused(*command, app=app)
        assert said.startswith("sbnref: expected results that python -m benchmarks wrote")
        assert str(file) in said
    assert "speed" in refused("--suite", "speed", app=app)


def test_the_page_on_padding_says_what_was_measured():
    results = load(ROOT / "benchmarks" / "results" / "amd-epyc-2-cores-padding.json")
    assert [row["layer"] for row in results.rows if "over_parts" in row] == ["reference", "cpu kernels"] * 2
    assert max(row.get("over_parts", 0) for row in results.rows) < 1.3
    for shape in suites.SEQUENCES:
        times = {row["layer"]: row["median"] for row in results.rows if row["shape"] == list(shape)}
        packing = times["packing alone"]
        assert 1.5 <= packing / times["reference, valid positions packed"] <= 2
        assert 5 <= packing / times["cpu kernels, valid positions packed"] <= 6.5
