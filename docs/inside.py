"""Draws the rooms of the package for the page *Inside*, from its imports and from the contract that they keep."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import grimp
from importlinter.api import read_configuration

import sbnref
from sbnref.debugging.report import in_words
from sbnref.impls import STAGES

DOCS = Path(__file__).parent
ROOT = DOCS.parent
OUT = DOCS / "_generated"
CELL, NAMES, TOP = 13, 92, 4  # of the matrix, in units of its drawing


@dataclass
class Room:
    """A file or a folder at the top of the package.

    Attributes:
        name: without the package's; empty for the package itself, the names that ``import sbnref`` gives.
        files: its modules, with what stands in each.
        imports: the rooms that it imports from.
        excepted: those of them that the contract lists by name.
    """

    name: str
    files: dict[str, str]
    imports: set[str] = field(default_factory=set)
    excepted: set[str] = field(default_factory=set)

    @property
    def title(self) -> str:
        """As a folder's listing shows it."""
        return "__init__.py" if not self.name else f"{self.name}/" if len(self.files) > 1 else f"{self.name}.py"


def write(app: object) -> None:
    """Sphinx calls this when it starts."""
    OUT.mkdir(exist_ok=True)
    found = rooms()
    (OUT / "inside_way.html").write_text(way())
    (OUT / "inside_rooms.html").write_text(matrix(found) + listing(found))


def rooms() -> list[Room]:
    """Every room, in the contract's order, with what it imports."""
    graph = grimp.build_graph("sbnref", exclude_type_checking_imports=True, cache_dir=None)
    contract = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"][0]
    order = ["", *(name.strip() for layer in contract["layers"] for name in layer.split("|"))]
    allowed = {tuple(line.split(" -> ")) for line in contract["ignore_imports"]}
    found = {name: Room(name, {}) for name in order}
    for module in sorted(graph.modules):
        room = found[room_of(module)]
        room.files[module] = first_line(source(module))
        for other in graph.find_modules_directly_imported_by(module):
            if room_of(other) != room.name:
                (room.excepted if (module, other) in allowed else room.imports).add(room_of(other))
    return list(found.values())


def room_of(module: str) -> str:
    """'impls' for 'sbnref.impls.cuda'."""
    return [*module.split("."), ""][1]


def source(module: str) -> Path:
    """The file of a module."""
    path = Path(sbnref.__file__).parent.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def first_line(path: Path) -> str:
    """What a module's docstring says first, without its markup."""
    line = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
    return re.sub(r"(:\w+:)?`+~?([^`]*)`+", r"\2", line).rstrip(".")


def layer(found: list[Room]) -> set[str]:
    """The rooms that `SyncBatchNorm` stands on, and itself: the layer."""
    by_name = {room.name: room for room in found}
    reached, todo = set(), ["module"]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += by_name[name].imports
    return reached


def matrix(found: list[Room]) -> str:
    """A square for each import of one room from another: all to the right of the diagonal, but the exceptions."""
    inside, size = layer(found), len(found)
    parts = [
        f'<svg class="inside" role="img" aria-label="Which room imports which; the list below says the same in words" '
        f'viewBox="0 0 {NAMES + size * CELL + 4} {TOP + size * CELL + 4}">'
    ]
    for row, room in enumerate(found):
        y = TOP + row * CELL
        kind = "layer" if room.name in inside else "tool"
        parts.append(f'<text class="{kind}" x="{NAMES - 6}" y="{y + 10}" text-anchor="end">{room.title}</text>')
        for column, other in enumerate(found):
            x = NAMES + column * CELL
            said = f"{room.title} imports from {other.title}"
            mark = "itself" if row == column else "imports" if other.name in room.imports else ""
            if other.name in room.excepted and not mark:
                mark, said = "excepted", f"{said}, an exception that the contract lists"
            parts.append(
                f'<rect class="{mark or "none"}" x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}"'
                + (f"><title>{said}</title></rect>" if mark not in ("", "itself") else "/>")
            )
    return "\n".join([*parts, "</svg>\n"])


