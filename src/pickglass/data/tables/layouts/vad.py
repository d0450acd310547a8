"""VAD of Valeo is published for supervised methods too: ``train`` holds defective images, which are not used.

Published with Baitieva et al., "Supervised Anomaly Detection for Complex Industrial Images", CVPR 2024. There are no
masks.
"""

from __future__ import annotations

from pickglass.data.tables.layouts.classes import split_rows, splits
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.kolektor2 import DEFECTIVE_TRAINING
from pickglass.data.tables.layouts.tables import grouped
from pickglass.data.tables.layouts.tree import Folder, is_image, key

__all__ = ["read"]

_CLASSES = {"good", "bad"}


def read(root: Folder, ask: Ask) -> Found | None:
    """Read ``train/good`` and ``test/{good,bad}``; ``train/bad`` is counted and not used."""
    parts = splits(root, ask)
    if [part.role for part in parts] != ["train", "test"]:
        return None
    if any({key(one.name) for one in part.classes} != _CLASSES for part in parts):
        return None
    found = Found()
    train, test = parts
    for bad in (one for one in train.classes if not one.good):
        found.leave([bad.folder.at(name) for name in bad.folder.all_files() if is_image(name)], DEFECTIVE_TRAINING)
    parts = [train._replace(classes=[one for one in train.classes if one.good]), test]
    found.tables = {root.name: grouped(root, split_rows(root, parts, ask, found), ask, found)}
    return found
