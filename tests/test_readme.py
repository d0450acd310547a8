"""Every block of the README runs, and so does every example in a docstring."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pickglass
from pickglass.app.advise.candidates import Options, candidates, input_sizes
from pickglass.app.advise.painted import paint_set
from pickglass.cli.main import app, main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
KNOWN = {command.callback.__name__ for command in app.registered_commands if command.callback}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def folder(small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(small_dataset, tmp_path / "datasets" / "bottle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def few_candidates(*given: Any, **named: Any) -> Options:
    options = candidates(*given, **named)
    return replace(options, kept=options.kept[:2])


@pytest.mark.slow
def test_shell_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line]
    assert len(lines) == 5
    # one network, one size and a few layers: many times as many candidates say no more of the README
    monkeypatch.setattr("pickglass.app.advise.advise.LITES", ("efficientnet_lite0",))
    monkeypatch.setattr("pickglass.app.advise.advise._SHORT_LIST", 1)
    monkeypatch.setattr("pickglass.app.advise.advise.candidates", few_candidates)
    monkeypatch.setattr("pickglass.app.advise.advise.input_sizes", partial(input_sizes, most=1))
    monkeypatch.setattr("pickglass.app.advise.advise.paint_set", partial(paint_set, painted=7))
    for line in lines:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, f"{line}: {capsys.readouterr().err}"
    assert {"bottle.safetensors", "advice.html", "report.html", "found"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_python_blocks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("1.0\n")


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 180


def test_every_command_answers_a_question_of_the_readme() -> None:
    table = README.split("## Which command for which question")[1].split("\n## ")[0]
    answers = [row.rsplit("|", 2)[1] for row in re.findall(r"^\| .*\|$", table, flags=re.MULTILINE)[1:]]
    assert sorted(name for answer in answers for name in re.findall(r"`(\w+)`", answer)) == sorted(KNOWN)


def test_the_commands_of_the_docs_are_the_commands() -> None:
    table = (ROOT / "docs" / "commands.md").read_text().split("## All of them")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)", table, flags=re.MULTILINE)) == KNOWN


def test_what_the_readme_installs_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"pip install \"?(\w+)(?:\[(\w+)\])?", README)
    assert (project["name"], "train") in named
    for package, extra in named:
        assert package == project["name"]
        assert not extra or extra in project["optional-dependencies"]


MODULES = [name for _, name, _ in pkgutil.walk_packages(pickglass.__path__, "pickglass.") if name[-8:] != "__main__"]


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.long
def test_docstring_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctest prints what it expected and got; the names are those of the modules whose examples do not hold."""
    # where the engine is left to pickglass, what a method learned runs in torch: to compile it takes a second a method
    monkeypatch.setattr("pickglass.features.engine._FEW_HEADS", 0)
    failed = {}
    for name in MODULES:
        outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
        if outcome.failed:
            failed[name] = outcome.failed
    assert not failed