def listing(found: list[Room]) -> str:
    """Each room with what is in it and whom it imports from."""
    inside, titles = layer(found), {room.name: room.title for room in found}
    order = [room.name for room in found]
    parts = ['<dl class="inside">']
    for room in found:
        kind = "layer" if room.name in inside else "tool"
        head = f"sbnref.{room.name}" if room.name else "sbnref"
        said = [f"<p>{escape(room.files[head])}.</p>"]
        if len(room.files) > 1:
            names = {module: module.removeprefix(f"{head}.").replace(".", "/") for module in room.files}
            items = (f"<li><code>{names[m]}</code> {escape(line)}</li>" for m, line in room.files.items() if m != head)
            said.append(f"<ul>{''.join(items)}</ul>")
        others = [f"<code>{titles[name]}</code>" for name in sorted(room.imports, key=order.index)]
        others += [
            f"<code>{titles[name]}</code> (excepted)" for name in sorted(room.excepted - room.imports, key=order.index)
        ]
        said.append(f'<p class="imports">imports from {", ".join(others) or "no other room"}</p>')
        parts.append(f'<dt class="{kind}"><code>{room.title}</code></dt><dd>{"".join(said)}</dd>')
    return "\n".join([*parts, "</dl>\n"])


def way() -> str:
    """From the input down to y, and from dy up to the input's gradient, one file after the other."""
    width, down, up = 350, 82, 268  # of the drawing; where the two passes run
    parts: list[str] = []

    def box(y: int, name: str, text: str, kind: str, x: int = 4, w: int = width - 8) -> None:
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{w}" height="36" rx="5"/>')
        for line, (style, words) in enumerate((("name", name), ("said", text))):
            parts.append(
                f'<text class="{style}" x="{x + w / 2}" y="{y + 15 + 14 * line}" text-anchor="middle">{words}</text>'
            )

    def arrows(y: int, forward: str, backward: str) -> None:
        for x, start, end, text in ((down, y, y + 21, forward), (up, y + 21, y, backward)):
            parts.append(f'<line x1="{x}" y1="{start}" x2="{x}" y2="{end}" marker-end="url(#inside-arrow)"/>')
            parts.append(f'<text class="said" x="{x + 7}" y="{y + 15}">{text}</text>')

    def stages(y: int, forward: str, backward: str) -> None:
        for name, x in ((forward, 4), (backward, up - 78)):
            folders = sorted(path.parent.relative_to(ROOT) for path in (ROOT / "csrc").rglob(f"{name}.c*"))
            box(y, name, ", ".join(f"{folder}/" for folder in folders), "stage", x, 156)

    steps = (
        ("input (N, C, *)", "its gradient", ("module.py", "SyncBatchNorm: parameters, buffers, choices")),
        ("input", "dx", ("functional.py", "refuses what is wrong, chooses who computes")),
        ("input", "dx", ("autograd.py", "the order of the two passes")),
        ("x", "dx", ("forward_stats", "backward_apply")),
        ("payload (3C + 2,)", "total (2C,)", ("collectives.py", "one all-reduce each way, with all other ranks")),
        ("total (3C + 2,)", "payload (2C,)", ("forward_apply", "backward_stats")),
        ("y", "dy", None),
    )
    y = 2
    for forward, backward, files in steps:
        arrows(y, forward, backward)
        if files is not None and files[0] in STAGES:
            stages(y + 23, *files)
        elif files is not None:
            box(y + 23, *files, kind="network" if files[0] == "collectives.py" else "file")
        y += 61 if files is not None else 23
    head = (
        f'<svg class="inside" role="img" aria-label="The way of the data, file by file" viewBox="0 0 {width} {y + 2}">'
        '<defs><marker id="inside-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>'
    )
    files = in_words([f"<code>impls/{name}</code>" for name in implementations()])
    caption = f"<p>Each of {files} has the four stages, under these names.</p>\n"
    return "\n".join([head, *parts, "</svg>", caption])


def implementations() -> list[str]:
    """The files of ``sbnref/impls`` that define the four stages."""
    found = []
    for path in sorted((ROOT / "sbnref" / "impls").glob("*.py")):
        defined = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if defined.issuperset(STAGES):
            found.append(path.name)
    return found
