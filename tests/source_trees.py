"""The syntax trees of source files, each parsed once in a process: a dozen structural tests walk them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

__all__ = ["tree_of"]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Parse a file. Nobody may change the tree."""
    return ast.parse(path.read_text())
