"""``python -m bench``: list, run, table and docs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.harness import records, suite, tables


def main() -> None:
    """Do what the command line asks."""
    words = sys.argv[1:]
    if words[:1] == ["run"] and words[1:2] and not words[1].startswith("-"):  # the rest is the suite's
        suite.run(words[1], words[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measurements: see bench/README.md.")
    parts = parser.add_subparsers(dest="do", required=True)
    parts.add_parser("list", help="list the suites and what each asks")
    own = parts.add_parser("run", help="measure: run SUITE [-o FILE.jsonl] ...; run SUITE --help says the rest")
    own.add_argument("suite")
    own = parts.add_parser("table", help="print the tables of a suite, of the committed results or of a file")
    own.add_argument("suite", metavar="SUITE[:TITLE]")
    own.add_argument("file", type=Path, nargs="?")
    own = parts.add_parser("docs", help="write the committed results into the tables of the documentation")
    own.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table is another one")
    given = parser.parse_args(words)
    if given.do == "list":
        for name, question in suite.names().items():
            print(f"{name:<16} {question}")
    elif given.do == "table":
        name, colon, title = given.suite.partition(":")
        rows = None if given.file is None else records.read(given.file)
        print("\n\n".join(suite.table(name, one, rows) for one in ([title] if colon else suite.find(name).tables)))
    else:
        sys.exit(int(docs(given.check) and given.check))


def docs(check: bool) -> bool:
    """Renew the tables of all pages, and return whether any differed; ``check`` writes nothing."""
    differed = False
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        new = tables.renewed(text, suite.table)
        if new != text:
            differed = True
            print(f"{page.relative_to(records.ROOT)}: {'another table' if check else 'written'}")
            if not check:
                page.write_text(new, encoding="utf-8")
    return differed


if __name__ == "__main__":
    main()
