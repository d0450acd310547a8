"""KolektorSDD has ``PART/IMAGE.jpg`` with ``PART/IMAGE_label.bmp`` beside it; only the label says if it is good.

Published at vicos.si/resources/kolektorsdd, and described by Tabernik et al., "Segmentation-Based Deep-Learning
Approach for Surface-Defect Detection", JIM 2020.
"""

from __future__ import annotations

from pickglass.data.tables.layouts.classes import one_or_all
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.measured import row_by_mask
from pickglass.data.tables.layouts.names import means_mask, split_of
from pickglass.data.tables.layouts.pairing import pair, sort_images
from pickglass.data.tables.layouts.tables import grouped, held_out
from pickglass.data.tables.layouts.tree import Folder
from pickglass.data.tables.rows import Row

__all__ = ["read"]


def read(root: Folder, ask: Ask) -> Found | None:
    """An image is defective where its label has a pixel above 0; the folder of a part is its group.

    Labels have to be decoded for that. An image without a label, or with one that cannot be read, is a test image of
    unknown label.
    """
    parts = [(name, folder) for name, folder in root.folders.items() if folder.images]
    labelled = [name for name, folder in parts if any(means_mask(file) for file in folder.images)]
    if not labelled or any(ask.is_good(name) or split_of(name) for name, _ in parts):
        return None
    found, rows = Found(), list[Row]()
    for name, folder in parts:
        files = sort_images(folder, deep=False)
        pairs, doubtful = pair(files.images, [(mask, folder.at(mask)) for mask in files.masks])
        found.unused.update(doubtful)
        rows += [
            row_by_mask(folder.at(image), one_or_all(pairs.get(image, ())), "train", name) for image in files.images
        ]
        found.used.update({folder.at(mask): "masks that mark nothing" for mask in files.masks})
    found.tables = {root.name: held_out(grouped(root, rows, ask, found), found)}
    return found
