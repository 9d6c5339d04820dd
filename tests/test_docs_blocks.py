"""Every python block of the documentation runs, page by page; every test and case named on a page exists."""

import re

import pytest
import torch
from shared import ROOT, blocks

import sbnref
from sbnref.conformance import cases

pytestmark = pytest.mark.slow

PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
BLOCKS = {page: blocks(page, "python") for page in PAGES}
NEEDS = {"mmengine.md": "mmcv", "export.md": "onnxruntime", "trainers.md": "mmengine"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: page.stem)
def test_page(page, world, monkeypatch, tmp_path):
    pytest.importorskip(NEEDS.get(page.name, "sbnref"))
    monkeypatch.setattr(sbnref, "launch", lambda fn, world_size, *args: world(world_size).run(fn, *args))
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for block in BLOCKS[page]:
        exec(compile(block, str(page), "exec"), namespace)
    torch._dynamo.reset()


def exists(name: str, families: dict[str, list[str]]) -> bool:
    """Return whether a test ``tests/FILE.py::FUNCTION`` or a case exists; … matches any text. Other names pass."""
    if name.startswith("tests/"):
        path, _, function = name.partition("::")
        return (ROOT / path).exists() and (not function or f"\ndef {function}(" in (ROOT / path).read_text())
    wanted = ".*".join(map(re.escape, name.split("…")))
    return any(re.fullmatch(wanted, case) for case in families.get(name.split(": ")[0], [name]))


def test_what_pages_name_exists():
    families: dict[str, list[str]] = {}
    for case in cases():
        families.setdefault(case.name.split(": ")[0], []).append(case.name)
    texts = {page: page.read_text() for page in [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("tutorials/*.py")]}
    named = {(str(page), name) for page, text in texts.items() for name in re.findall(r"`([^`\n]+)`", text)}
    assert [(page, name) for page, name in sorted(named) if not exists(name, families)] == []
    assert len([name for _, name in named if "::" in name]) > 10  # the pattern still finds them
