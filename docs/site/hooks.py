"""What MkDocs cannot do by itself: pages of texts outside of docs/, and the reference of the command line.

MkDocs calls ``on_files`` and ``on_page_markdown``; the rest can be used and tested without it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer
import typer.main

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

# Texts that live outside of docs/, because they are read there, and their pages.
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md", "examples/README.md": "examples.md"}
COMMANDS, MARK = "reference/commands.md", "<!-- commands -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of texts outside of docs/."""
    from mkdocs.structure.files import File

    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the commands where they belong, and lead links that leave docs/ to pages of the site."""
    if page.file.src_uri == COMMANDS:
        markdown = markdown.replace(MARK, commands())
    return unbroken(within_the_site(markdown, page.file.src_uri))


def unbroken(markdown: str) -> str:
    """Return a page's text with figures in tables that no line break takes apart: ±, the arrow and the interval.

    >>> unbroken("| -0.016 [-0.025, +0.012] | 0.03 ± 0.01 |").count("\N{NO-BREAK SPACE}")
    3
    """
    number = r"[+-]?\d[\d.,]*(?: %)?"
    together = re.compile(rf"{number} [±→] {number}|[\[(]{number}(?:,| to) {number}[\])]")
    lines = markdown.split("\n")
    return "\n".join(
        together.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), line) if line.startswith("|") else line
        for line in lines
    )


def within_the_site(markdown: str, page: str) -> str:
    """Return a page's text with links that hold inside the site; of files without a page there the name remains.

    >>> within_the_site("[why](../CONTRIBUTING.md#tests), [it](../examples/serve/Dockerfile)", "serve.md")
    '[why](contributing.md#tests), it'
    """
    home = {there: source for source, there in OUTSIDE.items()}.get(page, f"docs/{page}")

    def led(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if "://" in target or not target:
            return link[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
        if there in OUTSIDE:
            there = OUTSIDE[there]
        elif there.startswith("docs/"):
            there = there.removeprefix("docs/")
        elif (ROOT / there).exists():
            return text
        return f"[{text}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", led, markdown)


def commands() -> str:
    """Return all commands with their options as Markdown, made of the texts that ``--help`` shows."""
    from pickglass.cli.main import app

    group = typer.main.get_command(app)
    whole = typer.Context(group, info_name="pickglass")
    lines: list[str] = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        context = typer.Context(command, info_name=name, parent=whole)
        usage = command.get_usage(context).removeprefix("Usage: ")
        lines += [f"## {name}", "", command.help or "", "", "```text", " ".join(usage.split()), "```", ""]
        for kind, title in (("argument", "Argument"), ("option", "Option")):
            records = [p.get_help_record(context) for p in command.params if p.param_type_name == kind]
            if kind == "argument":  # its type says less than its meaning
                records = [record and (record[0].partition(" <")[0], record[1]) for record in records]
            rows = [f"| {_code(record[0])} | {_cell(record[1])} |" for record in records if record]
            if rows:
                lines += [f"| {title} | Meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _code(names: str) -> str:
    return f"<code>{names.replace('<', '&lt;').replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("<", "&lt;").replace("|", "&#124;")
    return re.sub(r"(?<![\w`])(--[a-z][\w-]*)", r"`\1`", text)
