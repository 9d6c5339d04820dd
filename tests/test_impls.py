"""The registry, the choice of an implementation, and the conformance suite, which rejects wrong implementations."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from planted import BUGS, one_pass_variance, replaced

import sbnref
from sbnref import impls
from sbnref.conformance import cases
from sbnref.impls import cpu, operators, reference

X = torch.randn(4, 3)


@pytest.fixture
def recorder():
    calls = []

    def recorded(stage):
        return lambda *args: calls.append(stage) or getattr(reference, stage)(*args)

    stages = {stage: recorded(stage) for stage in ("forward_stats", "backward_stats")}
    sbnref.register_impl("recorder", replaced(**stages))
    return calls


def normalize(impl=None):
    return sbnref.SyncBatchNorm(3, impl=impl)(X)


def test_kernels_without_memory_for_their_counters_empty_pytorchs_cache(monkeypatch):
    results, emptied = iter([None, X]), []
    library = SimpleNamespace(failure=lambda: "CUDA error: out of memory")
    library.forward_stats = SimpleNamespace(default=lambda *args: next(results))
    monkeypatch.setattr(torch.ops, "planted", library, raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    forward_stats, *_ = operators.stages_of("planted")
    assert forward_stats(X, 1) is X
    assert emptied == [1]


def test_every_way_to_choose_and_their_order(recorder, monkeypatch):
    normalize("recorder")
    assert len(recorder) == 1
    monkeypatch.setenv("SBNREF_IMPL", "recorder")
    normalize()
    assert len(recorder) == 2
    normalize("reference")
    assert len(recorder) == 2, "the module's choice precedes the environment's"
    monkeypatch.delenv("SBNREF_IMPL")
    with sbnref.use_impl("recorder"):
        normalize("reference")
        assert len(recorder) == 3, "the block's choice precedes all"
        with sbnref.use_impl("reference"):
            normalize("recorder")
        assert len(recorder) == 3, "the innermost block decides"
    normalize()
    assert len(recorder) == 3


def test_the_backward_pass_uses_the_forward_pass_choice(recorder):
    x = X.clone().requires_grad_()
    with sbnref.use_impl("recorder"):
        y = sbnref.SyncBatchNorm(3)(x)
    y.sum().backward()
    assert recorder == ["forward_stats", "backward_stats"]


def test_names_are_checked(recorder, monkeypatch):
    with pytest.raises(ValueError, match=r"one of \('auto', 'reference', 'cpu', 'cuda',.*'recorder'\), got 'fast'"):
        sbnref.SyncBatchNorm(3, impl="fast")
    with pytest.raises(ValueError, match="got 'fast'"), sbnref.use_impl("fast"):
        pass
    monkeypatch.setenv("SBNREF_IMPL", "fast")
    with pytest.raises(ValueError, match="got 'fast'"):
        normalize()


def test_registration_refuses_taken_names_and_missing_stages(recorder):
    for name in ("reference", "cpu", "cuda", "auto", "recorder"):
        with pytest.raises(ValueError, match=f"got '{name}'; the names"):
            sbnref.register_impl(name, replaced())
    with pytest.raises(TypeError, match=r"without \['backward_apply'\]"):
        sbnref.register_impl("partial", SimpleNamespace(**{s: print for s in impls.STAGES[:-1]}))
    assert "partial" not in impls.impl_names()


def test_an_implementation_says_why_it_cannot_run():
    impl = replaced()
    impl.why_not = lambda device: f"it is afraid of {device}"
    sbnref.register_impl("shy", impl)
    with pytest.raises(RuntimeError, match="impl='shy' cannot run on cpu: it is afraid of cpu"):
        normalize("shy")


@pytest.mark.parametrize(("missing", "chosen"), [(None, cpu), ("it is not built yet", reference)])
def test_auto_takes_the_kernels_for_cpu_tensors_where_they_are_built(missing, chosen, monkeypatch, recwarn):
    monkeypatch.setattr(cpu, "_not_built", lambda: missing)
    monkeypatch.delenv("SBNREF_IMPL", raising=False)
    for name in (None, "auto"):
        assert impls.choose_impl(name, torch.device("cpu")) is chosen
    assert impls.choose_impl(None, torch.device("meta")) is reference
    assert not recwarn.list, "in silence"


def test_auto_warns_when_it_cannot_use_cuda_for_a_cuda_tensor(monkeypatch):
    monkeypatch.setattr(impls, "_registry", {**impls._registry, "cuda": replaced()})
    assert impls.choose_impl(None, torch.device("cuda")) is impls._registry["cuda"]
    impls._registry["cuda"].why_not = lambda device: "no compiler"
    with pytest.warns(UserWarning, match="reference implementation on cuda: no compiler"):
        assert impls.choose_impl(None, torch.device("cuda")) is reference


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_conformance(world, case, impl):
    world(case.world_size).run(case.check, impl, "cpu")


def mmcv_divisor(dy, x, total, saved, gamma, k):
    """Divide by the number of ranks times this rank's elements in every mode."""
    saved = saved.clone()
    saved[2:] = torch.tensor([[0.0], [1 / 3]])
    return reference.backward_apply(dy, x, total, saved, gamma, min(k, 1) and 1 / (x.numel() // x.shape[1]))


def variance_about_zero(x, weight):
    """Round the variance like Var + mean^2 stored as one float64 number."""
    payload = reference.forward_stats(x, weight)
    c = x.shape[1]
    payload[c : 2 * c] = (payload[c : 2 * c] + payload[2 * c : -2]) - payload[2 * c : -2]
    return payload


def variance_with_noise(x, total, *rest):
    """Count the rounding error of the variance between ranks as variance."""
    total, c = total.clone(), x.shape[1]
    s1, s3, weight = total[:c], total[2 * c : -2], total[-2]
    total[c : 2 * c] += (s3 - s1 / weight * s1).abs() + 1e-16 * s3
    return reference.forward_apply(x, total, *rest)


def host_read(dy, x, saved):
    assert dy.sum().item() != torch.inf
    return reference.backward_stats(dy, x, saved)


MUTANTS = {
    "wrong_divisor": (BUGS["wrong-divisor"][0], "batches: some empty, default, 3 ranks"),
    "dropped_last_term": (BUGS["dropped-last-term"][0], "batches: some empty, default, 3 ranks"),
    "mmcv_divisor": (replaced(backward_apply=mmcv_divisor), "batches: ragged, N, 3 ranks"),
    "one_pass_variance": (replaced(forward_stats=one_pass_variance), "accuracy: mean 1e3, std 1e-2"),
    "variance_about_zero": (replaced(forward_stats=variance_about_zero), "accuracy: float64, mean 1.7e9, std 1"),
    "variance_with_noise": (replaced(forward_apply=variance_with_noise), "accuracy: float64, mean 1.7e9, std 1"),
    "host_read": (replaced(backward_stats=host_read), "costs: one collective each way, no host sync"),
}


def by_name(tensor, group):
    """Find the group by its name, which is not always registered."""
    return torch.ops.sbnref.all_reduce(tensor, group.group_name)


SHARED_MUTANTS = {  # of the shared code: the replaced function, its replacement, and the failing case
    "never_summed": ("collectives._all_reduce_batch", lambda t, g: t * 1, "transforms: batches of gradients"),
    "group_by_name": ("collectives._all_reduce_now", by_name, "groups: a wrapper of another group"),
    "unseen_change": ("autograd.increment_version", lambda tensors: None, "running statistics: a change that autograd"),
    "subclass_within": ("functional.has_torch_function_unary", lambda t: False, "classes: a subclass of Tensor"),
}


def caught(name, check):
    """Run on a rank; return whether the check fails for the mutant, after it passes without it."""
    if name in MUTANTS:
        target, replacement = "impls._registry", {**impls._registry, "cpu": MUTANTS[name][0]}
    else:
        target, replacement, _ = SHARED_MUTANTS[name]
    check("cpu", "cpu")
    with patch(f"sbnref.{target}", replacement):
        try:
            check("cpu", "cpu")
        except Exception as error:
            return isinstance(error, AssertionError) or name in SHARED_MUTANTS
    return False


@pytest.mark.parametrize("name", [*MUTANTS, *SHARED_MUTANTS])
def test_the_suite_catches_what_is_wrong(world, name):
    prefix = {**MUTANTS, **SHARED_MUTANTS}[name][-1]
    (case,) = [case for case in cases() if case.name.startswith(prefix)]
    assert any(world(case.world_size).run(caught, name, case.check)), f"{case.name} passes for {name}"
