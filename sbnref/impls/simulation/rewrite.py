"""Turn ordinary CUDA into C++ for the host's compiler: launches, shared memory and device variables.

The simulation's own ``cuda_runtime.h`` does the rest. Lines stay where they are, so the compiler reports the lines of
the original files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = (".cu", ".cuh", ".h", ".hpp", ".hxx", ".inl", ".inc", ".c", ".cpp")
_SILENT = re.compile(
    r'R"(?P<d>[^()\s\\]{0,16})\((?:.|\n)*?\)(?P=d)"|//(?:\\\n|[^\n])*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'',
    re.DOTALL,
)
_INCLUDE = re.compile(r'^([ \t]*#[ \t]*include[ \t]*)(?:"([^"\n]+)"|<([^>\n]+)>)', re.MULTILINE)
_OPEN, _CLOSE = "([{", ")]}"
_CONFIG = "cudasim::Config"

_BY_POINTERS = re.compile(r"\bcudaLaunch(Kernel|CooperativeKernel)\s*\(\s*(?:\(\s*(?:const\s+)?void\s*\*\s*\))?")
# Words of the type may stand before __shared__.
_SHARED = re.compile(
    r"\b(?:extern\s+)?(?:static\s+|volatile\s+)*((?:[A-Za-z_][\w:]*(?:<[^<>;(){}]*>)?[ \t]+)*)__shared__\b"
)

# Features without a counterpart in the simulation, with their names for the message.
UNSUPPORTED = (
    (
        r"\b(?:tex1D|tex2D|tex3D|tex1Dfetch|surf2Dread|surf2Dwrite|cudaTextureObject_t|cudaSurfaceObject_t)\b",
        "texture memory",
    ),
    (r"\b(?:wmma\s*::|nvcuda\b)|#[ \t]*include[ \t]*<mma\.h>", "tensor cores"),
    (r"#[ \t]*include[ \t]*<cuda/[^>]*>", "the library libcu++"),
    (r"\b(?:this_cluster|cluster_group)\b", "clusters of blocks"),
    (r"\bcudaGraph(?!ics)\w+", "CUDA graphs"),
    (r"\bcuda(?:Graphics|GL|EGL|D3D)\w+", "graphics"),
    (r"#[ \t]*include[ \t]*<(?:cub|thrust|cute|cutlass)/[^>]*>", "the libraries CUB, Thrust and CUTLASS"),
)


class NotSupported(ValueError):
    """The source uses a feature that the simulation does not have."""


def rewrite(file: Path, folder: Path, search: Iterable[Path] = ()) -> Path:
    """Write a file, and the files beside it that it includes, as C++ into a folder.

    Args:
        file: CUDA source.
        folder: the folder for the copies.
        search: more folders with included files.

    Returns:
        The copy of ``file``.

    Raises:
        NotSupported: a feature has no counterpart in the simulation; the message names its line.
    """
    done: dict[Path, Path] = {}
    _copy(file.resolve(), folder, [path.resolve() for path in search], done)
    return done[file.resolve()]


def included(file: Path, search: Iterable[Path] = ()) -> list[Path]:
    """Return a file and all files that it includes and that lie beside it or in ``search``."""
    found: dict[Path, None] = {}
    todo = [file.resolve()]
    while todo:
        path = todo.pop()
        if path not in found:
            found[path] = None
            text = blank(path.read_text("utf-8-sig", errors="replace"), quotes=False)
            todo += [p for m in _INCLUDE.finditer(text) if (p := _find(m[2] or m[3], path, search)) is not None]
    return list(found)


def _copy(file: Path, folder: Path, search: list[Path], done: dict[Path, Path]) -> None:
    name = f"{hashlib.sha256(str(file).encode()).hexdigest()[:8]}-{file.name}"
    done[file] = folder / (name + ".cpp" if file.suffix == ".cu" else name)
    text = file.read_text("utf-8-sig", errors="replace")
    silent = blank(text, quotes=False)
    for match in _INCLUDE.finditer(silent):
        path = _find(match[2] or match[3], file, search)
        if path is not None and path not in done:
            _copy(path, folder, search, done)

    def copied(match: re.Match[str]) -> str:
        path = _find(match[2] or match[3], file, search)
        return match[0] if path is None else f'{match[1]}"{done[path]}"'

    source = source_of(text, str(file))
    # A comment may hold the text of an include; a real one is still there when comments are blanked.
    starts = {match.start() for match in _INCLUDE.finditer(blank(source, quotes=False))}
    source = _INCLUDE.sub(lambda m: copied(m) if m.start() in starts else m[0], source)
    escaped = str(file).replace("\\", "\\\\").replace('"', '\\"')
    head = "#pragma once\n" if re.search(r"^\s*#\s*pragma\s+once", silent, re.MULTILINE) else ""
    done[file].write_text(f'{head}#include "cuda_runtime.h"\n#line 1 "{escaped}"\n{source}', encoding="utf-8")


def _find(name: str, includer: Path, search: Iterable[Path]) -> Path | None:
    for base in (includer.parent, *search):
        path = (base / name).resolve()
        if path.is_file() and path.suffix in SUFFIXES:
            return path
    return None


def blank(text: str, *, quotes: bool = True) -> str:
    """Replace comments and, if ``quotes``, quoted text by blanks; all other characters keep their places."""

    def silence(match: re.Match[str]) -> str:
        silent = match.group()
        return silent if silent[0] in "\"'R" and not quotes else re.sub(r"[^\n]", " ", silent)

    return _SILENT.sub(silence, text)


def source_of(text: str, file: str = "the file") -> str:
    """Return CUDA source as C++.

    Raises:
        NotSupported: see :func:`rewrite`.
    """
    code = blank(text)
    for pattern, what in UNSUPPORTED:
        if (match := re.search(pattern, code)) is not None:
            line = code.count("\n", 0, match.start()) + 1
            raise NotSupported(f"{file}, line {line}: the simulation does not support {what}")
    changes = [*_shared(text, code), *_launches(text, code), *_variables(text, code)]
    changes += [
        (m.start(), m.end(), "__attribute__((noinline))") for m in re.finditer(r"(?<!\()\b__noinline__\b", code)
    ]
    for match in re.finditer(r"\b(?:asm|__asm__)\s*(?:volatile\b|__volatile__\b)?\s*\(", code):
        end = _matching(code, match.end() - 1)
        what = "executes inline assembly, which the simulation does not support"
        changes.append((match.start(), end + 1, f'cudasim::fail("{what}")'))
    for match in _BY_POINTERS.finditer(code):
        line, kernel = code.count("\n", 0, match.start()) + 1, _split(code[match.end() :])[0]
        name = re.sub(r"\s+", " ", kernel.strip()).replace('"', "'")
        changes.append((match.start(), match.end(), f'cudasim::launch_{match[1]}("{name}", {line}, '))
    for begin, end, new in sorted(changes, reverse=True):
        lines = text.count("\n", begin, end) - new.count("\n")
        text = text[:begin] + new + "\n" * max(lines, 0) + text[end:]
    return text


def _shared(text: str, code: str) -> list[tuple[int, int, str]]:
    """Rewrite shared arrays as references to memory of the running block."""
    changes = []
    for match in _SHARED.finditer(code):
        end = _end_of_statement(code, match.end())
        macro = _macro(code, match.start())
        if macro is not None and (end is None or end > macro.end()):
            end = macro.end()  # the semicolon follows where the macro is used
        if end is None:
            continue
        declaration = match[1] + _without_attributes(code[match.end() : end].replace("\\\n", " "))
        volatile = "volatile " if "volatile" in match[0] else ""
        first, *others = _split(declaration)
        parsed = _declarator(first)
        if parsed is None:
            continue
        of, pointer, name, dims = parsed
        definition = ""
        if (structure := re.match(r"((?:struct|union|class)\s+)(\w*)\s*(?=\{)", of)) is not None:
            tag = structure[2] or f"cudasim_type_of_{name}"
            definition, of = f"{structure[1]}{tag} {of[structure.end() :]}; ", tag
        of = volatile + of
        declarators = [(of + pointer, name, dims)]
        for other in others:
            stars, other_name, other_dims = _declarator("x " + other)[1:]  # type: ignore[index]
            declarators.append((of + stars, other_name, other_dims))
        if match[0].startswith("extern"):
            get = f'static_cast<{of}*>(cudasim::dynamic_shared("{name}", sizeof({of})))'
            if _in_function(code, match.start()):
                new = f"{of}* const {name} = {get}"
            else:  # at file scope
                line = code.count("\n", 0, end) + 1
                new = f"\n#define {name} ({get})\n#line {line}\n"
        else:
            parameters = re.findall(r"\w+", macro["parameters"] or "") if macro else ()
            new = definition + "; ".join(
                f"{kind} (&{n}){d} = cudasim::shared<{kind}{d}>([] {{ static char id; return &id; }}(), "
                + (f"#{n})" if n in parameters else f'"{n}")')
                for kind, n, d in declarators
            )
        changes.append((match.start(), end, new))
    return changes


def _launches(text: str, code: str) -> list[tuple[int, int, str]]:
    """Rewrite launches as calls of a launcher that gets the kernel as a lambda."""
    changes = []
    for match in re.finditer("<<<", code):
        begin = _begin_of_name(code, match.start())
        close = _matching_chevrons(code, match.end())
        if begin is None or close is None:
            continue
        kernel = text[begin : match.start()].strip()
        config = text[match.end() : close]
        opening = code.index("(", close + 3)
        closing = _matching(code, opening)
        line = str(code.count("\n", 0, begin) + 1)
        name = '"' + re.sub(r"\s+", " ", kernel).replace('"', "'") + '"'
        if (macro := _macro(code, begin)) is not None:  # as where the macro is used
            line = "__LINE__"
            name = f"#{kernel}" if kernel in re.findall(r"\w+", macro["parameters"] or "") else name
        # A name may denote a template or overloaded functions; the host evaluates any other expression once.
        is_name = re.fullmatch(r"[\w:\s]+(?:<.*>)?", kernel, re.DOTALL) is not None
        capture, call = ("[=]", kernel) if is_name else (f"[cudasim_kernel = {kernel}]", "cudasim_kernel")
        head = (
            f"cudasim::launcher({name}, {line}, {_CONFIG}({config}), "
            f"{capture}(auto&... cudasim_given) {{ {call}(cudasim_given...); }})("
        )
        changes.append((begin, opening + 1, head))
        at = opening + 1
        for argument in _split(code[at:closing]):
            if argument.strip() in ("0", "NULL", "nullptr"):
                changes.append((at, at + len(argument), "cudasim::Null{}"))
            at += len(argument) + 1
    return changes


def _variables(text: str, code: str) -> list[tuple[int, int, str]]:
    """Register device variables after their declarations."""
    changes = []
    qualifier = r"\b(?:__device__|__constant__|__managed__)\b"
    for match in re.finditer(rf"{qualifier}(?:\s+(?:static\s+)?{qualifier})*", code):
        end = _end_of_statement(code, match.end(), "({;=")
        if end is None or code[end] in "({" or _in_function(code, match.start()) or _in_class(code, match.start()):
            continue
        before = code[code.rfind(";", 0, match.start()) + 1 : match.start()]
        if "extern" in before.split("}")[-1] or "template" in before.split("}")[-1]:
            continue
        semicolon = _end_of_statement(code, match.end())
        if semicolon is None:
            continue
        declaration = _without_attributes(code[match.end() : semicolon])
        first, *others = _split(declaration)
        names = [
            p[2] for part in (first, *("x " + o for o in others)) if (p := _declarator(part.split("=")[0])) is not None
        ]
        constant = "true" if "__constant__" in match[0] else "false"
        new = " ".join(
            f"static const cudasim::Variable cudasim_variable_{n}"
            f'(&{n}, sizeof({n}), cudasim::element_size({n}), "{n}", {constant});'
            for n in names
        )
        changes.append((semicolon + 1, semicolon + 1, " " + new))
    return list(dict.fromkeys(changes))


# ---- the parts of the grammar that this needs ----


def _macro(code: str, at: int) -> re.Match[str] | None:
    """Return the macro definition that contains a position, if any."""
    macros = re.finditer(
        r"^[ \t]*#[ \t]*define[ \t]+\w+(?:\((?P<parameters>[^)]*)\))?(?:\\\n|[^\n])*", code, re.MULTILINE
    )
    return next((macro for macro in macros if macro.start() <= at < macro.end()), None)


def _end_of_statement(code: str, at: int, stop: str = ";") -> int | None:
    """Return the position of the first character of ``stop`` outside of brackets and attributes."""
    depth = 0
    while at < len(code):
        if depth == 0:
            attribute = re.match(
                r"__align__\s*\(|alignas\s*\(|__attribute__\s*\(|__launch_bounds__\s*\(", code[at : at + 40]
            )
            if attribute is not None and not (code[at - 1].isalnum() or code[at - 1] == "_"):
                closing = _matching(code, at + attribute.end() - 1)
                at = closing + 1
                continue
            if code[at] in stop:
                return at
        if code[at] in _OPEN:
            depth += 1
        elif code[at] in _CLOSE:
            if depth == 0:
                return None
            depth -= 1
        at += 1
    return None


def _matching(code: str, opening: int) -> int:
    """Return the position where the bracket at ``opening`` closes."""
    depth = 0
    for at in range(opening, len(code)):
        if code[at] in _OPEN:
            depth += 1
        elif code[at] in _CLOSE:
            depth -= 1
            if depth == 0:
                return at
    return len(code)


def _matching_chevrons(code: str, at: int) -> int | None:
    depth = 0
    while at < len(code):
        if code[at] in _OPEN:
            depth += 1
        elif code[at] in _CLOSE:
            depth -= 1
        elif depth == 0 and code.startswith(">>>", at):
            return at
        at += 1
    return None


def _begin_of_name(code: str, at: int) -> int | None:
    """Return the beginning of the kernel expression that ends at ``at``.

    It may be ``a::kernel<T, 256>``, ``table[i].kernel``, or an expression in brackets.
    """
    begin = None
    while True:
        at = len(code[:at].rstrip())
        name = re.search(r"\b\w+$", code[:at])
        if name is not None and name[0] not in ("return", "else", "do"):
            begin = at = name.start()
        elif begin is None and code[at - 1 : at] == ">":
            at = _opening(code, at, angles=True)
            continue
        elif code[at - 1 : at] in (")", "]"):
            begin = at = _opening(code, at)
            continue
        joint = re.search(r"(?:::|\.|->)\s*$", code[:at])
        if joint is None or begin is None:
            return begin
        at = joint.start()
        if joint[0].startswith("::"):
            begin = at


def _opening(code: str, at: int, angles: bool = False) -> int:
    """Return the position where the bracket that closes before ``at`` opens."""
    depth = angle = 0
    while at > 0:
        at -= 1
        depth += (code[at] in _CLOSE) - (code[at] in _OPEN)
        if angles and depth == 0 and code[at - 1 : at + 1] != "->":
            angle += (code[at] == ">") - (code[at] == "<")
        if depth == angle == 0:
            break
    return at


def _without_attributes(declaration: str) -> str:
    declaration = re.sub(r"\b(?:__align__|alignas|__attribute__)\s*\((?:[^()]|\([^()]*\))*\)+", " ", declaration)
    return re.sub(r"\b(?:static|__device__|__constant__|__managed__|extern)\b", " ", declaration)


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets and of template arguments."""
    parts, depth, angles, begin = [], 0, 0, 0
    for at, character in enumerate(text):
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
        elif character == "<" and depth == 0:
            angles += 1
        elif character == ">" and depth == 0 and angles and text[at - 1] != "-":
            angles -= 1
        elif character == "," and depth == 0 and angles == 0:
            parts.append(text[begin:at])
            begin = at + 1
    parts.append(text[begin:])
    return parts


def _declarator(text: str) -> tuple[str, str, str, str] | None:
    """Return the type, the stars, the name and the dimensions of a declaration of one variable."""
    match = re.fullmatch(
        r"\s*(.+?)(\s*\**\s*)\b([\w#]+)\s*((?:\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]\s*)*)(?:\{.*\})?\s*",
        text,
        re.DOTALL,
    )
    return None if match is None else (match[1].strip(), match[2].strip(), match[3], match[4].strip())


def _opened(code: str, at: int) -> list[str]:
    """Return the text before each brace that is open at ``at``."""
    heads: list[str] = []
    for match in re.finditer(r"[{}]", code[:at]):
        if match[0] == "}":
            if heads:
                heads.pop()
        else:
            begin = max(code.rfind(c, 0, match.start()) for c in ";{}")
            heads.append(code[begin + 1 : match.start()].strip())
    return heads


def _in_function(code: str, at: int) -> bool:
    return any(
        head.endswith(")") or re.search(r"\)\s*(?:const|noexcept|->.*)?\s*$", head) for head in _opened(code, at)
    )


def _in_class(code: str, at: int) -> bool:
    return any(re.search(r"\b(?:struct|class|union)\b", head) and not head.endswith(")") for head in _opened(code, at))
