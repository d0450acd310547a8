"""requirements/: the oldest version of each dependency that pyproject.toml admits, and what the image holds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
COMES_ALONG = {"click", "pyparsing"}  # with typer and matplotlib, whose oldest versions call what later ones deprecate
NOT_PINNED = {"pickglass", "ruff", "mypy", "mkdocs-material"}  # itself, tools of make, what no test installs


def by_name(lines: list[str], sign: str) -> dict[str, tuple[int, ...]]:
    """Versions by name of the lines that hold ``sign``, without zeros at their end: 1.4.0 is 1.4."""
    found = {}
    for line in lines:
        if match := re.match(rf"([\w.-]+) *{sign} *([\d.]+)", line):
            version = [int(part) for part in match[2].split(".")]
            while version[-1] == 0:
                version.pop()
            found[match[1].lower()] = tuple(version)
    return found


def test_the_oldest_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    admitted = {name: version for name, version in by_name(lines, ">=").items() if name not in NOT_PINNED}
    pinned = by_name((ROOT / "requirements" / "oldest.txt").read_text().splitlines(), "==")
    assert pinned.keys() - COMES_ALONG == admitted.keys()
    for name, version in admitted.items():  # the first release of that version that can be installed
        assert pinned[name][: len(version)] == version, f"{name}: {pinned[name]} in requirements/oldest.txt"


def test_the_image_holds_what_the_core_and_the_page_need_each_by_its_hash() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = by_name([*project["dependencies"], *project["optional-dependencies"]["web"]], ">=")
    text = (ROOT / "requirements" / "runtime.txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\d.]+ \\\n", entry) for entry in entries)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}$", entry.strip()) for entry in entries)
    pinned = {name.replace("_", "-"): version for name, version in by_name(entries, "==").items()}
    for name, version in needed.items():
        assert pinned[name.replace("_", "-")] >= version, name
    assert "://" not in text
    dockerfile = (ROOT / "examples" / "serve" / "Dockerfile").read_text()
    assert "--require-hashes -r runtime.txt" in dockerfile
    assert "--no-deps" in dockerfile
