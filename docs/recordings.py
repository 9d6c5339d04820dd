"""Record the kernels of the ladder, of the package and of tutorial 12, and put the player on pages that ask for it.

``.. player::`` lets readers choose among all recordings. ``.. player:: 3-split+4-wide`` plays the named recordings when
a reader opens it; its content, one paragraph of plain text, is the summary.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from sbnref.lab import Recording, record
from sbnref.lab.own_stages import record_stages
from sbnref.lab.page import PLAYER, as_json
from sbnref.lab.recording import example
from sbnref.lab.task_call import record_task
from sbnref.lab.tasks import TASKS

DOCS = Path(__file__).resolve().parent
TUTORIALS = DOCS.parent / "tutorials"
OUT = DOCS / "_generated"
STATIC = OUT / "static" / "kernels"

# Small enough to read, large enough for a tail, several blocks per channel and two tiles of channels.
CHANNELS_FIRST, CHANNELS_LAST = (6, 2, 10, 10), (2, 40, 4, 4)
OWN = (6, 2, 100)  # work for two blocks of 256 threads, and a tail
HALF = (6, 2, 10, 12)  # the spatial size is a multiple of eight
BLOCKS, THREADS = 8, 64
NEEDS = (
    "<p>The player needs JavaScript, and a page that comes from a server: <code>make docs-serve</code> runs one.</p>"
)
COLUMNS = ("read", "written", "sectors", "again", "accesses", "barriers", "conflicts", "steps")


def write(app: object) -> None:
    """Write the recordings and the player; Sphinx calls this when it starts."""
    STATIC.mkdir(parents=True, exist_ok=True)
    for file in PLAYER.iterdir():
        shutil.copy(file, STATIC)
    # In a new process: this one may have loaded the kernels compiled for speed.
    subprocess.run([sys.executable, __file__], check=True)
    app.config.html_static_path.append(str(STATIC.parent))


class Player(SphinxDirective):
    """Insert a player."""

    optional_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        up = "../" * self.env.docname.count("/")
        if not self.arguments:
            html = f'<div class="player" data-recordings="{up}_static/kernels">{NEEDS}</div>'
            return [nodes.raw("", html, format="html")]
        (shown,) = self.arguments
        known = json.loads((STATIC / "index.json").read_text())
        if unknown := [name for name in shown.split("+") if name not in known]:
            raise self.error(f"expected recordings among {', '.join(known)}; got {', '.join(unknown)}")
        html = f"""<details class="watch"><summary>{escape(" ".join(self.content))}</summary>
<div class="player" data-recordings="{up}_static/kernels" data-show="{shown}">{NEEDS}</div>
<p>On the page <a href="{up}kernels.html#{shown}">Kernels</a> you can choose any two recordings.</p></details>"""
        return [nodes.raw("", html, format="html")]


def add_player(app: object, page: str, template: str, context: dict, doctree: object) -> None:
    """Add the player's files to a page with a player; Sphinx calls this for every page."""
    if 'class="player"' in context.get("body", ""):
        app.add_css_file("kernels/theme.css")
        app.add_css_file("kernels/player.css")
        app.add_js_file("kernels/player.js", type="module")


def rungs() -> dict[str, Recording]:
    """Record every rung, and the third one also on channels-last memory, which does not suit it."""
    sys.path.insert(0, str(TUTORIALS))
    from kernels import ladder

    def of(rung: str, title: str, channels_last: bool) -> Recording:
        shape = CHANNELS_LAST if channels_last else HALF if ladder.RUNGS[rung].width == 8 else CHANNELS_FIRST
        x = example(shape, channels_last=channels_last).to(ladder.RUNGS[rung].dtype)
        call = ladder.Call(rung, x, blocks=BLOCKS, threads=THREADS)
        return record(call, title, call.rung.functions)

    found = {}
    for rung in ladder.RUNGS:
        if rung == "7 channels-last":
            found["3 on channels-last"] = of("3 split", "3 on channels-last", True)
        found[rung] = of(rung, rung, ladder.RUNGS[rung].tile > 1)
    return found


def own() -> dict[str, Recording]:
    """Record the steps of tutorial 12."""
    files = sorted((TUTORIALS / "kernels" / "own").glob("*.cu"))
    return {f"own {f.stem.replace('_', ' ')}": record_task(f, TASKS["batch_norm"], OWN) for f in files}


def stages() -> dict[str, Recording]:
    """Record the package's own kernels, in either layout."""
    last = record_stages(example(CHANNELS_LAST, channels_last=True))
    return record_stages(example(CHANNELS_FIRST)) | {f"{name} on channels-last": r for name, r in last.items()}


def table(found: dict[str, Recording]) -> str:
    """Return a Markdown table of each recording's final counters."""
    lines = [
        "| | launches | bytes read | written | sectors | of them again | accesses | barriers | conflicts | steps |",
        "| --- |" + " ---: |" * 9,
    ]
    for title, recording in found.items():
        counts = recording.counts()
        cells = [len(recording.launches), *(counts[column] for column in COLUMNS)]
        lines.append(f'| <a href="#{slug(title)}">{title}</a> | ' + " | ".join(f"{cell:,}" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def slug(title: str) -> str:
    """Return the title's form in an address."""
    return title.lower().replace(" ", "-")


def main() -> None:
    """Record everything."""
    os.environ["SBNREF_CUDASIM"] = "1"  # before the kernels are loaded
    found = rungs() | own() | stages()
    for title, recording in found.items():
        recording.title = title
        (STATIC / f"{slug(title)}.json").write_text(as_json(recording))
    (STATIC / "index.json").write_text(json.dumps({slug(title): title for title in found}))
    (OUT / "kernels.md").write_text(table(found))


if __name__ == "__main__":
    main()
