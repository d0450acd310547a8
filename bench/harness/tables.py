"""Markdown tables, and the places in the documentation where they stand between two markers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.harness.records import ROOT

_MARKED = re.compile(r"(<!-- table: (?P<name>[\w:-]+) -->\n)(?P<body>.*?)(<!-- /table -->)", re.DOTALL)
_BEGIN, _END = re.compile(r"^<!-- table: .*-->$", re.MULTILINE), "<!-- /table -->"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a table; None is an empty cell."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join(lines + [f"| {' | '.join('' if c is None else str(c) for c in row)} |" for row in rows])


def interval(value: float, low: float, high: float, digits: int = 3, sign: str = "") -> str:
    """Write a figure with the ends of its interval; ``sign="+"`` for differences."""
    form = f"{sign}.{digits}f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def differences(triples: Iterable[Sequence[float]]) -> str:
    """Write differences with their intervals, in bold where the interval leaves out 0."""
    texts = [(interval(value, low, high, sign="+"), low > 0 or high < 0) for value, low, high in triples]
    return "; ".join(f"**{text}**" if clear else text for text, clear in texts)


def pages() -> list[Path]:
    """List the pages in which a table may stand."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def renewed(text: str, table: Callable[[str, str], str]) -> str:
    """Return the text of a page with each marked table as the results have it now.

    Args:
        text: Markdown, with ``<!-- table: SUITE -->`` or ``<!-- table: SUITE:TITLE -->`` before a table and
            ``<!-- /table -->`` behind it.
        table: suite, title -> Markdown.
    """
    if len(_BEGIN.findall(text)) != len(_MARKED.findall(text)) or text.count(_END) != len(_MARKED.findall(text)):
        raise ValueError("a <!-- table: NAME --> without its <!-- /table -->, or the other way round")

    def one(found: re.Match[str]) -> str:
        suite, _, title = found["name"].partition(":")
        return f"{found[1]}{table(suite, title)}\n{found[4]}"

    return _MARKED.sub(one, text)
