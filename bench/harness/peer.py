"""The peer, anomalib 2.7 in an environment of its own; bench/README.md says how to make one."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "peer" / "run_anomalib.py"


def add_peer(parser: argparse.ArgumentParser) -> None:
    """Add ``--peer-python``; without it only our side is measured."""
    parser.add_argument("--peer-python", type=Path, help="python of an environment with anomalib 2.7")


def run_peer(python: Path, *arguments: object, script: Path | None = None) -> dict[str, Any]:
    """Run the peer in its environment and return what it printed, all lines of JSON as one dict."""
    with tempfile.TemporaryDirectory() as scratch:  # it writes results and checkpoints where it stands
        done = subprocess.run(
            [str(python.absolute()), str(script or SCRIPT), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=scratch,
        )
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found
