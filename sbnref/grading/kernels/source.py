"""What a file of kernels may say: nothing by which an access could go past the simulation."""

from __future__ import annotations

import re

MOST_CHARACTERS = 200_000
HEADERS = ("laboratory.cuh", "cmath", "cstdint", "limits", "type_traits")
_DIRECTIVES = ("define", "undef", "if", "ifdef", "ifndef", "elif", "else", "endif", "pragma once", "pragma unroll")
_PAST = "is refused: an access by it would go past the simulation"
_WORDS = {
    r"(?:\.|->)\s*data\b": f"an array's pointer {_PAST}; use load, store, load_vector and store_vector",
    r"\breinterpret_cast\b": f"reinterpret_cast {_PAST}",
    r"\b(?:asm|__asm|__asm__)\b": f"assembly {_PAST}",
    r"\bcudasim\w*": "the simulation's own names are refused",
    r"\b(?:extern|__attribute__|_Pragma|__builtin_\w+)": "{word} is refused",
    r"\batomic(?!Inc)\w+|\batomicInc\b": "{word} is refused: of atomics there is take_ticket",
    r"##|%:|\?\?=": "{word} is refused: it hides what a line says",
}
_SILENT = re.compile(  # comments, and what stands in quotes
    r'R"|//(?:\\\n|[^\n])*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL
)


def refusal(text: str) -> tuple[int, str] | None:
    """Why a file of kernels is not graded.

    Args:
        text: of the file.

    Returns:
        The line, from 1 on, and the reason; None if there is none.
    """
    if len(text) > MOST_CHARACTERS:
        return 1, f"expected at most {MOST_CHARACTERS:,} characters, got {len(text):,}"
    found: list[tuple[int, str]] = []
    quoting = _without(text, quotes=False)  # the names of included files are in quotes
    if raw := re.search(r'\b(?:u8|[uUL])?R"', quoting):
        found.append((raw.start(), "raw strings are refused"))
    for directive in re.finditer(r"^[ \t]*#[ \t]*(\w*)[ \t]*(.*)$", quoting, re.MULTILINE):
        name, rest = directive.groups()
        if name == "include":
            if (header := rest.strip().strip('<>"')) not in HEADERS:
                what = f"includes {header!r}; a file that is graded includes {', '.join(HEADERS[:-1])} or {HEADERS[-1]}"
                found.append((directive.start(), what))
        elif name not in _DIRECTIVES and f"{name} {rest.split(' ')[0].strip()}" not in _DIRECTIVES:
            found.append((directive.start(), f"#{name} is refused"))
    plain = _without(text, quotes=True)
    for pattern, why in _WORDS.items():
        if word := re.search(pattern, plain):
            found.append((word.start(), why.replace("{word}", word.group())))
    if not found:
        return None
    at, why = min(found)
    return text.count("\n", 0, at) + 1, why


def _without(text: str, quotes: bool) -> str:
    """The text with blanks for comments and, if wanted, for what stands in quotes; every line is where it was."""

    def blank(match: re.Match[str]) -> str:
        silent = match.group()
        return silent if silent[0] in "\"'R" and not quotes else re.sub(r"[^\n]", " ", silent)

    return _SILENT.sub(blank, text)
