"""Check the text of a graded file of kernels for code that could hide accesses from the simulation."""

from __future__ import annotations

import re

from ....impls.simulation.rewrite import blank

MOST_CHARACTERS = 200_000
HEADERS = (
    *("cuda_runtime.h", "laboratory.cuh", "cuda_fp16.h", "cuda_bf16.h", "cooperative_groups.h"),
    *("cooperative_groups/reduce.h", "cassert", "cfloat", "climits", "cmath", "cstdint", "cstdio", "limits"),
    *("assert.h", "float.h", "limits.h", "math.h", "stdint.h", "stdio.h", "type_traits"),
)
_DIRECTIVES = ("define", "undef", "if", "ifdef", "ifndef", "elif", "else", "endif", "pragma once", "pragma unroll")
_NOT = "is not allowed in a graded file"
_OF_STD = r"is_|numeric_limits|conditional|enable_if|min|max|abs|sqrt|pow|exp|log|u?int|size_t"
_COPIES = r"w?mem(?:cpy|move|set|ccpy|pcpy)|bcopy|bzero|str\w*cpy|cudaMemcpy\w*|cudaMallocManaged|cudaHost\w+"
_WORDS = {
    r"\b(?:asm|__asm|__asm__)\b": f"inline assembly {_NOT}: the simulation cannot watch it",
    r"\bcudasim\w*|\b__tsan\w*": f"the simulation's own names: {{word}} {_NOT}",
    r"\b(?:extern(?!\s+__shared__)|__attribute__|_Pragma|__builtin_\w+)": f"{{word}} {_NOT}",
    rf"\bstd\s*::\s*(?!(?:{_OF_STD})\w*)\w+": f"{{word}} {_NOT}",
    rf"\b(?:{_COPIES})\b": f"{{word}} {_NOT}: copy in a kernel",
    r"##|%:|\?\?=": f"{{word}} {_NOT}: it hides what a line does",
}


# Lines that continue after a backslash. The compiler joins them first of all.
_BACKSLASH = re.compile(r"\\[^\S\n]*\n")
_CONTINUED = re.compile(rf"^(?:[^\n]*{_BACKSLASH.pattern})+[^\n]*", re.MULTILINE)


def _joined(lines: re.Match[str]) -> str:
    """Return the lines as one, followed by empty ones, so that the lines below keep their numbers."""
    line, breaks = _BACKSLASH.subn("", lines[0])
    return line + "\n" * breaks


def why_rejected(text: str) -> tuple[int, str] | None:
    """Return the line, from 1 on, and the reason why a file with that text is not graded, or None."""
    if len(text) > MOST_CHARACTERS:
        return 1, f"expected at most {MOST_CHARACTERS:,} characters, got {len(text):,}"
    text = _CONTINUED.sub(_joined, text.removeprefix("\ufeff"))  # the byte order mark of some editors
    found: list[tuple[int, str]] = []
    quoting = blank(text, quotes=False)  # the names of included files are in quotes
    if raw := re.search(r'\b(?:u8|[uUL])?R"', quoting):
        found.append((raw.start(), "raw strings are not allowed in a graded file"))
    for directive in re.finditer(r"^[^\S\n]*#[^\S\n]*(\w*)[^\S\n]*(.*)$", quoting, re.MULTILINE):
        name, rest = directive.groups()
        if name == "include":
            if (name_of := rest.strip().strip('<>"')) not in HEADERS:
                allowed = f"{', '.join(HEADERS[:-1])} or {HEADERS[-1]}"
                found.append((directive.start(), f"includes {name_of!r}; a graded file may include {allowed}"))
        elif name not in _DIRECTIVES and f"{name} {rest.split(' ')[0].strip()}" not in _DIRECTIVES:
            found.append((directive.start(), f"#{name} {_NOT}"))
    plain = blank(text)
    for pattern, why in _WORDS.items():
        if word := re.search(pattern, plain):
            found.append((word.start(), why.replace("{word}", word.group())))
    if not found:
        return None
    at, why = min(found)
    return text.count("\n", 0, at) + 1, why
