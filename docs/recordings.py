"""Records the ladder's seven rungs and the package's four kernels for the page *Kernels*."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from sbnref.laboratory import Recording, record
from sbnref.laboratory.page import PLAYER, as_json
from sbnref.laboratory.recording import example
from sbnref.laboratory.stages import ask_for_recordings, record_stages

DOCS = Path(__file__).resolve().parent
OUT = DOCS / "_generated"
STATIC = OUT / "static" / "kernels"

# Small enough to be looked at, and large enough for a tail, several blocks to a channel and two tiles of channels.
CHANNELS_FIRST, CHANNELS_LAST = (6, 2, 10, 10), (2, 40, 4, 4)
BLOCKS, THREADS = 8, 64
COLUMNS = ("read", "written", "sectors", "again", "accesses", "barriers", "conflicts", "steps")


def write(app: object) -> None:
    """Sphinx calls this when it starts."""
    STATIC.mkdir(parents=True, exist_ok=True)
    for file in PLAYER.iterdir():
        shutil.copy(file, STATIC)
    # In a process of its own: this one may have the kernels loaded that are compiled for speed.
    subprocess.run([sys.executable, __file__], check=True)
    app.config.html_static_path.append(str(STATIC.parent))


def rungs() -> dict[str, Recording]:
    """Every rung, and the third one also where it does not fit, on channels-last memory."""
    sys.path.insert(0, str(DOCS.parent / "tutorials"))
    from kernels import ladder

    def of(rung: str, title: str, channels_last: bool) -> Recording:
        x = example(CHANNELS_LAST if channels_last else CHANNELS_FIRST, channels_last=channels_last)
        call = ladder.Call(rung, x, blocks=BLOCKS, threads=THREADS)
        return record(call, title, call.rung.functions)

    found = {rung: of(rung, rung, ladder.RUNGS[rung].tile > 1) for rung in ladder.RUNGS}
    last = found.pop("7 channels-last")
    return found | {"3 on channels-last": of("3 split", "3 on channels-last", True), "7 channels-last": last}


def stages() -> dict[str, Recording]:
    """The package's own kernels, in either layout."""
    last = record_stages(example(CHANNELS_LAST, channels_last=True))
    return record_stages(example(CHANNELS_FIRST)) | {f"{name} on channels-last": r for name, r in last.items()}


def table(found: dict[str, Recording]) -> str:
    """The counters at the end of each."""
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
    """In the page's address."""
    return title.lower().replace(" ", "-")


def main() -> None:
    """Record everything."""
    ask_for_recordings()
    found = rungs() | stages()
    for title, recording in found.items():
        recording.title = title
        (STATIC / f"{slug(title)}.json").write_text(as_json(recording))
    (STATIC / "index.json").write_text(json.dumps({slug(title): title for title in found}))
    (OUT / "kernels.md").write_text(table(found))


if __name__ == "__main__":
    main()
