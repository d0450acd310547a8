"""Tables that were measured before there were records, as the documentation of some commit had them.

    python -m bench table documented:NAME

There is nothing to run: each record of bench/results/documented.jsonl names the commit that brought the table and the
command that measured it, and so does the line below the table. A suite that measures the same again takes the table's
place in the documentation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial

from bench.harness import Case, Record, Suite, markdown
from bench.harness.records import RESULTS, read


def cases(_: argparse.Namespace) -> Iterable[Case]:
    raise SystemExit("nothing can be measured here: each record names the command that measured it")


def table(rows: list[Record], name: str) -> str:
    (record,) = (row for row in rows if row["table"] == name)
    commit = record["source"].removeprefix("docs of commit ")
    told = f"*Typed in on {record['date']} (commit {commit}); measured with {record['command']}.*"
    return f"{markdown(record['heads'], record['rows'])}\n\n{told}"


_NAMES = [record["table"] for record in read(RESULTS / "documented.jsonl")]
SUITE = Suite(cases, tables={name: partial(table, name=name) for name in _NAMES}, weights=())
