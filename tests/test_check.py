"""Grading a student's four functions: the faults, the messages, and a grader that no submission stops."""

import inspect
import itertools
import json
import os
import sys

import pytest
import torch
from planted import BUGS, one_pass_variance, replaced
from shared import ROOT, cli, refused

from sbnref.conformance.cases import Case
from sbnref.impls import STAGES, reference
from sbnref.lab.grading import judge as judging
from sbnref.lab.grading import template as start
from sbnref.lab.grading.check import Grade, StageGrade, check, template
from sbnref.lab.grading.hints import SECTIONS, where_to_look
from sbnref.lab.grading.judge import Judge
from sbnref.lab.grading.search import CUT_SHORT
from sbnref.lab.grading.steps import search_steps
from sbnref.lab.sandbox.process import Job


def found(stage, **options):
    """Return the failure of a stage, with its hint and section of the derivations."""
    failure = search_steps(stage, replaced(**{stage: options.pop("function")}), **options).fault
    return failure, *where_to_look(stage, "failed", vars(failure))


HINTS = {
    "half-accumulation": ("half precision", "Floating point"),
    "dropped-last-term": ("the last term", SECTIONS["backward_apply"]),
    "biased-running-variance": ("correct the variance by M / (M - 1)", "Running statistics that agree on all ranks"),
    "swapped-sums": ("The payload is [sum g, sum g xhat], in this order.", SECTIONS["backward_stats"]),
    "wrong-divisor": ("divide by the divisor", SECTIONS["forward_apply"]),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_stage_of_each_planted_bug_is_named_with_a_hint(bug):
    impl, guilty = BUGS[bug]
    failures = {stage: search_steps(stage, impl, examples=60 if stage == guilty else 10).fault for stage in STAGES}
    assert [stage for stage in STAGES if failures[stage]] == [guilty]
    assert "1 rank " in failures[guilty].step or "2 ranks " in failures[guilty].step, "not shrunk"
    hint, section = where_to_look(guilty, "failed", vars(failures[guilty]))
    if bug in HINTS:
        assert HINTS[bug][0] in hint
        assert HINTS[bug][1] == section


def test_a_variance_that_cancels_is_named_with_a_hint():
    _, hint, section = found("forward_stats", function=one_pass_variance)
    assert (hint[:31], section) == ("Only a mean far from zero fails", "Floating point")


def test_finds_nothing_wrong_with_the_reference():
    for stage in STAGES:
        found = search_steps(stage, reference, examples=60)
        assert found.fault is None
        assert found.tried == 60


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
        failure, _, section = found("backward_stats", function=function)
        assert text in failure.what
    assert section == "Floating point"


HOSTILE = """
import os, sys, ctypes, torch
from sbnref.impls import reference
print("garbage }{", file=sys.stdout)
print("garbage }{", file=sys.stderr)

def forward_stats(x, weight):
    os.write(1, b"more garbage\\n" * 100_000)
    while True:
        pass

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


def test_what_is_saved_may_lie_as_its_owner_likes():
    flipped = replaced(
        forward_apply=saving(lambda saved: saved.flip(0)),
        backward_stats=lambda dy, x, saved: reference.backward_stats(dy, x, saved.flip(0)),
        backward_apply=lambda dy, x, t, saved, *rest: reference.backward_apply(dy, x, t, saved.flip(0), *rest),
    )
    assert {result.status for result in statuses(flipped).values()} == {"passed"}


def test_what_is_saved_wrongly_is_the_fault_of_who_saves_it():
    results = statuses(replaced(forward_apply=saving(lambda saved: saved * 1.01)))
    assert [stage for stage in STAGES if results[stage].status == "failed"] == ["forward_apply"]
    assert "is right with the reference's saved, but wrong with this one" in results["forward_apply"].failure["what"]


@pytest.mark.slow
def test_nothing_hangs_or_crashes_the_grader(tmp_path):
    stages = graded(tmp_path, HOSTILE, timeout=4, memory=2, allow=["sbnref"])
    assert [stages[stage].status for stage in STAGES] == ["timed out", "crashed", "crashed", "failed"]
    assert stages["forward_stats"].failure["what"].startswith("was still running after ")
    assert "garbage" in stages["forward_stats"].failure["printed"]
    assert stages["forward_stats"].failure["step"].startswith("1 rank with input of shape (0, 1)")
    assert stages["forward_apply"].failure["what"] == "crashed the process, with signal SIGSEGV"
    assert "in forward_apply" in stages["forward_apply"].failure["printed"]
    assert stages["backward_stats"].failure["what"] == "ended the process, with exit code 0"
    if sys.platform == "linux":
        assert "raised " in stages["backward_apply"].failure["what"]
        assert "theirs.py, line" in stages["backward_apply"].failure["what"]


REFERENCE = """
import os, signal, time
from sbnref.impls import reference
from sbnref.impls.reference import *
"""
CRASHES = """
def forward_apply(x, *rest):
    if x.shape[1] > 1 and x.numel():
        os.kill(os.getpid(), signal.SIGKILL)
    return reference.forward_apply(x, *rest)
"""
HANGS = """
def backward_stats(dy, x, saved):
    time.sleep(600 * (dy.dtype == torch.float16))
    return reference.backward_stats(dy, x, saved)
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a crash or a hang is shrunk where processes can fork")


@pytest.mark.slow
@needs_fork
def test_a_crash_is_shrunk(tmp_path):
    stages = graded(tmp_path, REFERENCE + CRASHES, timeout=100, examples=100, allow=["sbnref"])
    crash = stages["forward_apply"]
    assert crash.status == "crashed"
    assert crash.failure["step"].startswith("1 rank with input of shape (2, 2), torch.float32")
    assert CUT_SHORT not in crash.failure["step"]
    assert crash.failure["what"] == "crashed the process, with signal SIGKILL"
    assert stages["forward_stats"].status == "passed"


@pytest.mark.slow
@needs_fork
def test_a_hang_is_shrunk_for_the_time_that_there_is(tmp_path):
    stages = graded(tmp_path, REFERENCE + HANGS, stages=["backward_stats"], timeout=6, examples=100, allow=["sbnref"])
    hang = stages["backward_stats"]
    assert hang.status == "timed out"
    assert hang.failure["what"] == "was still running after 1 s and was ended"
    assert "half" in hang.failure["features"]
    assert CUT_SHORT in hang.failure["step"]


def test_every_run_has_numbers_of_its_own():
    def given(seed):
        seen = []

        def forward_stats(x, weight):
            seen.append(x.double().sum().item())
            return reference.forward_stats(x, weight)

        search_steps("forward_stats", replaced(forward_stats=forward_stats), examples=20, seed=seed)
        return seen

    assert given(1) == given(1)
    assert len({*given(1)} & {*given(2)}) < len({*given(1)}) / 2  # empty ranks and cases of few integers coincide


@pytest.mark.slow
def test_a_file_that_hangs_when_imported(tmp_path):
    stages = graded(tmp_path, "while True: pass", timeout=2)
    assert {stage.status for stage in stages.values()} == {"timed out"}
    assert stages["backward_apply"].failure["step"] == "importing it"


def test_a_file_that_is_half_written(tmp_path):
    text = template().replace('raise NotImplementedError("forward_stats is still to be written")', "return x.sum()")
    (tmp_path / "theirs.py").write_text(text)
    stages = ("--stage", "forward_stats", "--stage", "backward_stats")
    report = json.loads(cli("lab", "check", tmp_path / "theirs.py", *stages, "--json", code=1).stdout)
    assert report["score"] == 0
    assert [stage["status"] for stage in report["stages"]] == ["failed", "not written"]
    assert "forward_stats must return a payload of shape (5,)" in report["stages"][0]["failure"]["what"]


def test_the_report_as_text():
    failure = {"what": "y is off", "step": "1 rank", "quantity": "y", "rank": 0, "index": [0, 1]}
    failure |= {"expected": [[1.5]], "given": 2.0}
    passed = StageGrade("forward_stats", "passed", 100, None, None, None)
    failed = StageGrade("forward_apply", "failed", 7, failure, "Look.", "Floating point")
    text = str(Grade("theirs.py", [passed, failed]))
    for part in (
        "✓ forward_stats: passed, tried on 100 training steps",
        "y is off (on rank 0, worst at index (0, 1))",
        "expected [[1.5]]",
        "given    2",
        "Derivations: Floating point",
        "1 of 2 passed, score 0.50",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "Missing argument 'FILE_OR_MODULE'"),
        ("nowhere.py", "got nowhere.py, which does not exist"),
        ("./setup.cfg", "got ./setup.cfg, which does not exist"),
        ("tests/. --stage forward_stats", "which does not exist"),
        (f"{__file__} --stage forwards", "expected stages among"),
        ("json", "expected json to define forward_stats, forward_apply, backward_stats and backward_apply"),
    ],
)
def test_command_refuses_in_a_sentence(arguments, text):
    assert text in refused("lab", "check", *arguments.split())


def test_template_is_a_file_to_start_from():
    assert cli("lab", "template", "functions").stdout == template()
    for stage in STAGES:
        function = getattr(start, stage)
        with pytest.raises(NotImplementedError, match=f"{stage} is still to be written"):
            function(*range(len(inspect.signature(function).parameters)))


def test_what_is_no_number_is_json():
    grade = Grade("mine.py", [StageGrade("forward_stats", "failed", 1, {"given": [float("nan")]}, None, None)])
    assert json.loads(json.dumps(grade.to_dict(), allow_nan=False))["score"] == 0


def test_stages_have_to_be_named(tmp_path):
    (tmp_path / "theirs.py").write_text(template())
    with pytest.raises(ValueError, match=r"expected stages among .* got none"):
        check(tmp_path / "theirs.py", [])


def test_without_hypothesis_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install hypothesis"):
        check("json")


def fails(impl, device):
    raise AssertionError("a promise is broken")


def passes(impl, device):
    assert impl.endswith("theirs.py")


def test_the_suite_over_the_whole_layer(tmp_path, monkeypatch):
    path = tmp_path / "theirs.py"
    path.write_text(REFERENCE)
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
