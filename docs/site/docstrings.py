"""Docstrings are written for people who read code; this makes Markdown of them for the reference.

Doctests become blocks of code, and references such as ``:class:`pickglass.Detector``` the names in them.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class Markdown(griffe.Extension):  # type: ignore[misc]
    """Rewrites the docstrings of all objects before they are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Return a docstring as Markdown.

    >>> print(markdown("Adds.\\n\\nSee :func:`~pickglass.load`.\\n\\n>>> 1 + 1\\n2"))
    Adds.
    <BLANKLINE>
    See `pickglass.load`.
    <BLANKLINE>
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    text = re.sub(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`", r"`\1`", text)
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        if fenced and not line.strip():
            lines.append("```")
            fenced = False
        elif line.startswith(">>>") and not fenced:
            lines += ["", "```pycon"]
            fenced = True
        lines.append("Examples:" if line == "Example:" else line)  # what griffe knows as a section
    return "\n".join([*lines, "```"] if fenced else lines)
