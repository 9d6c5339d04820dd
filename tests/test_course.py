"""A course: the handout has no answers, and each grader scores right and wrong work correctly."""

import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from handing_in import ENVIRONMENT, Autograder, conforms, hand_in, scores
from shared import cli, process, refused
from test_cheats import RIGHT, WRONG, confine_nothing

from sbnref.impls import STAGES
from sbnref.lab.course import gradescope, packing
from sbnref.lab.course.make import make
from sbnref.lab.course.packing import TUTORIALS
from sbnref.lab.course.settings import Settings
from sbnref.lab.grading.kernels.report import Fault, KernelGrade, Part
from sbnref.lab.sandbox.process import Job, NotGradable, Student

pytestmark = pytest.mark.slow

QUICK = {"examples": 8, "timeout": 8.0, "hidden_seed": 918273645}
ONE = Settings(points={"forward_stats": 7}, hidden_share=0.4, **QUICK)
SOLUTION = (TUTORIALS / "solutions" / "solution_10.py").read_text()


@pytest.fixture(scope="module", autouse=True)
def _one_wheel() -> Iterator[None]:
    """Build the wheel once for all courses."""
    wheel = packing.pack()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sbnref.lab.course.make.pack", lambda: wheel)
        yield


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("course") / "lab"
    make(folder, Settings(points={**dict.fromkeys(STAGES, 5), "legal": 3, "right": 3, "efficient": 4}, **QUICK))
    return folder


# ---- the folder ----


