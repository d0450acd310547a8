"""Break one line of the package after the other, and show that the tests of its room see each.

    python -m bench run mutants

The working tree is copied first; nothing in it is changed. A line that is not there any more is reported: it is to be
replaced by another one of its room. ``seen`` is false where no test failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.harness import Case, Suite
from bench.harness.records import ROOT


class Mutant(NamedTuple):
    """One broken line: its file below src/pickglass, what is replaced by what, and the tests that are to see it."""

    file: str
    before: str
    after: str
    tests: str


MUTANTS = (
    Mutant("data/images/formats.py", "if orientation in (5, 6, 7, 8):", "if orientation in (5, 6, 7):", "images"),
    Mutant("data/images/geometry.py", "(height - h) // 2, (width - w) // 2", "(width - w) // 2, 0", "geometry"),
    Mutant("data/images/tiles.py", "length - tile if edges", "length - tile - 1 if edges", "tiles"),
    Mutant("metrics/ranking.py", "values[1:] != values[:-1]", "values[1:] == values[1:]", "metrics"),
    Mutant("calibration/promises.py", "return admissible - 1 if", "return admissible if", "promises"),
    Mutant("nn/search/coreset.py", "value <= outside + bound", "value <= 0.9 * outside", "coreset"),
    Mutant("nn/training/loop.py", "of.index(min(of))", "of.index(max(of))", "loop"),
    Mutant("nn/gaussian/algebra.py", "+ eps * identity", "+ 2 * eps * identity", "gaussian"),
    Mutant("features/engine.py", "changed = state != self._state", "changed = self._state is None", "features"),
    Mutant("methods/patchcore.py", "weight: Tensor = 1 - 1 /", "weight: Tensor = 1 + 1 /", "patchcore"),
    Mutant("methods/efficientad.py", "(t - s).square()", "(t - s).abs()", "efficientad"),
    Mutant("nn/maps.py", "(order * (counts - 1)).ceil()", "(order * (counts - 1)).floor()", "maps"),
    Mutant("detectors/tiling.py", "split[:, order]", "split", "tiled"),
    Mutant("app/pages/build.py", "autoescape=True", "autoescape=False", "pages"),
    Mutant("cli/command.py", "raise typer.Exit(1)", "raise typer.Exit(0)", "cli"),
)


def outcome(mutant: Mutant, copy: Path) -> str:
    """Run the tests on the broken copy: the first test that fails, or that none does."""
    file = copy / "src" / "pickglass" / mutant.file
    text = file.read_text() if file.is_file() else ""
    if text.count(mutant.before) == 0:
        return "line not found"
    file.write_text(text.replace(mutant.before, mutant.after))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no"]
        run = subprocess.run(
            [*command, f"tests/test_{mutant.tests}.py"],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(text)
    named = [line.split(" - ")[0] for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return named[0] if named else "no test failed" if run.returncode == 0 else f"exit code {run.returncode}"


def measured(mutant: Mutant) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
        said = outcome(mutant, copy)
    return {"seen": said.startswith(("FAILED", "ERROR")), "outcome": said}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="files whose names hold this text")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for mutant in MUTANTS:
        if given.only in mutant.file:
            key = {"file": mutant.file, "before": mutant.before, "after": mutant.after}
            yield Case(key, partial(measured, mutant))


SUITE = Suite(cases, arguments, weights=())
