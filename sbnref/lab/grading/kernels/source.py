"""What a file of kernels may say: nothing by which an access could go past the simulation."""

from __future__ import annotations

import re

from ...source_text import without_comments

MOST_CHARACTERS = 200_000
HEADERS = ("laboratory.cuh", "cmath", "cstdint", "limits", "type_traits")
_DIRECTIVES = ("define", "undef", "if", "ifdef", "ifndef", "elif", "else", "endif", "pragma once", "pragma unroll")
_PAST = "is refused: an access by it would go past the simulation"
_WORDS = {
    r"(?:\.|->|::)\s*data\b": f"an array's pointer {_PAST}; use load, store, load_vector and store_vector",
    r"\breinterpret_cast\b": f"reinterpret_cast {_PAST}",
    r"\b(?:asm|__asm|__asm__)\b": f"assembly {_PAST}",
    r"\bcudasim\w*": "the simulation's own names are refused",
    r"\b(?:extern|__attribute__|_Pragma|__builtin_\w+)": "{word} is refused",
    r"\batomic(?!Inc)\w+|\batomicInc\b": "{word} is refused: of atomics there is take_ticket",
    r"\bauto\b[\s&]*\[": f"taking an array apart {_PAST}",
    r"##|%:|\?\?=": "{word} is refused: it hides what a line says",
}


def refusal(text: str) -> tuple[int, str] | None:
    """Why a file of kernels is not graded.

    Args:
        text: of the file.

    Returns:
        The line, from 1 on, and the reason; None if there is none.
    """
    if len(text) > MOST_CHARACTERS:
        return 1, f"expected at most {MOST_CHARACTERS:,} characters, got {len(text):,}"
    text = text.removeprefix("\ufeff")  # which some editors put first
    found: list[tuple[int, str]] = []
    if spliced := re.search(r"\\[^\S\n]*\n", text):
        found.append((spliced.start(), "a line that goes on after a backslash is refused: it hides what a line says"))
    quoting = without_comments(text, quotes=False)  # the names of included files are in quotes
    if raw := re.search(r'\b(?:u8|[uUL])?R"', quoting):
        found.append((raw.start(), "raw strings are refused"))
    for directive in re.finditer(r"^[^\S\n]*#[^\S\n]*(\w*)[^\S\n]*(.*)$", quoting, re.MULTILINE):
        name, rest = directive.groups()
        if name == "include":
            if (header := rest.strip().strip('<>"')) not in HEADERS:
                what = f"includes {header!r}; a file that is graded includes {', '.join(HEADERS[:-1])} or {HEADERS[-1]}"
                found.append((directive.start(), what))
        elif name not in _DIRECTIVES and f"{name} {rest.split(' ')[0].strip()}" not in _DIRECTIVES:
            found.append((directive.start(), f"#{name} is refused"))
    plain = without_comments(text)
    for pattern, why in _WORDS.items():
        if word := re.search(pattern, plain):
            found.append((word.start(), why.replace("{word}", word.group())))
    if not found:
        included = re.search(r'^[^\S\n]*#[^\S\n]*include[^\S\n]*"laboratory[.]cuh"', quoting, re.MULTILINE)
        return None if included else (1, 'expected it to #include "laboratory.cuh"')
    at, why = min(found)
    return text.count("\n", 0, at) + 1, why