def test_what_is_handed_out_has_no_answers(course, tmp_path):
    with zipfile.ZipFile(next((course / "handout").glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    handed_out = [*(course / "handout").rglob("*"), *tmp_path.rglob("*")]
    files = [path for path in handed_out if path.is_file()]
    solutions = {path.read_bytes() for path in (TUTORIALS / "solutions").iterdir() if path.is_file()}
    assert len(solutions) > 10
    assert len(files) > 100
    whole = set()
    for path in files:
        assert "solution" not in path.name
        assert path.read_bytes() not in solutions
        assert str(QUICK["hidden_seed"]).encode() not in path.read_bytes(), path
        if path.suffix == ".cu" and "void batch_norm(" in path.read_text():
            whole.add(f"{path.parent.name}/{path.name}")
    assert whole == {"handout/mine.cu"}, "more can be handed in as it is"
    assert str(QUICK["hidden_seed"]) in (course / "settings.json").read_text()  # the search would find it here


def test_a_course_is_made_in_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(packing, "ROOT", tmp_path)  # as in an installation
    monkeypatch.setattr("sbnref.lab.course.make.pack", packing.pack)
    said = refused("lab", "course", "make", tmp_path / "lab")
    assert said.startswith("sbnref: expected a checkout of sbnref, to build the course's wheel from")


def test_a_solution_among_the_tutorials_is_not_packed(monkeypatch):
    handed_out = packing.tutorials()
    handed_out.pop("01_why_synchronize.py")  # as if it were the teacher's file
    monkeypatch.setattr(packing, "tutorials", lambda: handed_out)
    with pytest.raises(RuntimeError, match=r"got \['sbnref/tutorials/01_why_synchronize.py'\] too; move them away"):
        packing.pack()


def test_every_exercise_and_template_is_handed_out(course):
    handout = course / "handout"
    assert (handout / "mine.py").read_text() == cli("lab", "template", "functions").stdout
    assert (handout / "mine.cu").read_text() == cli("lab", "template", "batch_norm").stdout
    readme = (handout / "README.md").read_text()
    tutorials = sorted(TUTORIALS.glob("[0-9]*.py"))
    for tutorial in tutorials:
        assert (handout / "tutorials" / tutorial.name).read_bytes() == tutorial.read_bytes()
        (row,) = [line for line in readme.splitlines() if f"`tutorials/{tutorial.name}`" in line]
        assert int(row.split("|")[3]) >= 3, row
    kernels = {path.relative_to(TUTORIALS) for path in TUTORIALS.rglob("*.cu") if path.parent.name != "own"}
    assert {path.relative_to(handout / "tutorials") for path in handout.rglob("tutorials/**/*.cu")} == kernels
    assert "Points: forward_stats 5, forward_apply 5" in readme
    assert "{" not in re.sub(r"\{[^}]*\}\.?$", "", readme), "a gap that was not filled"
    named = re.findall(r"^\| `(\S+)` \|", (course / "README.md").read_text(), re.MULTILINE)
    assert {*named, "README.md"} == {path.name for path in course.iterdir()}


def test_the_same_settings_make_the_same_folder(course, tmp_path):
    make(tmp_path / "again", Settings.load(course / "settings.json"))
    folders = course, tmp_path / "again"
    first, second = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders)
    assert first == second
    (wheel,) = (course / "handout").glob("*.whl")
    assert packing.pack() == (wheel.name, wheel.read_bytes())


def test_a_built_site_is_handed_out(tmp_path):
    site = tmp_path / "html"
    with pytest.raises(ValueError, match="expected a built site, see `make docs`, found no"):
        make(tmp_path / "lab", site=site)
    make(tmp_path / "lab", site=hand_in(site, {"index.html": "first", "learn/page.html": "second"}))
    handout = tmp_path / "lab" / "handout"
    assert (handout / "site" / "learn" / "page.html").read_text() == "second"
    assert "http.server --directory site" in (handout / "README.md").read_text()


def test_the_command_makes_a_folder_or_says_why_not(tmp_path):
    command, folder, settings = ("lab", "course", "make"), tmp_path / "new", tmp_path / "settings.json"
    Settings(points={"right": 1}).save(settings)
    said = cli(*command, folder, "--settings", settings).output
    assert " ".join(said.split()) == f"Saved {folder}; its README.md explains the parts"
    readme = (folder / "handout" / "README.md").read_text()
    assert "Points: right 1." in readme
    assert "It is not graded." in readme
    before = sorted(folder.rglob("*"))
    said = refused(*command, folder)
    assert said == f"sbnref: expected a new or empty folder, got {folder}"
    assert sorted(folder.rglob("*")) == before
    refused(*command, settings)
    settings.write_text("{")
    assert "expected settings in" in refused(*command, tmp_path / "other", "--settings", settings)
    forbidden = ["torch.nn.functional.batch_norm", "torch.Tensor.mean", "numpy", "torch.nn.batch_nrom"]
    Settings(forbid=forbidden).save(settings)
    said = refused(*command, tmp_path / "other", "--settings", settings)
    assert said == "sbnref: settings: expected existing modules and functions to forbid, got torch.nn.batch_nrom"
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"points": {"forwards": 1}}, "expected points for ('forward_stats',"),
        ({"points": {"legal": 0.5}}, "expected whole points, 0 or more, got {'legal': 0.5}"),
        ({"points": {"legal": -1}}, "expected whole points"),
        ({"points": {"legal": 0}}, "expected points for something"),
        ({"points": 10}, "expected points for"),
        ({"hidden_share": 2}, "expected hidden_share, 0 to 1, got 2"),
        ({"hidden_shown": "hidden"}, "expected hidden_shown among ('after_published', 'after_due_date')"),
        ({"seed": "one"}, "expected whole numbers as seeds"),
        ({"seed": 3, "hidden_seed": 3}, "expected a hidden_seed that is not the seed"),
        ({"examples": 0}, "expected examples, 1 or more"),
        ({"timeout": "long"}, "expected timeout"),
        ({"timeout": float("inf")}, "expected timeout, 1 to 86400 seconds"),
        ({"seed": 2**31}, "expected whole numbers as seeds, 0 to 2147483647"),
        ({"hidden_seed": 2**62}, "expected whole numbers as seeds"),
        ({"forbid": ["torch; rm -r ."]}, "expected forbid, a list of names"),
        ({"forbid": "numpy"}, "expected forbid, a list of names"),
        ({"poins": {}}, "expected in "),
        ([1], "expected in "),
    ],
)
def test_settings_are_refused_in_a_sentence(given, said, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=re.escape(said)):
        Settings.load(tmp_path / "settings.json")


def test_commands_have_the_very_limits_and_every_course_a_hidden_seed_of_its_own():
    assert Settings().hidden_seed != Settings().hidden_seed
    assert Settings(timeout=12345.678).command("legal").endswith(" --timeout 12345.678")
    assert Settings(timeout=30.0).command("legal").endswith(" --timeout 30")
    for option in (["--seed", str(2**31)], ["--timeout", "inf"]):
        refused("lab", "check", "mine.py", *option)


# ---- Gradescope ----


@pytest.fixture(scope="module")
def autograder(tmp_path_factory) -> Autograder:
    folder = tmp_path_factory.mktemp("gradescope") / "lab"
    make(folder, Settings(points=dict.fromkeys(STAGES, 5), hidden_share=0.4, **QUICK))
    return Autograder(folder / "gradescope" / "autograder.zip")


