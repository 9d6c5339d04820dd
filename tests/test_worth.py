"""The page *Is it worth it?*: its script measures what it says, and real ranks and its file agree with it."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sbnref
from benchmarks import load
from sbnref.demo import load_digits, network

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
KEY = ("suite", "norm", "batch", "rate", "pixels", "samples")  # what makes two rows the same measurement


def module(path: str):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / f"{path}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


script, page = module("benchmarks/worth"), module("docs/worth")


def train(norm, batch: int, step) -> dict[str, torch.Tensor]:
    """Two steps in float64."""
    images, labels, *_ = load_digits()
    torch.manual_seed(0)
    model = network(norm).double()
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for drawn in torch.arange(2 * batch).split(batch):
        step(wrapped, optimizer, images[drawn].double(), labels[drawn])
    return model.state_dict()


def step_of_a_rank(wrapped, optimizer, images, labels) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    optimizer.zero_grad()
    F.cross_entropy(wrapped(images.chunk(ranks)[rank]), labels.chunk(ranks)[rank]).backward()
    optimizer.step()


@pytest.mark.parametrize("norm", script.NORMS)
def test_one_process_computes_what_real_ranks_do(norm, world):
    layer = partial(sbnref.SyncBatchNorm, stats_mode="exact") if norm == "synchronized" else nn.BatchNorm2d
    real = world(4).run(train, layer, 12, step_of_a_rank)[0]  # rank 0's buffers
    model_layers = []

    def make(channels: int) -> nn.Module:
        model_layers.append(script.Norm(channels, script.NORMS[norm]))
        return model_layers[-1]

    simulated = train(make, 12, script.step)
    for which, layer in zip((1, 4), model_layers, strict=True):
        simulated[f"{which}.running_mean"], simulated[f"{which}.running_var"] = layer.running[0.1]
    for name, value in real.items():
        tolerance = 1e-6 if "running" in name else 1e-10  # those of momenta are kept in float32
        torch.testing.assert_close(simulated[name], value, rtol=tolerance, atol=tolerance, check_dtype=False)


def test_a_quick_run_gives_every_row(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "worth.py", "--quick", "--output", tmp_path / "worth.json"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    results = load(tmp_path / "worth.json")
    committed = load(page.FILE)
    rates = {row["rate"] for row in results.rows if row["suite"] == "training"}

    def kinds(rows):
        return {tuple(str(row.get(key)) for key in KEY) for row in rows if row.get("rate") in {None, *rates}}

    assert kinds(results.rows) == kinds(committed.rows)
    assert page.rates(results).count("±") == 2 * len(script.BATCHES)
    page.draw(results).savefig(tmp_path / "worth.png")


def test_the_pages_figures_are_the_files():
    """Each is named, and filled in when the site is built; none is written by hand."""
    text = (ROOT / "docs" / "worth.md").read_text()
    named = re.findall(r"\{\{ worth\.(\w+) \}\}", text)
    assert len(named) > 20
    assert set(named) <= set(page.numbers())
    assert re.findall(r"\d\s+%|±|\d+\s+of\s+\d+", text.replace("mean ± standard deviation", "")) == []


def test_what_the_page_concludes_is_in_the_file():
    results = load(page.FILE)
    (ahead_1, of), (behind_1, _) = page.pairs(results, 1)
    (ahead_2, _), (behind_2, _) = page.pairs(results, 2)
    assert (ahead_1 > 0.8 * of, behind_1) == (True, 0)
    assert ahead_2 > 3 * behind_2
    for batch in (8, 16, 32):
        assert abs(mean(page.gain(results, batch))) < stdev(page.gain(results, batch))
    few, many = (page.best(results, "synchronized", batch) for batch in (1, 32))
    assert many["rate"] == 16 * few["rate"]
    assert [page.best(results, "synchronized", batch)["rate"] for batch in (2, 4, 8, 16)] == [0.05] * 4
    assert mean(many["accuracy, 0.01"]) < mean(many["accuracy, None"]) < mean(many["accuracy, true"])
    assert abs(mean(few["accuracy, 0.01"]) - mean(few["accuracy, 0.1"])) < 0.005
    spread = {(row["pixels"], row["samples"]): row["var"] for row in results.rows if row["suite"] == "spread"}
    for pixels, samples in ((p, n) for p in (64, 16) for n in script.BATCHES):
        assert spread[pixels, 4 * samples] == pytest.approx(spread[pixels, samples] / 2, rel=0.1)
    assert (results.notes["samples"] // 128, results.notes["samples"] // 4) == (33, 1077)
