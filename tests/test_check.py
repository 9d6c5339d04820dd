"""Grading a student's four functions: the faults, the messages, and a grader that no submission stops."""

import itertools
import json
import sys

import pytest
import torch
from planted import BUGS, one_pass_variance, replaced
from shared import ROOT, cli, refused

from sbnref.conformance.cases import Case
from sbnref.impls import STAGES, reference
from sbnref.lab.grading import judge as judging
from sbnref.lab.grading.check import Grade, StageGrade, check, template
from sbnref.lab.grading.hints import SECTIONS, where_to_look
from sbnref.lab.grading.judge import Judge
from sbnref.lab.grading.search import CUT_SHORT
from sbnref.lab.grading.steps import search_steps
from sbnref.lab.sandbox.process import Job

FAULTS = {**BUGS, "one-pass-variance": (replaced(forward_stats=one_pass_variance), "forward_stats")}
HINTS = {
    "half-accumulation": ("half precision", "Floating point"),
    "dropped-last-term": ("the last term", SECTIONS["backward_apply"]),
    "biased-running-variance": ("correct the variance by M / (M - 1)", "Running statistics that agree on all ranks"),
    "swapped-sums": ("The payload is [sum g, sum g xhat], in this order.", SECTIONS["backward_stats"]),
    "wrong-divisor": ("divide by the divisor", SECTIONS["forward_apply"]),
    "one-pass-variance": ("Only a mean far from zero fails", "Floating point"),
}


@pytest.mark.parametrize("bug", FAULTS)
def test_the_stage_of_each_planted_bug_is_named_with_a_hint(bug):
    impl, guilty = FAULTS[bug]
    failures = {stage: search_steps(stage, impl, examples=60 if stage == guilty else 10).fault for stage in STAGES}
    assert [stage for stage in STAGES if failures[stage]] == [guilty]
    assert "1 rank " in failures[guilty].step or "2 ranks " in failures[guilty].step, "not shrunk"
    hint, section = where_to_look(guilty, "failed", vars(failures[guilty]))
    if bug in HINTS:
        assert HINTS[bug][0] in hint
        assert HINTS[bug][1] == section


def test_other_hints():
    base = {"quantity": "dx", "what": "dx is off", "features": ["N"]}
    for stage, changed, text in (
        ("backward_stats", {"what": "the same call gave two different results for x"}, "a changing order"),
        ("forward_stats", {"what": "raised RuntimeError: graded code may not call f"}, "forbidden"),
        ("forward_apply", {"quantity": "running_mean", "features": ["all empty"]}, "changes nothing"),
        ("backward_apply", {"features": ["float64"]}, "an intermediate result in float32"),
        ("forward_stats", {"relative": 1e-4}, "Sum deviations from the mean"),
        ("forward_stats", {"features": ["layout"]}, "x.stride()"),
        ("forward_stats", {"features": ["empty rank"]}, "do not divide by them"),
        ("layer", {}, "a common feature"),
    ):
        assert text in where_to_look(stage, "failed", {**base, **changed})[0]


def test_wrong_kinds_are_named():
    almost = itertools.cycle([1, 1 + 1e-12])
    for change, text in (
        (lambda payload, dy: payload.float(), "in torch.float64, but returned shape (2,)"),
        (lambda payload, dy: dy.zero_() is dy and payload, "backward_stats changed its input dy; work on a copy"),
        (lambda payload, dy: sys.exit(3), "raised SystemExit: 3\n  at test_check.py, line"),
        (lambda payload, dy: payload * torch.rand(()), "rounding"),
        (lambda payload, dy: payload * next(almost), "the same call gave two different results for backward payload"),
    ):
        function = lambda dy, x, saved, change=change: change(reference.backward_stats(dy, x, saved), dy)  # noqa: E731
        assert text in search_steps("backward_stats", replaced(backward_stats=function)).fault.what


HOSTILE = """
import os, sys, ctypes, torch
from sbnref.impls import reference
print("garbage }{", file=sys.stdout)
print("garbage }{", file=sys.stderr)

def forward_stats(x, weight):
    os.write(1, b"more garbage\\n" * 100_000)
    while x.dtype == torch.float16:
        pass
    return reference.forward_stats(x, weight)

def forward_apply(x, *rest):
    if x.shape[1] > 1 and x.numel():
        ctypes.string_at(0)
    return reference.forward_apply(x, *rest)

def backward_stats(*_):
    os._exit(0)

def backward_apply(dy, *_):
    return torch.ones(10 * 2**27, dtype=torch.float64)  # 10 GiB
"""


def graded(tmp_path, text, **options):
    path = tmp_path / "theirs.py"
    path.write_text(text)
    return {stage.stage: stage for stage in check(path, **{"examples": 20, "seed": 0, **options}).stages}


def statuses(impl):
    judge = Judge(Job("nothing"), examples=20, timeout=60, seed=0)
    judge.impl = impl
    for stage in STAGES:
        judge.grade(stage)
    return judge.results


def saving(change):
    def forward_apply(*arguments):
        y, saved = reference.forward_apply(*arguments)
        return y, change(saved)

    return forward_apply


def test_saved_may_have_any_layout():
    flipped = replaced(
        forward_apply=saving(lambda saved: saved.flip(0)),
        backward_stats=lambda dy, x, saved: reference.backward_stats(dy, x, saved.flip(0)),
        backward_apply=lambda dy, x, t, saved, *rest: reference.backward_apply(dy, x, t, saved.flip(0), *rest),
    )
    assert {result.status for result in statuses(flipped).values()} == {"passed"}