def names_hidden_seed(results: dict[str, Any]) -> bool:
    """Return whether results contain the hidden seed, or a derived one, which reports of the smallest case print."""
    hidden = QUICK["hidden_seed"]
    return any(str(seed) in json.dumps(results) for seed in (hidden, *range(4 * hidden, 4 * hidden + 4)))


# Files beside the submission that would change a checker that reads them.
FAKES = """sbnref/__init__.py sbnref/lab/grading/check.py sbnref/lab/course/gradescope.py sitecustomize.py
    usercustomize.py conftest.py torch.py hypothesis.py json.py run_autograder setup.sh"""
BESIDE = {"results.json": '{"score": 100}', "pyvenv.cfg": "home = /", "a folder/read me.txt": "hello"}
BESIDE |= dict.fromkeys(FAKES.split(), "raise SystemExit(0)\n")


def test_right_work_has_all_points_whatever_lies_beside_it(autograder):
    results = conforms(autograder({**BESIDE, "mine.py": SOLUTION}))
    assert results["score"] == 20
    assert scores(results) == {name: s for stage in STAGES for name, s in ((stage, 3), (f"{stage}, other cases", 2))}
    for test in results["tests"]:
        other = test["name"].endswith("other cases")
        assert test["visibility"] == ("after_published" if other else "visible")
        assert ("--seed 1 --examples 8" in test["output"]) != other
        assert ("to repeat these steps: --seed 1" in test["output"]) != other
    assert results["output"].startswith("12 of 12 points on the visible cases. 8 more are for other cases")
    assert results["stdout_visibility"] == "hidden"
    assert not names_hidden_seed(results)


def test_a_broken_stage_costs_its_points_and_no_others(autograder):
    broken = SOLUTION.replace("return torch.cat([sum_g, sum_g_xhat])", "return torch.cat([sum_g_xhat, sum_g])")
    results = conforms(autograder({"mine.py": broken}))
    lost = {name for name, score in scores(results).items() if score == 0}
    assert lost == {"backward_stats", "backward_stats, other cases"}
    seen, unseen = (test for test in results["tests"] if test["name"] in lost)
    assert "The payload is [sum g, sum g xhat], in this order." in seen["output"]
    assert "expected [" in seen["output"]
    assert unseen["output"] == "Not tried: backward_stats fails on the visible cases."


HOSTILE = """
import os, sys
from contextlib import suppress
print('{"score": 100, "tests": []}')
def read(path):
    with suppress(OSError):
        return open(path).read() or "nothing"
    return "nothing"
def tried(path, text):
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").write(text)
    return read(path)
here = os.path.dirname(os.path.abspath(__file__))
found = tried(here + "/../results/results.json", '{"score": 100}') + tried(here + "/../source/settings.json", "{}")
found += read(here + "/../submission_metadata.json")
tried(here + "/../run_autograder", "#!/bin/sh")
raise RuntimeError("found " + found)
"""


def test_a_submission_cannot_bring_its_own_checker(autograder):
    """Neither files beside it nor its actions change the checker, and readable files have no hidden seed."""
    told = autograder.place / "submission_metadata.json"
    told.write_text('{"previous_submissions": [{"results": "told before"}]}')
    results = conforms(autograder({**BESIDE, "mine.py": HOSTILE}))
    for place in (autograder.place, autograder.place / "results"):
        assert not place.stat().st_mode & 0o022, "a process that outlives the grading could put other results there"
    assert not told.stat().st_mode & 0o077
    assert results["score"] == 0
    assert "mine.py cannot be imported: RuntimeError: found " in results["tests"][0]["output"]
    if "unconfined" in autograder.printed and gradescope.other_user() is None:
        pytest.skip(f"nothing is confined here, and there is no other user: {autograder.printed}")
    assert not names_hidden_seed(results)
    assert "told before" not in json.dumps(results)
    assert "told before" in told.read_text()
    assert str(QUICK["hidden_seed"]) in (autograder.place / "source" / "settings.json").read_text()
    assert (autograder.place / "run_autograder").read_text() != "#!/bin/sh"


