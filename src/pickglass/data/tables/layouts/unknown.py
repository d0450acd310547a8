"""A folder that is in no known layout is shown as it is, beside the layouts that are most like it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from pickglass.data.tables.layouts.tree import Folder, key

__all__ = ["draw_tree", "nearest"]

_DEPTH, _LINES, _SUFFIXES, _WORD = 3, 14, 3, re.compile(r"[A-Za-z_]{2,}")


def draw_tree(root: Folder) -> str:
    """Draw the folders of a tree, a few levels deep, with the number of files of each suffix."""
    lines = [f"{os.path.basename(root.path) or root.path}/{_files(root)}"]
    _draw(root, "  ", lines)
    if len(lines) > _LINES:
        lines = [*lines[:_LINES], f"  and {len(lines) - _LINES} more folders"]
    return "\n".join(lines)


def _draw(folder: Folder, indent: str, lines: list[str]) -> None:
    for name, below in folder.folders.items():
        deep = len(indent) // 2 < _DEPTH
        lines.append(f"{indent}{name}/{_files(below)}{'' if deep or not below.folders else '  ...'}")
        if deep:
            _draw(below, indent + "  ", lines)


def _files(folder: Folder) -> str:
    suffixes = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in folder.files)
    shown = [f"{n} {suffix}" for suffix, n in suffixes.most_common(_SUFFIXES)]
    rest = sum(suffixes.values()) - sum(n for _, n in suffixes.most_common(_SUFFIXES))
    return "  " + ", ".join([*shown, *([f"{rest} others"] if rest else [])]) if shown else ""


def nearest(root: Folder, trees: Mapping[str, str], n: int = 2) -> list[str]:
    """Return the names of the layouts whose trees share most words with a folder's names, the likest first."""
    names = {key(name) for _, folder in root.walk() for name in folder.folders}
    suffixes = {os.path.splitext(key(name))[1].lstrip(".") for _, folder in root.walk() for name in folder.files}
    found = _words(names) | suffixes

    def likeness(layout: str) -> float:
        words = _words([trees[layout]])
        return len(words & found) / len(words | found) if words else 0.0

    return sorted(trees, key=lambda layout: (-likeness(layout), layout != "mvtec", layout))[:n]


def _words(texts: Iterable[str]) -> set[str]:
    return {key(word) for text in texts for word in _WORD.findall(text)}
