"""KolektorSDD2 has ``train`` and ``test`` with ``N.png`` and ``N_GT.png`` beside it; only the mask says if it is good.

Published at vicos.si/resources/kolektorsdd2, and described by Bozic et al., "Mixed supervision for surface-defect
detection", Computers in Industry 2021. Folders of ``images`` and ``masks``, as they are made for segmentation, say the
same in the same way.
"""

from __future__ import annotations

from pickglass.data.tables.layouts.classes import classes, one_or_all
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.measured import row_by_mask
from pickglass.data.tables.layouts.names import split_of
from pickglass.data.tables.layouts.pairing import Sorted, pair, sort_images
from pickglass.data.tables.layouts.tables import grouped, held_out
from pickglass.data.tables.layouts.tree import Folder
from pickglass.data.tables.rows import Role, Row

__all__ = ["DEFECTIVE_TRAINING", "read"]

DEFECTIVE_TRAINING = "defective training images: only good images teach, and the published test has its own"


def read(root: Folder, ask: Ask) -> Found | None:
    """Read the images of the splits, or of one folder by itself, whose good images are then divided.

    An image is defective where its mask has a pixel above 0. Defective images of ``train`` are not used.
    """
    splits = [(split_of(name), folder) for name, folder in root.folders.items() if split_of(name) is not None]
    parts: list[tuple[Role | None, Folder]] = [(role, folder) for role, folder in splits if folder.holds_images()]
    parts = parts or [(None, root)]
    if any(classes(folder, ask) for _, folder in parts):
        return None
    files = [sort_images(folder) for _, folder in parts]
    if not all(one.images and one.masks for one in files):
        return None
    found, rows = Found(), list[Row]()
    for (role, folder), one in zip(parts, files, strict=True):
        rows += _rows(role, folder, one, found)
    table = grouped(root, rows, ask, found)
    found.tables = {root.name: table if splits else held_out(table, found)}
    return found


def _rows(role: Role | None, folder: Folder, files: Sorted, found: Found) -> list[Row]:
    pairs, doubtful = pair(files.images, [(mask, folder.at(mask)) for mask in files.masks])
    found.unused.update(doubtful)
    given: Role = role or "train"
    rows = [row_by_mask(folder.at(image), one_or_all(pairs.get(image, ())), given) for image in files.images]
    found.used.update({mask: "masks that mark nothing" for masks in pairs.values() for mask in masks})
    if role not in ("train", "validate"):
        return rows
    wrong = [row for row in rows if row.label != 0]
    found.leave([row.path for row in wrong if row.label == 1], DEFECTIVE_TRAINING)
    found.leave([row.path for row in wrong if row.label is None], "training images without a mask that can be read")
    found.used.update({mask: "masks of unused training images" for row in wrong for mask in row.masks})
    return [row for row in rows if row.label == 0]
