"""The words: one name for one thing, docstrings that begin with a sentence, help texts that can be read alone.

`docs/architecture.md` has the table of names. A rule that cannot be checked here (a subject that a practitioner knows,
present tense) is for reviewers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from source_trees import nodes_of

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pickglass"
SCRIPTS = sorted(SOURCE.rglob("*.py")) + sorted((ROOT / "bench").glob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Names that were given up, and what stands for them now.
OLD_NAMES = {
    "Head": "Method",
    "HeadRunner": "PerPositionEngine",
    "Reader": "FeatureLoader",
    "Reading": "Batch",
    "RunOptions": "ComputeArguments",
    "Running": "ComputeOptions",
    "Runner": "CompiledNetwork",
    "Untold": "Baseline",
}
OLD_MODULES = {
    "methods.base": "detectors.detector",
    "methods.head": "detectors.method",
    "methods.learning": "detectors.fitting",
    "methods.running": "detectors.compute",
    "methods.tiling": "detectors.tiling",
    "methods.modelfile": "detectors.modelfile",
    "methods.regions": "detectors.provenance",
    "methods.training_data": "detectors.training_data",
    "methods.suspicion": "detectors.contamination",
    "methods.describing": "detectors.drift_sample",
    "methods.naming": "detectors.naming",
    "features.presets": "features.backbones.layers",
    "features.weights": "features.backbones.weights",
    "features.checkpoints": "features.backbones.checkpoints",
    "features.receptive_field": "features.anatomy.gradient_field",
    "features.propagation": "features.anatomy.theoretical_field",
    "features.reading": "features.batch",
    "nn.coreset": "nn.search.coreset",
    "nn.neighbours": "nn.search.neighbours",
    "nn.plan": "nn.training.plan",
    "nn.loop": "nn.training.loop",
    "nn.coupling": "nn.networks.coupling",
    "data.formats": "data.images.formats",
    "data.tables.regions": "data.tables.ground_truth",
    "app.page": "app.pages",
    "app.pictures": "app.pages.images",
    "app.report": "app.pages.report",
}
OLD_HOOKS = {
    "start": "begin_fit",
    "update": "observe",
    "adjust": "observe_validation",
    "finish": "end_fit",
    "parts": "component_maps",
    "sibling": "clone",
    "learned": "head_state",
    "take": "load_head_state",
    "turns": "quarter_turns",
}
PUZZLES = re.compile(r"\b(untold|unasked)\b", re.IGNORECASE)  # participles that stand for a noun that nobody names


class Docstring(NamedTuple):
    place: str
    name: str
    text: str

    @property
    def first(self) -> str:
        return self.text.splitlines()[0]


def docstrings(path: Path) -> Iterator[Docstring]:
    for node in nodes_of(path):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                line = 1 if isinstance(node, ast.Module) else node.lineno
                yield Docstring(f"{path.relative_to(ROOT)}:{line}", getattr(node, "name", "module"), text)


def help_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Each ``help="..."`` of an option or argument, with its place."""
    for node in nodes_of(path):
        if isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield f"{path.relative_to(ROOT)}:{node.value.lineno}", str(node.value.value)


def complaint(docstring: Docstring) -> str | None:
    """What is wrong with the first line of a docstring, None if nothing is."""
    first = docstring.first
    if first.startswith("Of "):
        return "begins with 'Of'"
    if docstring.name.startswith("_") and not docstring.name.startswith("__"):
        return None
    if first[-1] not in ".:?":
        return "the first sentence does not end on the first line"
    if first[0] == "(" or (first.split()[0].islower() and not first.startswith(("`", "pickglass"))):
        return "does not begin with a capital"
    return None


def test_every_docstring_begins_with_a_sentence() -> None:
    looked_at = [(d, complaint(d)) for path in SCRIPTS for d in docstrings(path)]
    assert len(looked_at) > 1000
    wrong = [f"{d.place} {d.name}: {why}: {d.first!r}" for d, why in looked_at if why]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_arguments_say_what_they_are() -> None:
    """``seed: seeds the draws``, not ``seed: of the draws``: the line of an argument is read alone, too."""
    texts = [d for path in SCRIPTS for d in docstrings(path)]
    wrong = [
        f"{d.place} {d.name}: {line.strip()}" for d in texts for line in re.findall(r"^ +\w+: of .*$", d.text, re.M)
    ]
    assert not wrong, "\n".join(wrong)


def test_help_texts_can_be_read_alone() -> None:
    texts = [item for path in SCRIPTS for item in help_texts(path)]
    assert len(texts) > 100
    wrong = [f"{place}: {text!r}" for place, text in texts if text.startswith(("Of ", "of "))]
    assert not wrong, "\n".join(wrong)


def identifiers(path: Path) -> Iterator[tuple[int, str]]:
    """Each name that a file defines, imports or uses, and each name in backquotes in its texts."""
    text = path.read_text()
    if path.suffix == ".py":
        for node in nodes_of(path):
            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.Name):
                yield line, node.id
            elif isinstance(node, ast.Attribute):
                yield line, node.attr
            elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                yield line, node.name
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                yield from ((line, f"{module}{alias.name}") for alias in node.names)
    for number, line_text in enumerate(text.splitlines(), start=1):
        for span in re.findall(r"`([^`]+)`", line_text):
            yield number, span


@pytest.mark.parametrize("folder", ["src", "docs", "bench", "tests"])
def test_old_names_are_gone(folder: str) -> None:
    paths = {"src": sorted(SOURCE.rglob("*.py")), "docs": PAGES}.get(folder, sorted((ROOT / folder).glob("*.py")))
    assert paths
    new_names = {**OLD_NAMES, **OLD_MODULES}
    pattern = re.compile(rf"(?<![\w])({'|'.join(map(re.escape, new_names))})(?![\w])")
    wrong = []
    for path in paths:
        if path == Path(__file__):
            continue
        for line, identifier in identifiers(path):
            for old in pattern.findall(identifier.replace("/", ".")):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {old} is {new_names[old]} now: {identifier}")
    assert not wrong, "\n".join(wrong)


def test_the_hooks_of_a_method_have_their_names() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} is {OLD_HOOKS[node.name]} now"
        for path in sorted((SOURCE / "methods").glob("*.py"))
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef) and node.name in OLD_HOOKS
    ]
    assert not wrong, "\n".join(wrong)


def test_no_puzzles() -> None:
    paths = [*SCRIPTS, *PAGES]
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if PUZZLES.search(line)
    ]
    assert not wrong, "\n".join(wrong)
