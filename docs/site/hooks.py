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
COMMANDS = "reference/commands.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of texts outside of docs/, and that of the command line."""
    from mkdocs.structure.files import File

    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, COMMANDS, content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to the pages of their files; of files without a page the name remains."""
    return within_the_site(markdown, page.file.src_uri)


def within_the_site(markdown: str, page: str) -> str:
    """Return a page's text with links that hold inside the site.

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


def command_line() -> str:
    """Return the page of all commands, made of the texts that ``--help`` shows."""
    from pickglass.cli.main import app

    group = typer.main.get_command(app)
    whole = typer.Context(group, info_name="pickglass")
    lines = [
        "# The command line",
        "",
        f"{group.help}",
        "",
        "Made from what `pickglass COMMAND --help` shows. With `--json` a command prints one JSON object on stdout"
        " (`watch`: one a line) and nothing else goes there. The exit code is 0 (done), 1 (some images failed, or a"
        " promise cannot be made) or 2 (bad input).",
        "",
    ]
    for name in group.list_commands(whole):
        command = group.get_command(whole, name)
        context = typer.Context(command, info_name=name, parent=whole)
        usage = command.get_usage(context).removeprefix("Usage: ")
        lines += [f"## {name}", "", command.help or "", "", "```text", " ".join(usage.split()), "```", ""]
        for kind, title in (("argument", "Argument"), ("option", "Option")):
            records = [p.get_help_record(context) for p in command.params if p.param_type_name == kind]
            rows = [f"| {_code(record[0])} | {_cell(record[1])} |" for record in records if record]
            if rows:
                lines += [f"| {title} | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _code(names: str) -> str:
    return f"`{names}`".replace("|", "\\|")


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"(?<![\w`])(--[a-z][\w-]*)", r"`\1`", text)
