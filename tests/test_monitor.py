"""The monitor's records, compared with known batches."""

import json

import pytest
import torch
import torch.distributed as dist
from torch import nn

import sbnref
from sbnref.conformance.oracle import flat, forward
from sbnref.conformance.watch import Watch
from sbnref.modes import STATS_MODES


def watched(sizes, **options):
    layer = sbnref.SyncBatchNorm(3, **options)
    with sbnref.monitor(layer) as watch:
        for step, step_sizes in enumerate(sizes):
            layer(batches(step, step_sizes)[dist.get_rank()])
    return watch


def batches(step, sizes):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(n, 3, 4, 2 + r, generator=generator) + 2 for r, n in enumerate(sizes)]


def test_the_statistics_of_every_mode_are_those_that_it_would_have_used(world):
    sizes = [[2, 3], [2, 0]]
    for watch in world(2).run(watched, sizes, stats_mode="N"):
        (layer,) = watch.layers.values()
        assert layer.ranks == (0, 1)
        assert layer.empty_share == 0.5
        for number, step in enumerate(layer.steps):
            xs = [x.double() for x in batches(number, sizes[number])]
            assert step.batch_sizes == tuple(sizes[number])
            assert step.elements == tuple(flat(x).shape[1] for x in xs)
            ones = torch.ones(3).double()
            for mode in STATS_MODES:
                _, mean, var = forward(xs, ones, ones, mode, 1e-5)
                torch.testing.assert_close(step.mean[mode], mean, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(step.var[mode], var, rtol=1e-6, atol=1e-6)
        assert layer.steps[1].empty_ranks == (1,)
        assert layer.steps[1].mean_off("exact") == 0
        json.dumps(watch.to_dict(), allow_nan=False)


def equal_batches(empty):
    """Monitor equal batches on all ranks, so that only empty ranks can skew."""
    layer = sbnref.SyncBatchNorm(3)
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) + 3
    with sbnref.monitor(layer) as watch:
        for ranks in empty:
            layer(x[:0] if dist.get_rank() in ranks else x)
    return watch


def test_the_table_has_share_and_skew(world):
    watch = world(4).run(equal_batches, [[], [2], [], [1]])[3]
    (layer,) = watch.layers.values()
    mean, var = layer.steps[1].scaled_by("default")
    assert mean == pytest.approx(3 / 4)
    assert var > 1
    assert "50%" in str(watch.summary())
    assert "empty rank" in watch._repr_html_()


def troubled():
    layer = sbnref.SyncBatchNorm(2, stats_mode="exact", momentum=0.0)
    if dist.get_rank() == 1:
        layer.running_mean += 0.25
    with sbnref.monitor(layer) as watch:
        for step in range(4):
            x = torch.randn(3, 2)
            if dist.get_rank() == 1 and step % 2:
                x[0, 0] = torch.inf
            layer(x)
    return watch.layers["SyncBatchNorm"]


def test_nan_and_inf_and_each_ranks_running_statistics_are_recorded(world):
    layer = world(2).run(troubled)[0]
    assert [step.non_finite for step in layer.steps] == [(), (1,), (), (1,)]
    first, second = layer.steps[0].running[:, 0]
    assert (second - first).tolist() == [0.25, 0.25]


@pytest.mark.ranks(2)
def test_no_collective_during_and_no_hook_after():
    layer, x = sbnref.SyncBatchNorm(3), torch.randn(2, 3, 4)
    with Watch() as plain:
        layer(x)
    for every, steps in ((1, 3), (2, 2)):
        with Watch() as watched, sbnref.monitor(layer, every=every) as watch:
            for training in (True, False, True, True):
                layer.train(training)(x)
        assert {name for name, _, _ in watched.collectives} == {"all_reduce"}
        assert len(watch.layers["SyncBatchNorm"].steps) == steps
    with Watch() as after:
        layer(x)
    assert len(plain.collectives) == len(after.collectives) == 1
    assert not layer._forward_pre_hooks


def test_torch_layers_are_watched_where_they_run():
    layer = nn.SyncBatchNorm(3, track_running_stats=False)
    with sbnref.monitor(nn.Sequential(nn.Identity(), layer)) as watch:
        layer(input=torch.randn(4, 3))
    assert watch.layers["1"].steps[0].batch_sizes == (4,)
    assert watch.layers["1"].stats_mode == "exact"
    assert watch.layers["1"].mean_off("exact") == 0


def test_plot(world):
    watch = world(4).run(equal_batches, [[], [2]])[0]
    assert len(watch.plot().axes) == len(watch.plot(["SyncBatchNorm"]).axes) == 2
    with pytest.raises(KeyError):
        watch.plot(["head"])


def test_bad_use_says_what_to_do():
    watch, diagnose = sbnref.monitor, sbnref.diagnose
    for tool, error, message, model, every in (
        (watch, ValueError, r"only BatchNorm1d; sbnref.convert_sync_batchnorm\(model\)", nn.BatchNorm1d(3), 1),
        (diagnose, ValueError, "a batch norm, found none in Sequential", nn.Sequential(nn.InstanceNorm2d(3)), 1),
        (watch, ValueError, "every to be an integer of at least 1, got 0", nn.SyncBatchNorm(3), 0),
        (diagnose, ValueError, "every to be an integer of at least 1, got 1.5", nn.SyncBatchNorm(3), 1.5),
        *((tool, TypeError, "got list", [], 1) for tool in (watch, diagnose)),
    ):
        with pytest.raises(error, match=message), tool(model, every=every):
            pass
