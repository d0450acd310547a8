"""MVTec AD 2 has a validation split, a public test under several lights, and private tests without published truth.

Published at mvtec.com/research-teaching/datasets/mvtec-ad-2, and described by Heckler-Kram et al., "The MVTec AD 2
Dataset: Advanced Scenarios for Unsupervised Anomaly Detection", 2025. The same scene under another light has the same
number, ``000_regular.png`` and ``000_overexposed.png``, and is one group.
"""

from __future__ import annotations

import os
from dataclasses import replace

from pickglass.data.tables.layouts.classes import split_rows, splits
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.tables import grouped
from pickglass.data.tables.layouts.tree import Folder
from pickglass.data.tables.rows import Row, Table

__all__ = ["PRIVATE", "read"]

PRIVATE = ("test_private", "test_private_mixed")
"""The parts whose truth is not published; the data set's evaluation server judges what is predicted of them."""


def read(root: Folder, ask: Ask) -> Found | None:
    """Read ``train/good``, ``validation/good``, ``test_public/{good,bad}`` with masks, and the private images.

    Masks lie in ``test_public/ground_truth/bad/STEM_mask.png``. The private images are no rows of the data set's
    table.
    """
    public, private = root.find("test_public"), [root.find(name) for name in PRIVATE]
    if public is None and not any(private):
        return None
    found = Found()
    rows = [_grouped(row) for row in split_rows(root, splits(root, ask), ask, found)]
    found.tables = {root.name: grouped(root, rows, ask, found)}
    found.private = Table([Row(folder.at(name)) for folder in private if folder is not None for name in folder.images])
    return found


def _grouped(row: Row) -> Row:
    """Put the images of one scene under several lights in one group; elsewhere each scene is there once."""
    if row.role != "test":
        return row
    above, name = os.path.split(row.path)
    number, light, _ = name.partition("_")
    return replace(row, group=f"{os.path.basename(above)}/{number}") if light and number.isdecimal() else row
