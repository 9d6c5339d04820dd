"""Every python block of the documentation runs: page by page, the blocks of a page one after another."""

import re
from pathlib import Path

import pytest
import torch

import sbnref

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = {
    page: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for page in sorted(DOCS.rglob("*.md"))
    if "_build" not in page.parts
}
NEEDS = {"mmengine.md": "mmcv", "export.md": "onnxruntime"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks], ids=lambda page: page.stem)
def test_page(page, world, monkeypatch, tmp_path):
    pytest.importorskip(NEEDS.get(page.name, "sbnref"))
    monkeypatch.setattr(sbnref, "launch", lambda fn, world_size, *args: world(world_size).run(fn, *args))
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for block in BLOCKS[page]:
        exec(compile(block, str(page), "exec"), namespace)
    torch._dynamo.reset()
