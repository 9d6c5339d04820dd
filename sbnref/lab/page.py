"""The player, with recordings, as one file that needs nothing else."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

from .recording import Recording

PLAYER = Path(__file__).resolve().parent / "player"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 76em; margin: 0 auto; padding: 0.8rem; font-family: system-ui, sans-serif; line-height: 1.5; }}
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>Every step of every warp, recorded in a simulation of CUDA. The arrow keys step, Home and End jump, p plays.</p>
<div class="player"><p>The player needs JavaScript.</p></div>
</main>
{recordings}
<script type="module">
{script}</script>
</body>
</html>
"""


def page(title: str, *recordings: Recording) -> str:
    """Return an HTML file that plays one recording, or two on the same clock."""
    data = (f'<script type="application/json" class="recording">{as_json(r)}</script>' for r in recordings)
    return _PAGE.format(
        title=escape(title),
        style="\n".join((PLAYER / name).read_text(encoding="utf-8") for name in ("theme.css", "player.css")),
        recordings="\n".join(data),
        script="\n".join(_without_modules(PLAYER / name) for name in ("machine.js", "player.js")),
    )


def as_json(recording: Recording) -> str:
    """Return a recording in the player's format, for a page or a separate file."""
    return json.dumps(recording.to_dict(), separators=(",", ":")).replace("</", r"<\/")


def _without_modules(path: Path) -> str:
    """Return the source of a module without imports and exports, to put after the modules that it imports."""
    return re.sub(r"^import .*\n|^export ", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
