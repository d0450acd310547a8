"""MVTec 3D-AD has an image and a cloud of 3-D points of each part; its images are read.

Published at mvtec.com/research-teaching/datasets/mvtec-3d-ad, and described by Bergmann et al., "The MVTec 3D-AD
Dataset for Unsupervised 3D Anomaly Detection and Localization", VISAPP 2022. A class holds ``rgb``, ``xyz`` and, in
the test, ``gt``, whose masks mark nothing in good images.
"""

from __future__ import annotations

from pickglass.data.tables.layouts.classes import split_rows, splits
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.tables import grouped
from pickglass.data.tables.layouts.tree import Folder

__all__ = ["read"]

_BESIDE = {"xyz": "3-D points, which pickglass does not read"}


def read(root: Folder, ask: Ask) -> Found | None:
    """Read ``train/good/rgb``, ``validation/good/rgb``, ``test/TYPE/rgb`` with masks ``test/TYPE/gt``."""
    parts = splits(root, ask)
    if not any(one.folder.find("rgb") and one.folder.find("xyz") for part in parts for one in part.classes):
        return None
    found = Found()
    if (cameras := root.find("calibration")) is not None:
        found.passed.update({cameras.at(name): "parameters of the camera" for name in cameras.files})
    found.tables = {root.name: grouped(root, split_rows(root, parts, ask, found, _BESIDE), ask, found)}
    return found
