"""Loaders of unequal length: empty batches, and errors. docs/howto/uneven.md trains, and compares with one process."""

from collections import UserDict, namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.utils.rnn import pack_sequence

import sbnref
from sbnref.interop.uneven import _empty

Named = namedtuple("Named", "images names")


def collect(batches_of_ranks, like=None):
    return list(sbnref.interop.until_all_done(batches_of_ranks[dist.get_rank()], like))


def test_what_an_empty_batch_is_made_of(world):
    full = {"images": torch.ones(4, 3).half(), "more": [(torch.ones(4), "name", np.int64(7))], "scale": torch.ones(())}
    first, second = world(2).run(collect, [[full, full], []], full)
    assert [len(one["images"]) for one in first] == [4, 4]
    assert len(second) == 2
    empty = second[1]
    assert (empty["images"].shape, empty["images"].dtype) == ((0, 3), torch.float16)
    assert empty["images"].untyped_storage().nbytes() == 0, "the samples are not kept in memory"
    assert empty["more"][0][0].shape == (0,)
    assert empty["more"][0][1:] == ("name", 7)
    assert empty["scale"] == 1


def test_the_last_batch_counts_and_not_what_it_should_be_like(world):
    last = Named(torch.ones(2, 5), ["a", "b"])
    _, second = world(2).run(collect, [[last] * 3, [last]], torch.ones(1))
    assert [type(one) for one in second] == [Named] * 3
    assert [one.images.shape for one in second] == [(2, 5), (0, 5), (0, 5)]
    assert second[1].images is not second[2].images, "the loop may change a batch"


def test_nothing_anywhere_is_no_step(world):
    assert world(2).run(collect, [[], []]) == [[], []]


def fails(batches_of_ranks, like=None):
    """Return this rank's error; the barrier shows that no rank still waits for it."""
    with pytest.raises((ValueError, TypeError, OSError, RuntimeError)) as raised:
        collect(batches_of_ranks, like)
    dist.barrier()
    return type(raised.value), str(raised.value)


def test_a_rank_without_any_batch_is_refused_on_all(world):
    said = "expected a batch or `like` on every rank, got neither on 1 of 2 ranks; pass `like`, any batch "
    said += "to make empty ones from"
    assert world(2).run(fails, [[torch.ones(1)], []]) == [(ValueError, said)] * 2


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (pack_sequence([torch.ones(3, 2), torch.ones(1, 2)]), "got one with a PackedSequence; pad"),
        (None, "samples in dimension 0 of its tensors, got a tuple without tensors"),
        ([torch.ones(())], "samples in dimension 0 of its tensors, got tensors without dimensions"),
        (torch.ones(2, 2).to_sparse(), "expected a dense batch, got torch.sparse_coo"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "got a nested one"),
        (SimpleNamespace(x=torch.ones(1)), "numbers, text and None, in tuples, .* got one with SimpleNamespace"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_empty_is_refused_at_the_first_batch(batch, said):
    with pytest.raises(TypeError, match=said):
        _empty((batch, ["a name"]))


@pytest.mark.ranks(3)
def test_only_the_group_iterates_together():
    group, rank = dist.new_group([0, 2]), dist.get_rank()
    if rank != 1:
        assert len(list(sbnref.interop.until_all_done([torch.ones(1)] * (1 + rank), group=group))) == 3


def test_one_process_iterates_over_the_loader():
    assert list(sbnref.interop.until_all_done(iter("abc"))) == ["a", "b", "c"]


def loader_or_like(case):
    """Return rank 1's error from its second batch or its `like`, and the other rank's error."""

    def loader():
        yield torch.ones(2)
        if dist.get_rank() == 1 and case == "broken disk":
            raise OSError("the disk")
        yield ["a name"] if dist.get_rank() == 1 and case == "no tensors" else torch.ones(3)

    like = UserDict(x=torch.ones(1)) if dist.get_rank() == 1 and case == "like" else None
    return fails([loader(), loader()], like)


@pytest.mark.parametrize(
    ("case", "error", "text"),
    [
        ("broken disk", OSError, "the disk"),
        ("no tensors", TypeError, "expected a batch with samples in dimension 0 of its tensors"),
        ("like", TypeError, "got one with UserDict"),
    ],
)
def test_an_error_of_one_rank_ends_the_loop_on_all(case, error, text, world):
    told, raised = world(2).run(loader_or_like, case)
    assert told[0] is RuntimeError
    assert "got an error on 1 of 2 ranks; see its traceback there. The loop ends on all" in told[1]
    assert raised[0] is error
    assert text in raised[1]
