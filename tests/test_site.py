"""The documentation site: its pages, what is generated, and the tutorials, which run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

import pickglass as pg
import pickglass.errors
from pickglass.cli.main import app, main
from pickglass.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIALS = (
    "first-detector",
    "tiny-defects",
    "missing-parts",
    "lab-to-line",
    "threshold",
)  # reading-a-report has no code


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The module that MkDocs calls, without MkDocs."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the blocks that run: ``python`` and ``sh``; a block without a language is not run."""
    return re.findall(r"^```(python|sh)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_navigation_names_every_page(hooks: ModuleType) -> None:
    named = re.findall(r"^ +- (?:.*: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(named) == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | set(
        hooks.OUTSIDE.values()
    )
    assert all((ROOT / source).is_file() for source in hooks.OUTSIDE)


def test_links_that_leave_the_folder_hold_on_the_site(hooks: ModuleType) -> None:
    inside = hooks.within_the_site
    assert inside("[a](../../CONTRIBUTING.md#tests)", "how-to/own-method.md") == "[a](../contributing.md#tests)"
    assert inside("[a](../examples/serve/Dockerfile)", "serve.md") == "a"
    assert inside("[a](docs/update.md), [b](requirements/oldest.txt)", "contributing.md") == "[a](update.md), b"
    for text in ("[a](export.md#b)", "[a](#b)", "[a](https://pypi.org/x)", "![a](tiles.jpg)"):
        assert inside(text, "runtime.md") == text


def test_figures_in_tables_hold_together(hooks: ModuleType) -> None:
    rows = "| a b | -0.166 (-0.214 to -0.127) | 0.85 [0.77, 0.92] | 1 ± 2 | 3 → 4 | 5 % (2 % to 9 %) | `f(1, 2)` |"
    shown = hooks.unbroken(f"{rows}\n\n1 ± 2")
    assert shown.replace("\N{NO-BREAK SPACE}", " ") == f"{rows}\n\n1 ± 2"
    assert shown.split("\n")[-1] == "1 ± 2"  # a text may break where it likes
    for kept in ("(-0.214 to -0.127)", "[0.77, 0.92]", "1 ± 2", "3 → 4", "(2 % to 9 %)"):
        assert kept.replace(" ", "\N{NO-BREAK SPACE}") in shown


def test_the_reference_has_all_commands_and_options(hooks: ModuleType) -> None:
    assert hooks.MARK in (DOCS / hooks.COMMANDS).read_text()
    page = hooks.commands()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
        assert section, name
        missing = [
            o for p in command.params if p.name != "help" for o in p.opts if o.startswith("--") and o not in section[1]
        ]
        assert not missing, (name, missing)
    cells = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.count("|") == 3 for line in cells)


def test_the_reference_has_all_public_names() -> None:
    named = re.findall(
        r"^::: pickglass\.(\w+)$", "".join(p.read_text() for p in (DOCS / "reference").glob("*.md")), re.M
    )
    own = {"PickglassError"}  # on the page of errors
    assert set(named) - {"metrics"} == set(pg.__all__) - own
    assert {cls.__name__ for cls in METHODS.values()} <= set(named)


def test_the_page_of_errors_has_all_errors() -> None:
    kinds = {
        name
        for name in pickglass.errors.__all__
        if isinstance(kind := getattr(pickglass.errors, name), type) and issubclass(kind, pg.PickglassError)
    }
    headings = re.findall(r"^## (.+)$", (DOCS / "reference" / "errors.md").read_text(), flags=re.MULTILINE)
    assert set(headings) == kinds - {"PickglassError"}


@pytest.mark.slow
@pytest.mark.long
def test_the_tutorials_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pickglass.detectors.certificate._WANTED", 4)  # more images say no more of the tutorial
    for name in TUTORIALS:
        page = DOCS / "tutorials" / f"{name}.md"
        space: dict[str, object] = {}
        assert blocks(page), name
        for language, text in blocks(page):
            if language == "python":
                exec(compile(text, str(page), "exec"), space)
                continue
            for line in text.splitlines():
                monkeypatch.setattr(sys, "argv", shlex.split(line))
                with pytest.raises(SystemExit) as stop:
                    main()
                assert not stop.value.code, f"{name}: {line}: {capsys.readouterr().err}"
        if name == "tiny-defects":
            default, fine = (float(line) for line in capsys.readouterr().out.split()[-2:])
            assert fine > default + 0.15
        elif name == "missing-parts":
            assert "['bad', 'bad', 'bad', 'bad', 'bad', 'bad'] True" in capsys.readouterr().out
    assert len((tmp_path / "line.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
def test_the_method_in_100_lines_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (_, method), (_, use) = blocks(DOCS / "how-to" / "own-method.md")
    assert len(method.splitlines()) <= 100
    (tmp_path / "prototypes.py").write_text(method)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        exec(compile(use, "own-method.md", "exec"), {})
    finally:
        sys.modules.pop("prototypes", None)
        METHODS.pop("prototypes", None)  # type: ignore[attr-defined]
    out = capsys.readouterr().out
    assert "checks passed" in out
    assert out.splitlines()[0].split("]")[0] == out.splitlines()[1].split("]")[0]  # as saved


@pytest.mark.slow
def test_the_site_builds_and_asks_nobody_else(tmp_path: Path) -> None:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason='the site needs pip install "pickglass[docs]"')
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*\"", page.read_text())
        assert not loaded, (page.name, loaded)
        shim = re.search(r'<script src="([^"]*iframe-worker\.js)">', page.read_text())  # the search without a server
        assert shim, page.name
        assert page.name == "404.html" or (page.parent / shim[1]).is_file(), (page.name, shim[1])
    assert (tmp_path / "site" / "search" / "search_index.js").is_file()
