"""What the docs name exists: modules, files, links, commands, options and benchmarks."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import typer.main

import pickglass as pg
from pickglass.cli.main import app

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pickglass"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TEXTS = {page.relative_to(ROOT): page.read_text() for page in PAGES}
OTHER_TOOLS = {"--extra-index-url", "--strict", "--help", "--build", "--head"}  # of pip, mypy, all commands, CMake, Ray


def named(pattern: str) -> list[tuple[Path, str]]:
    """(page, match) for each match of the pattern's group; at least one, for a pattern that finds nothing is wrong."""
    found = [(page, match) for page, text in TEXTS.items() for match in re.findall(pattern, text)]
    assert found, pattern
    return found


def commands_named() -> list[tuple[Path, str]]:
    """(page, command) for each ``pickglass COMMAND`` in backquotes, and at the start of a line of a code block."""
    found = named(r"`pickglass ([a-z]+)")
    for page, text in TEXTS.items():
        for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            found += [(page, command) for command in re.findall(r"^pickglass ([a-z]+)", block, flags=re.MULTILINE)]
    return found


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    names = dotted.split(".")
    for end in range(len(names), 0, -1):
        try:
            value = importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            continue
        for name in names[end:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


def test_modules_exist() -> None:
    wrong = [f"{page}: {name}" for page, name in named(r"`(pickglass(?:\.\w+)+)`?") if not resolves(name)]
    assert not wrong, "\n".join(wrong)


def test_names_in_python_exist() -> None:
    wrong = [f"{page}: pg.{name}" for page, name in named(r"\bpg\.(\w+)") if name not in pg.__all__]
    assert not wrong, "\n".join(wrong)


def test_files_and_links_exist() -> None:
    wrong = [f"{page}: {link}" for page, link in named(r"\]\(([^)#:]+)\)") if not (ROOT / page.parent / link).exists()]
    for page, name in named(r"`((?:[\w.]+/)+[\w.]*\.?\w*)`"):
        first = name.split("/")[0]
        base = next((folder for folder in (ROOT, SOURCE) if (folder / first).is_dir()), None)
        if first not in ("..", "build") and base is not None and not (base / name).exists():  # build: what is made
            wrong.append(f"{page}: {name}")
    assert not wrong, "\n".join(wrong)


def test_benchmarks_exist() -> None:
    suites = [(page, name) for page, name in named(r"python -m bench run (\w+)") if name != "SUITE"]
    suites += [(page, f"tools/{name}") for page, name in named(r"python -m bench\.tools\.(\w+)")]
    wrong = [f"{page}: {name}" for page, name in suites if not (ROOT / "bench" / f"{name}.py").is_file()]
    assert not wrong, "\n".join(wrong)


def test_commands_and_options_exist() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {option for command in commands.values() for param in command.params for option in param.opts}
    options |= {option for param in typer.main.get_command(app).params for option in param.opts} | OTHER_TOOLS
    for script in (ROOT / "bench").rglob("*.py"):
        options |= set(re.findall(r'"(--[\w-]+)"', script.read_text()))
    wrong = [f"{page}: pickglass {name}" for page, name in commands_named() if name not in commands]
    wrong += [f"{page}: {name}" for page, name in named(r"(?<![\w-])(--[a-z][\w-]+)") if name not in options]
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_each_command_is_given_its_own_options() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    wrong, seen = [], 0
    for page, text in TEXTS.items():
        lines = re.findall(r"^ *pickglass [a-z].*$", text.replace("\\\n", " "), flags=re.MULTILINE)
        lines += [span for span in re.findall(r"`(pickglass [a-z][^`]*)`", text) if "|" not in span]
        for line in lines:
            name, *given = re.sub(r"\s#.*|[\"']", "", line).split()[1:]
            if name in commands:
                seen += 1
                own = {option for param in commands[name].params for option in param.opts} | {"--help"}
                wrong += [f"{page}: pickglass {name} {o}" for o in given if re.match(r"--?[a-z]", o) and o not in own]
    assert seen > 100
    assert not wrong, "\n".join(wrong)


def test_lists_stand_apart_from_the_paragraph_before() -> None:
    """The site shows a list that follows a line of text without an empty line as part of that text; GitHub does not."""
    wrong = []
    for page, text in TEXTS.items():
        prose = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for paragraph in re.split(r"\n\s*\n", prose):
            lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
            items = [line for line in lines if re.match(r"([-*+]|\d+\.) ", line)]
            if items and lines[0] not in items and not lines[0].startswith(" "):
                wrong.append(f"{page}: {lines[0][:60]} / {items[0][:60]}")
    assert not wrong, "\n".join(wrong)
