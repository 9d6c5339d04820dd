"""With SBNREF_DEBUG=1 a mismatch between ranks raises one error on all ranks; without it, no check runs."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from shared import python
from torch import nn

import sbnref
from sbnref import functional


@pytest.fixture(scope="module")
def debugged():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SBNREF_DEBUG", "1")
        patch.setenv("SBNREF_DEBUG_TIMEOUT", "60")
        with sbnref.Ranks(3, timeout=120) as ranks:
            ranks.run(dist.get_rank)
            yield ranks


CHANGES = {  # the deviating rank, or "all", and a change of its model or a replacement of its input
    "order": (1, lambda model, x: setattr(model, "0", nn.Identity())),
    "dtype": (2, lambda model, x: x.double()),
    "eps": (2, lambda model, x: setattr(model[0], "eps", 1e-3)),
    "no gradients": (1, lambda model, x: model.requires_grad_(False) and None),
    "training": (0, lambda model, x: model.eval() and None),
    "refusal": (1, lambda model, x: x[:, :3]),
    "NumPy": ("all", lambda model, x: setattr(model[0], "momentum", np.float32(0.5))),
    "not a tensor": (1, lambda model, x: [1, 2]),
    "all refuse": ("all", lambda model, x: x[:, :3]),
}


def step(case):
    rank = dist.get_rank()
    model = nn.Sequential(sbnref.SyncBatchNorm(4), nn.ReLU(), sbnref.SyncBatchNorm(4, stats_mode="N"))
    x = torch.randn(3, 4, 5)
    model(x).sum().backward()
    deviating, change = CHANGES.get(case, (None, None))
    if deviating in (rank, "all"):
        changed = change(model, x)
        x = x if changed is None else changed
    if case == "channels":
        model, x = (sbnref.SyncBatchNorm(2), x[:, :2]) if rank == 0 else (sbnref.SyncBatchNorm(4), x)
    if case == "group":
        alike = [dist.new_group([0, 1, 2]) for _ in range(2)]
        model[0].group = alike[rank == 1]
    store = dist.distributed_c10d._get_default_store()
    if case == "missing":
        os.environ["SBNREF_DEBUG_TIMEOUT"] = "3"
        if rank == 1:
            store.wait(["0 gave up", "2 gave up"])
    try:
        if case == "function":
            functional.sync_batch_norm(x, None, None, training=True, stats_mode=["N", "N", "exact"][rank])
        if case == "no group":
            functional.sync_batch_norm(x, None, None, training=True, group=3)
        if case == "groups":
            model[2].group = dist.new_group([0, 1])
            return model(x) is not None if rank < 2 else model[:1](x) is not None
        model(x)
    except Exception as error:
        return type(error).__name__, str(error), type(error.__cause__).__name__
    finally:
        os.environ["SBNREF_DEBUG_TIMEOUT"] = "60"
        if case == "missing":
            store.set(f"{rank} gave up", "")
    return None


@pytest.mark.parametrize(
    ("case", "texts"),
    [
        ("order", ["differ in layer and stats_mode", "ranks 0 and 2: layer '0', 4 channels", "rank 1: layer '2'"]),
        ("channels", ["differ in channels", "rank 0: layer 'SyncBatchNorm', 2 channels"]),
        ("dtype", ["differ in dtype", "rank 2: layer '0', 4 channels, torch.float64"]),
        ("training", ["differ in training", "eps=1e-05, momentum=0.1, eval mode, with gradients"]),
        ("eps", ["differ in eps", "rank 2: layer '0', 4 channels, torch.float32, stats_mode='default', eps=0.001"]),
        ("no gradients", ["differ in gradients", "training, without gradients"]),
        ("group", ["differ in group", "with gradients, group '"]),
        ("refusal", ["rank 1 rejects the input", "layer '0', which rejects the input: expected input of 4 channels"]),
        ("function", ["differ in stats_mode", "layer 'sync_batch_norm'"]),
        ("not a tensor", ["rank 1 rejects the input", "expected input to be a Tensor, got list"]),
    ],
)
def test_every_rank_raises_the_same(debugged, case, texts):
    results = debugged.run(step, case)
    assert {result[0] for result in results} == {"MismatchError"}
    assert len({result[1] for result in results}) == 1, results
    assert all(text in results[0][1] for text in texts), results[0][1]
    if case == "refusal":
        assert [result[2] for result in results] == ["NoneType", "ValueError", "NoneType"]


def test_agreement_goes_unnoticed(debugged):
    assert debugged.run(step, "fine") == [None] * 3
    assert debugged.run(step, "NumPy") == [None] * 3
    assert debugged.run(step, "groups") == [True] * 3


@pytest.mark.parametrize(("case", "error"), [("all refuse", "ValueError"), ("no group", "TypeError")])
def test_an_error_on_all_ranks_is_unchanged(debugged, case, error):
    assert {result[0] for result in debugged.run(step, case)} == {error}


def test_a_rank_that_does_not_come_is_named(debugged):
    first, late, other = debugged.run(step, "missing")
    assert "rank 1 did not make call" in first[1]
    assert "rank 1 did not make call" in other[1]
    assert "ranks 0 and 2 gave up waiting for rank 1" in late[1]


def test_without_the_flag_nothing_is_added():
    assert not hasattr(functional.sync_batch_norm, "__wrapped__")
    assert not nn.modules.module._global_forward_pre_hooks


MISMATCH = """
import torch, torch.distributed as dist, sbnref
dist.init_process_group("gloo")
sbnref.SyncBatchNorm(4, eps=1e-3 if dist.get_rank() == 1 else 1e-5)(torch.randn(3, 4))
"""


@pytest.mark.slow
def test_one_rank_prints_the_traceback_and_all_the_message(tmp_path):
    (tmp_path / "script.py").write_text(MISMATCH)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3")
    env = {**os.environ, "SBNREF_DEBUG": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    run = python(*torchrun, "script.py", code=1, env=env, cwd=tmp_path, timeout=300)
    assert "[rank1]: Traceback" in run.stderr
    assert run.stderr.count("]: Traceback") == 1, run.stderr
    assert run.stderr.count("the ranks differ in eps") >= 2  # torchrun may end the last rank before its message
