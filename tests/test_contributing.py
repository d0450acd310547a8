"""What CONTRIBUTING.md says is so: the worked method runs, and the dependencies are those of pyproject.toml."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pickglass as pg
from pickglass.methods import METHODS, find_method
from pickglass.testing import check_detector, textures

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that the first Python block is; it is registered for the time of one test."""
    code = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)[0]
    (tmp_path / "worked_method.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("worked_method")
    del sys.modules["worked_method"], METHODS["mean_distance"]


@pytest.mark.slow
def test_the_worked_method_is_a_detector_like_any_other(worked: ModuleType, tmp_path: Path) -> None:
    good = textures(16, 96)
    detector = worked.MeanDistance(size=64).fit(good)
    assert find_method("mean_distance") is worked.MeanDistance
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    assert type(loaded) is worked.MeanDistance
    assert (loaded.predict(good[:3]).scores == detector.predict(good[:3]).scores).all()
    assert detector.provenance.details["cells"] > 0


def test_the_worked_method_is_as_short_as_it_looks() -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)[0]
    body = code[code.index("    method =") :]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= 42


@pytest.mark.slow
def test_the_worked_method_conforms(worked: ModuleType) -> None:
    assert len(check_detector(worked.MeanDistance(size=64))) > 15


def requirements(names: list[str]) -> set[str]:
    """Names without versions; the extras of pickglass itself are no packages."""
    return {re.split(r"[<>=\[; ]", name)[0] for name in names} - {"pickglass"}


def test_every_dependency_has_its_reason() -> None:
    expected = {(name, "") for name in requirements(PROJECT["dependencies"])}
    for extra, names in PROJECT["optional-dependencies"].items():
        expected |= {(name, extra) for name in requirements(names)}
    table = TEXT.split("## Dependencies")[1]
    rows: list[Any] = re.findall(r"^\| ([\w-]+) \| ([\w, ]*?) ?\| (.+) \|$", table, flags=re.MULTILINE)
    stated = {(name, extra) for name, extras, _ in rows if name != "package" for extra in extras.split(", ")}
    assert stated == expected


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    oldest, newest = versions[0], versions[-1]
    assert f"Python {oldest} to {newest}" in TEXT
    assert PROJECT["requires-python"] == f">={oldest}"
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    tested = set(re.findall(r'python: "(3\.\d+)"', workflow))
    assert tested == {oldest, newest}


def test_the_citation_and_the_changelog_name_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]
    assert f'\ndate-released: "{date.fromisoformat(newest[2])}"\n' in citation
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation
