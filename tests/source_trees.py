"""The syntax trees of source files, each parsed and walked once in a process: a dozen structural tests read them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

__all__ = ["nodes_of", "tree_of"]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Parse a file. Nobody may change the tree."""
    return ast.parse(path.read_text())


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """List all nodes of the tree of a file, as ``ast.walk`` gives them."""
    return tuple(ast.walk(tree_of(path)))