def test_without_a_grader_there_is_a_sentence(course):
    """Imitate a grader that ran out of memory or time."""
    grader = Autograder(course / "gradescope" / "autograder.zip")
    (grader.place / "venv").unlink()
    results = conforms(grader({"mine.py": SOLUTION}, code=127))
    assert results["score"] == 0
    assert "Grading did not finish, perhaps not because of your code." in results["output"]


# Submissions, and messages of their tests.
LITTLE = {
    "nothing": ({}, "expected a file mine.py in the submission, got nothing"),
    "a link": ({"right.py": RIGHT}, "expected a file mine.py in the submission, got a link"),
    "another name": ({"lab3.py": RIGHT}, "expected a file mine.py in the submission, got lab3.py"),
    "a folder of that name": ({"mine.py/mine.py": RIGHT}, "got a folder or something else of that name"),
    "no Python": ({"mine.py": "def forward_stats(x, weight) return x"}, "mine.py cannot be imported: "),
    "nothing in it": ({"mine.py": ""}, "to define forward_stats, forward_apply, backward_stats and backward_apply"),
}


@pytest.mark.parametrize("what", LITTLE)
def test_what_has_no_points_is_told_why(what, tmp_path):
    files, said = LITTLE[what]
    if what == "a link":
        (tmp_path / "mine.py").symlink_to("right.py")
    results = conforms(gradescope.grade(hand_in(tmp_path, files), replace(ONE, hidden_share=0.5)))
    assert scores(results) == {"forward_stats": 0, "forward_stats, other cases": 0}
    seen, unseen = results["tests"]
    assert said in " ".join(seen["output"].split())
    assert str(tmp_path) not in json.dumps(results)
    assert (seen["max_score"], unseen["max_score"]) == (3.5, 3.5)


def test_points_go_where_the_teacher_says(tmp_path):
    submission = hand_in(tmp_path, {"mine.py": RIGHT})
    elsewhere = replace(ONE, forbid=["not_installed_here", "not_installed_here.either"])
    results = conforms(gradescope.grade(submission, elsewhere))
    assert scores(results) == {"forward_stats": 4.2, "forward_stats, other cases": 2.8}
    results = conforms(gradescope.grade(submission, replace(ONE, hidden_share=0, forbid=["torch.cat"])))
    assert scores(results) == {"forward_stats": 0}
    assert "--forbid torch.cat" in results["tests"][0]["output"]
    assert "graded code may not call torch.cat" in " ".join(results["tests"][0]["output"].split())


def test_what_is_wrong_on_the_hidden_cases_only(tmp_path, monkeypatch):
    """Hidden cases have their own seed, which no report names."""
    seeds, check = [], gradescope.check
    passed, failed = Part("right", "passed", 1), Part("right", "failed", fault=Fault("y is off", on="large means"))

    def functions(file, names, seed, **options):
        seeds.append(seed)
        Path(file).write_text(RIGHT if seed == 1 else WRONG)
        return check(file, names, seed=seed, **options)

    def kernels(file, task, parts, seed, **_):
        seeds.append(seed)
        return KernelGrade("mine.cu", [passed if seed == 1 else failed], seed, None)

    monkeypatch.setattr(gradescope, "check", functions)
    monkeypatch.setattr(gradescope, "check_kernels", kernels)
    submission = hand_in(tmp_path, {"mine.py": "", "mine.cu": ""})
    results = conforms(gradescope.grade(submission, replace(ONE, points={"forward_stats": 5, "right": 5})))
    assert list(scores(results).values()) == [3, 0, 3, 0]
    assert seeds == [1, QUICK["hidden_seed"]] * 2
    _, of_functions, _, of_kernels = (test["output"] for test in results["tests"])
    assert "forward_stats must return a payload of shape" in of_functions
    assert "stats_mode=" in of_functions
    assert "y is off" in of_kernels
    assert "large means" in of_kernels
    assert "seed" not in of_functions + of_kernels


