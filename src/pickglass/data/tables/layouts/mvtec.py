"""MVTec AD is laid out in splits and classes, with masks in ``ground_truth``; most sets for the field follow it.

So do BTAD (``ok``, ``ko``), MPDD, 3CAD, AutoVI (a folder of masks an image), VisA after its usual conversion, and what
people lay out themselves, with a ``validation`` if they have one. Published at mvtec.com/research-teaching/datasets,
and described by Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.
"""

from __future__ import annotations

from pickglass.data.tables.layouts.classes import classes, split_rows, splits
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.tables import grouped
from pickglass.data.tables.layouts.tree import Folder, some
from pickglass.errors import DataError

__all__ = ["read"]


def read(root: Folder, ask: Ask) -> Found | None:
    """Read ``train/good``, ``validation/good``, ``test/TYPE`` and masks, ``ground_truth/TYPE/STEM_mask.png``, if any.

    ``train`` may hold good images without a folder between.
    """
    parts = splits(root, ask)
    if not any(part.classes for part in parts):
        return None
    beside = [one.name for one in classes(root, ask) if one.good]
    if beside:
        raise DataError(
            f"{root.path} holds {beside[0]} beside {some([part.name for part in parts])}: move its images to train/good"
        )
    found = Found()
    found.tables = {root.name: grouped(root, split_rows(root, parts, ask, found), ask, found)}
    return found