def test_wrong_saved_is_a_fault_of_forward_apply():
    results = statuses(replaced(forward_apply=saving(lambda saved: saved * 1.01)))
    assert [stage for stage in STAGES if results[stage].status == "failed"] == ["forward_apply"]
    report = " ".join(str(Grade("theirs.py", [*results.values()])).split())
    for part in (
        "✓ forward_stats: passed, tried on 20 training steps",
        "is right with the reference's saved, but wrong with this one",
        "(on rank 0, worst at index (",
        "expected",
        "given",
        "Derivations: Combining means and variances",
        "3 of 4 passed, score 0.75",
    ):
        assert part in report


@pytest.mark.slow
def test_nothing_hangs_or_crashes_the_grader(tmp_path):
    stages = graded(tmp_path, HOSTILE, timeout=6, memory=2, allow=["sbnref"])
    assert [stages[stage].status for stage in STAGES] == ["timed out", "crashed", "crashed", "failed"]
    assert stages["forward_stats"].failure["what"] == "was still running after 1 s and was ended"
    assert "garbage" in stages["forward_stats"].failure["printed"]
    assert "half" in stages["forward_stats"].failure["features"]
    assert CUT_SHORT in stages["forward_stats"].failure["step"]
    assert stages["forward_apply"].failure["what"] == "crashed the process, with signal SIGSEGV"
    assert "in forward_apply" in stages["forward_apply"].failure["printed"]
    assert stages["backward_stats"].failure["what"] == "ended the process, with exit code 0"
    if sys.platform == "linux":
        assert "raised " in stages["backward_apply"].failure["what"]
        assert "theirs.py, line" in stages["backward_apply"].failure["what"]


@pytest.mark.slow
def test_a_crash_is_shrunk(tmp_path):
    crash = graded(tmp_path, HOSTILE, stages=["forward_apply"], timeout=100, allow=["sbnref"])["forward_apply"]
    assert crash.status == "crashed"
    assert crash.failure["step"].startswith("1 rank with input of shape (2, 2), torch.float32")
    assert CUT_SHORT not in crash.failure["step"]


def test_every_seed_has_numbers_of_its_own():
    def given(seed):
        seen = []
        impl = replaced(forward_stats=lambda x, weight: seen.append(x) or reference.forward_stats(x, weight))
        search_steps("forward_stats", impl, examples=20, seed=seed)
        return {x.double().sum().item() for x in seen}

    assert given(1) == given(1)
    assert len(given(1) & given(2)) < len(given(1)) / 2  # empty ranks and cases of few integers coincide


@pytest.mark.slow
def test_a_file_that_hangs_when_imported(tmp_path):
    stages = graded(tmp_path, "while True: pass", timeout=2)
    assert {stage.status for stage in stages.values()} == {"timed out"}
    assert stages["backward_apply"].failure["step"] == "importing it"


def test_a_file_that_is_half_written(tmp_path):
    text = template().replace('raise NotImplementedError("forward_stats is still to be written")', "return x.sum()")
    (tmp_path / "theirs.py").write_text(text)
    report = json.loads(cli("lab", "check", tmp_path / "theirs.py", "--json", code=1).stdout)
    assert report["score"] == 0
    assert [stage["status"] for stage in report["stages"]] == ["failed", *["not written"] * 3]
    assert "forward_stats must return a payload of shape (5,)" in report["stages"][0]["failure"]["what"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "Missing argument 'FILE_OR_MODULE'"),
        ("nowhere.py", "got nowhere.py, which does not exist"),
        (f"{ROOT}/Makefile", "expected a file with the ending .py, got "),
        (f"{__file__} --stage forwards", "expected stages among"),
        ("json", "expected json to define forward_stats, forward_apply, backward_stats and backward_apply"),
    ],
)
def test_command_refuses_in_a_sentence(arguments, text):
    assert text in refused("lab", "check", *arguments.split())


def test_what_is_no_number_is_json():
    grade = Grade("mine.py", [StageGrade("forward_stats", "failed", 1, {"given": [float("nan")]}, None, None)])
    assert json.loads(json.dumps(grade.to_dict(), allow_nan=False))["score"] == 0


def test_no_stage_and_no_hypothesis_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"expected stages among .* got none"):
        check("json", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install hypothesis"):
        check("json")


def fails(impl, device):
    raise AssertionError("a promise is broken")


def passes(impl, device):
    assert impl.endswith("theirs.py")


def test_the_suite_over_the_whole_layer(tmp_path, monkeypatch):
    path = tmp_path / "theirs.py"
    path.write_text("from sbnref.impls.reference import *")
    monkeypatch.setattr(judging, "cases", lambda: [Case("one", 1, passes), Case("two", 1, fails)])
    judge = Judge(Job(str(path)), examples=1, timeout=60, seed=0)
    judge.run_suite()
    result = judge.results["layer"]
    assert (result.status, result.tried) == ("failed", 2)
    assert result.failure["step"] == "two"
    assert "a promise is broken" in result.failure["what"]


def test_every_section_that_a_hint_names_exists():
    pages = (ROOT / "docs" / "derivations").glob("*.md")
    titles = {page.read_text().splitlines()[0].removeprefix("# ") for page in pages}
    assert {*SECTIONS.values(), "Floating point", "Running statistics that agree on all ranks"} <= titles