def test_the_graders_own_faults_are_not_the_students(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(gradescope, "check", fails)
    results = conforms(gradescope.grade(hand_in(tmp_path, {"mine.py": RIGHT}), ONE))
    assert results["score"] == 0
    assert "The grader itself failed, perhaps not because of your code." in results["tests"][0]["output"]
    assert "no compiler" not in json.dumps(results)
    assert "RuntimeError: no compiler" in capsys.readouterr().out  # visible to teachers only


def test_teachers_are_told_where_nothing_can_be_confined(tmp_path, monkeypatch, capsys):
    confine_nothing(tmp_path, monkeypatch)
    results = conforms(gradescope.grade(hand_in(tmp_path / "submission", {"mine.py": RIGHT}), ONE))
    assert results["score"] == 7
    assert "not here" not in json.dumps(results)
    assert "mine.py ran unconfined (not here), as the current user" in capsys.readouterr().out


def test_root_runs_submissions_as_another_user(autograder, monkeypatch):
    """Without confinement, the other user's missing permissions stop a hostile submission."""
    user = gradescope.other_user()
    if user is None:
        pytest.skip("it takes root, and a Python that others can run")
    (autograder.place / "source").chmod(0o700)
    (autograder.place / "submission_metadata.json").touch(0o600)
    autograder.place.chmod(0o755)
    submission = hand_in(autograder.place / "submission", {"mine.py": HOSTILE + RIGHT})
    confine_nothing(autograder.place, monkeypatch)
    results = conforms(gradescope.grade(submission, ONE, user=user))
    assert "found nothingnothingnothing" in results["tests"][0]["output"]
    (submission / "mine.py").write_text(RIGHT)
    assert conforms(gradescope.grade(submission, ONE, user=user))["score"] == 7


DRY_RUN = {"PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}


def commands(folder: Path, **lines: str) -> str:
    """Write one-line shell scripts to a folder, and return a PATH that begins with it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, line in lines.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_setting_up_installs_this_version(course, tmp_path):
    """Run the script with a fake apt-get and environment, and a pip that does not install."""
    grader = Autograder(course / "gradescope" / "autograder.zip")
    environment, (wheel,) = tmp_path / "environment", (grader.place / "source").glob("*.whl")
    (grader.place / "venv").unlink()
    python = f'[ "$2" = venv ] && exec ln -s {ENVIRONMENT} "$3"; exec {sys.executable} "$@"'
    path = commands(tmp_path / "commands", apt_get=f'echo "$@" >> {environment}', python3=python)
    env = {**os.environ, **DRY_RUN, "PATH": path, "AUTOGRADER": str(grader.place)}
    run = process(grader.place / "source" / "setup.sh", env=env)
    assert "Would install sbnref-" in run.stdout
    assert f"./{wheel.name}[check]" in (grader.place / "source" / "requirements.txt").read_text()
    assert "install -y --no-install-recommends python3-venv g++" in environment.read_text()
    assert "some elements of y are never written" in run.stdout  # the setup compiled and graded the template


def test_setting_up_fails_where_nothing_can_be_compiled(course, tmp_path):
    grader = Autograder(course / "gradescope" / "autograder.zip")
    (grader.place / "venv").unlink()
    for folder in (grader.place / "venv" / "bin", tmp_path):
        failing = "echo legal: failed, no compiler; [ $2 = template ]"
        path = commands(folder, apt_get="", python3="", python="", sbnref=failing)
    run = process(grader.place / "source" / "setup.sh", code=1, env={"PATH": path, "AUTOGRADER": str(grader.place)})
    assert "no compiler" in run.stdout  # from the report, for the teacher
    assert run.stderr == "expected the template of kernels to compile and to run\n"


def test_windows_is_told_where_to_grade(monkeypatch):
    monkeypatch.setattr("sbnref.lab.sandbox.process.os", SimpleNamespace(name="nt"))
    with pytest.raises(NotGradable, match="grading does not run on Windows"):
        Student(Job("mine.py")).start()


# ---- the students' page ----


def test_the_students_commands_run(course, tmp_path):
    """Run the page's commands unchanged, with an existing environment and a pip that does not install."""
    shutil.copytree(course / "handout", tmp_path, dirs_exist_ok=True)
    path = commands(tmp_path / "commands", python3=f'exec ln -s {ENVIRONMENT} "$3"')
    set_up, check, trace = re.findall(r"^```bash\n(.*?)^```", (tmp_path / "README.md").read_text(), re.DOTALL | re.M)
    functions = check.splitlines()[0]
    script = f"set -e\n{set_up}\n{functions} && exit 9 || [ $? = 1 ]\ncommand -v sbnref"
    run = process("bash", "-c", script, env={**os.environ, **DRY_RUN, "PATH": path}, cwd=tmp_path)
    assert "Would install sbnref-" in run.stdout
    assert "forward_stats: not written" in run.stdout
    assert check.splitlines()[1:] == ["sbnref lab check mine.py", "sbnref lab check mine.cu --task batch_norm"]
    assert trace.startswith("sbnref lab trace mine.cu ")
