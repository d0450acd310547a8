"""A suite: a list of cases, each with a key; what a file of results holds already is not done again."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench.harness import records
from bench.harness.records import MEASURED, RESULTS, Record

FOLDER = Path(__file__).parents[1]


class Case(NamedTuple):
    """One thing to be measured.

    Attributes:
        key: names the case among those of its suite; its values are written to the record.
        measure: measures it; called only if no record has the key. What it returns is written beside the key.
    """

    key: Mapping[str, Any]
    measure: Callable[[], Mapping[str, Any]]


def _no_arguments(_: argparse.ArgumentParser) -> None:
    pass


@dataclass(frozen=True)
class Suite:
    """What a module of ``bench`` offers as ``SUITE``; the docstring of the module is its help.

    Attributes:
        cases: makes the cases of what was given; heavy work belongs into ``measure``.
        arguments: adds the suite's own arguments.
        tables: name -> the Markdown of all records. ``""`` is the table that has no name of its own.
        weights: backbones whose default weights are used; their hashes go into the records.
    """

    cases: Callable[[argparse.Namespace], Iterable[Case]]
    arguments: Callable[[argparse.ArgumentParser], None] = _no_arguments
    tables: Mapping[str, Callable[[list[Record]], str]] = field(default_factory=dict)
    weights: Sequence[str] = ("efficientnet_lite0",)


@cache
def names() -> dict[str, str]:
    """List the modules of the package and the first line of their docstrings; nothing is imported."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        for path in sorted(FOLDER.glob("*.py"))
        if not path.stem.startswith("__")
    }


def find(name: str) -> Suite:
    """Return the suite of a module."""
    if name not in names():
        raise SystemExit(f"no suite {name!r}: python -m bench list shows them")
    suite = getattr(importlib.import_module(f"bench.{name}"), "SUITE", None)
    if not isinstance(suite, Suite):
        raise SystemExit(f"bench/{name}.py has no SUITE: run it as python -m bench.{name}; bench/README.md says more")
    return suite


def run(name: str, words: Sequence[str]) -> list[Record]:
    """Measure the cases of a suite, and return the records of all of them.

    Each new record is printed as a line of JSON. With ``--output`` it also goes to that file, cases that the file holds
    are left alone, and the tables of the whole file are printed at the end.
    """
    suite, module = find(name), importlib.import_module(f"bench.{name}")
    anywhere = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # also behind the parts of a suite
    anywhere.add_argument("-o", "--output", type=Path, help="file of results, .jsonl, that a later run goes on with")
    parser = argparse.ArgumentParser(
        prog=f"python -m bench run {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[anywhere],
    )
    suite.arguments(parser)
    known_words, others = anywhere.parse_known_args(words)
    given = parser.parse_args(others, known_words)
    arguments = {key: value for key, value in vars(given).items() if key != "output"}
    known = [] if given.output is None else records.read(given.output)
    asked = []
    for case in suite.cases(given):
        key = {"suite": name, **case.key}
        record = records.find(known, key)
        if record is None:
            began = time.perf_counter()
            result = case.measure()
            record = {**key, **result, MEASURED: records.stamp(suite.weights, arguments, time.perf_counter() - began)}
            if given.output is not None:
                records.append(given.output, record)
            known.append(record)
            print(json.dumps(record, ensure_ascii=False), flush=True)
        asked.append(record)
    if given.output is not None:
        for title in suite.tables:
            print(f"\n{table(name, title, known)}")
    return asked


def table(name: str, title: str = "", rows: list[Record] | None = None) -> str:
    """Return a table of a suite as Markdown, by default of the committed results."""
    suite = find(name)
    if title not in suite.tables:
        raise SystemExit(f"the suite {name!r} has no table {title!r}, but {sorted(suite.tables)!r}")
    found = records.read(RESULTS / f"{name}.jsonl") if rows is None else rows
    if not found:
        raise SystemExit(f"bench/results/{name}.jsonl holds nothing: python -m bench run {name} -o that file")
    return suite.tables[title](json.loads(json.dumps(found))).strip()
