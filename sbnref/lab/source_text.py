"""The text of a file of kernels, as far as it says something."""

from __future__ import annotations

import re

_SILENT = re.compile(  # comments, and what stands in quotes
    r'R"|//(?:\\\n|[^\n])*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL
)


def without_comments(text: str, *, quotes: bool = True) -> str:
    """The text with blanks for comments and, if wanted, for what stands in quotes; every line is where it was."""

    def blank(match: re.Match[str]) -> str:
        silent = match.group()
        return silent if silent[0] in "\"'R" and not quotes else re.sub(r"[^\n]", " ", silent)

    return _SILENT.sub(blank, text)


def defines(text: str, function: str) -> bool:
    """Whether a text defines a function of a ``Problem``."""
    head = rf"\bvoid\s+{function}\s*\(\s*const\s+Problem\b[^();{{]*\)[^;{{]*{{"
    return re.search(head, without_comments(text)) is not None
