"""The workflow for GitHub Actions, in the form that GitHub Classroom reads points from.

Its actions' inputs are those of https://github.com/classroom-resources/autograding-command-grader and
https://github.com/classroom-resources/autograding-grading-reporter.
"""

from __future__ import annotations

import math

from .settings import FILES, Settings

FRUGAL_ENOUGH = 0.8  # a step gives all of its points or none
_HEAD = """\
# Grades what is pushed, on the cases that students see. Whoever can push can change this file too.
name: Autograding Tests
"on": [push, workflow_dispatch, repository_dispatch]
permissions:
  checks: write
  actions: read
  contents: read
jobs:
  run-autograding-tests:
    runs-on: ubuntu-latest
    if: github.actor != 'github-classroom[bot]'
    steps:
      - name: Checkout code
        uses: actions/checkout@v4
      - name: Set up Python
        uses: actions/setup-python@v5
        with:
          python-version: "3.12"
          cache: pip
      - name: Install sbnref
        run: python -m pip install -r requirements.txt
"""
_STEP = """\
      - name: {name}
        id: {id}
        uses: classroom-resources/autograding-command-grader@v1
        with:
          test-name: {name}
          command: {command}
          timeout: {minutes}
          max-score: {points}
"""
_REPORTER = """\
      - name: Autograding Reporter
        uses: classroom-resources/autograding-grading-reporter@v1
        env:
{results}        with:
          runners: {runners}
"""


def workflow(settings: Settings) -> str:
    """The text of ``.github/workflows/classroom.yml``."""
    names = [name for file in FILES for name in settings.graded(file)]
    runners = {name.replace("_", "-"): name for name in names}
    minutes = math.ceil((3 * settings.timeout + 120) / 60)  # compiling and starting included
    steps = [
        _STEP.format(
            name=name, id=runner, command=_command(name, settings), minutes=minutes, points=settings.points[name]
        )
        for runner, name in runners.items()
    ]
    results = "".join(
        f'          {runner.upper()}_RESULTS: "${{{{steps.{runner}.outputs.result}}}}"\n' for runner in runners
    )
    return _HEAD + "".join(steps) + _REPORTER.format(results=results, runners=",".join(runners))


def _command(name: str, settings: Settings) -> str:
    """What ends with 0 where the step's points are deserved."""
    if name != "frugal":
        return settings.command(name)
    return f"{settings.command('legal', 'right')} && {settings.command(name)} --at-least {FRUGAL_ENOUGH}"
