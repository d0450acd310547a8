"""Where the data sets are, and folders that two tools read alike."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

SETS = ("magnetic_tile", "aitex_fabric04", "mvtec_hazelnut_reduced", "mvtec_transistor_reduced")
_DATA = "PICKGLASS_TEST_DATA"  # the folder of the tests on real images


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, the folder of the data sets."""
    parser.add_argument(
        "--data", type=Path, default=os.environ.get(_DATA), help=f"folder of the data sets; by default ${_DATA}"
    )


def add_sets(parser: argparse.ArgumentParser, sets: Sequence[str] = SETS) -> None:
    """Add ``--data`` and ``--sets``."""
    add_data(parser)
    parser.add_argument("--sets", nargs="+", default=list(sets))


def only_set(parser: argparse.ArgumentParser) -> None:
    """Add DATA, the folder of one data set."""
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of one data set")


def shared_folder(data: Path, out: Path, most: int | None = None) -> Path:
    """Make a folder in MVTec AD layout of symbolic links, which two tools read alike.

    The training images, or the first ``most`` of them, stand in the test folder too, so that prediction is timed on
    more than a few.
    """
    seen = 0
    for source in sorted(data.rglob("*.*")):
        inside = source.relative_to(data)
        if not source.is_file() or inside.parts[0] not in ("train", "test", "ground_truth"):
            continue
        if inside.parts[0] == "train":
            seen += 1
            if most is not None and seen > most:
                continue
            _link(source, out / "test" / "good" / f"train_{inside.name}")
        _link(source, out / inside)
    return out


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())
