"""DAGM 2007 in its older form: ``ClassN`` of good images, ``ClassN_def`` of defective ones with an ellipse around each.

See :mod:`pickglass.data.tables.layouts.dagm`. A line of ``labels.txt`` has the image's number,
the semi-axes, the angle in radians, and the centre. The ellipses are coarse, not the defects' outlines.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from pickglass.data.annotations import Annotation, Ellipse
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.tables import grouped, held_out
from pickglass.data.tables.layouts.tree import Folder, key
from pickglass.data.tables.rows import Row
from pickglass.errors import DataError

__all__ = ["read"]

_DEFECTIVE = "_def"


def read(root: Folder, ask: Ask) -> Found | None:
    """Read every class whose two folders are there."""
    found = Found()
    for name, good in root.folders.items():
        bad = root.find(f"{name}{_DEFECTIVE}")
        if bad is None or bad.file("labels.txt") is None or not good.images:
            continue
        rows = [Row(good.at(image), "train", 0) for image in good.images]
        rows += _defective(bad, found)
        found.tables[name] = held_out(grouped(root, rows, ask, found), found)
    return found if found.tables else None


def _defective(folder: Folder, found: Found) -> list[Row]:
    file = str(folder.file("labels.txt"))
    found.used[file] = "lists of annotations"
    ellipses: dict[str, Ellipse] = {}
    for line in Path(file).read_text("utf-8-sig", "replace").splitlines():
        values = line.split()
        if not values:
            continue
        try:
            number, semi_x, semi_y, turn, x, y = values[0], *map(float, values[1:6])
            ellipses[_number(number)] = Ellipse("defect", x, y, semi_x, semi_y, math.degrees(turn))
        except ValueError as error:
            if isinstance(error, DataError):
                raise DataError(f"{file}: {line[:60]!r}: {error}") from error
            raise DataError(
                f"{file}: {line[:60]!r}, expected an image's number, two semi-axes, an angle, x and y of the centre"
            ) from error
    rows = []
    for image in folder.images:
        ellipse = ellipses.get(_number(os.path.splitext(image)[0]))
        said = None if ellipse is None else Annotation("defective", ("defect",), (ellipse,), None, file)
        rows.append(Row(folder.at(image), "test", 1, "defect", annotation=said))
    return rows


def _number(name: str) -> str:
    """Return the number of an image, ``7`` or ``007``, as it is compared."""
    return key(os.path.splitext(name)[0]).lstrip("0")
