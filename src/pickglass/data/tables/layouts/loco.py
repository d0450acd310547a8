"""MVTec LOCO has several masks an image, whose pixel values name the defects, and a validation split of its own.

Published at mvtec.com/research-teaching/datasets/mvtec-loco-ad, and described by Bergmann et al., "Beyond Dents and
Scratches: Logical Constraints in Unsupervised Anomaly Detection and Localization", IJCV 2022.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pickglass.data.tables.layouts.classes import split_rows, splits
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.tables import grouped
from pickglass.data.tables.layouts.tree import Folder
from pickglass.data.tables.rows import Saturation
from pickglass.errors import DataError

__all__ = ["read"]

_TYPES = ("logical_anomalies", "structural_anomalies")
_CONFIG = "defects_config.json"


def read(root: Folder, ask: Ask) -> Found | None:
    """Read ``train/good``, ``validation/good``, ``test/{good,logical_anomalies,structural_anomalies}``.

    The masks of an image are ``ground_truth/TYPE/STEM/*.png``. Their union is the binary mask; each file and pixel
    value in it is one region of sPRO, whose saturation ``defects_config.json`` gives.
    """
    config = root.file(_CONFIG)
    test = root.find("test")
    if test is None or (config is None and not any(test.find(kind) for kind in _TYPES)):
        return None
    found = Found()
    saturation = _saturation(config)
    if config is not None:
        found.used[config] = "lists of saturation areas"
    rows = split_rows(root, splits(root, ask), ask, found)
    rows = [replace(row, saturation=saturation) if row.label == 1 else row for row in rows]
    found.tables = {root.name: grouped(root, rows, ask, found)}
    return found


def _saturation(file: str | None) -> tuple[Saturation, ...]:
    """Read the entries of ``defects_config.json``; there are none where there is no such file."""
    if file is None:
        return ()
    try:
        return tuple(
            Saturation(
                int(entry["pixel_value"]),
                str(entry["defect_name"]),
                float(entry["saturation_threshold"]),
                bool(entry["relative_saturation"]),
            )
            for entry in json.loads(Path(file).read_text("utf-8"))
        )
    except (ValueError, KeyError, TypeError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}: {error}): expected a list of entries with defect_name, "
            "pixel_value, saturation_threshold and relative_saturation"
        ) from error
