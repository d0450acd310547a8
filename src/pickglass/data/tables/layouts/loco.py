"""MVTec LOCO has several masks an image, whose pixel values name the defects, and a validation split of its own."""

from __future__ import annotations

import json
from pathlib import Path

from pickglass.data.tables.layouts.tree import folders, grouped, images, is_good, one_or_all
from pickglass.data.tables.rows import Row, Saturation, Table
from pickglass.errors import DataError

__all__ = ["read"]

_TYPES = ("logical_anomalies", "structural_anomalies")


def read(root: Path, pattern: str | None = None) -> dict[str, Table] | None:
    """Read ``train/good``, ``validation/good``, ``test/{good,logical_anomalies,structural_anomalies}``.

    The masks of an image are ``ground_truth/TYPE/STEM/*.png``. Their union is the binary mask; each file and pixel
    value in it is one region of sPRO, whose saturation ``defects_config.json`` gives.
    """
    if not any((root / "test" / kind).is_dir() for kind in _TYPES):
        return None
    saturation = _saturation(root / "defects_config.json")
    rows = [Row(str(path), "train", 0) for path in images(root / "train" / "good")]
    rows += [Row(str(path), "validate", 0) for path in images(root / "validation" / "good")]
    for folder in folders(root / "test"):
        masks = {f.name: one_or_all(images(f)) for f in folders(root / "ground_truth" / folder.name)}
        for path in images(folder):
            if is_good(folder):
                rows.append(Row(str(path), "test", 0))
            else:
                rows.append(Row(str(path), "test", 1, folder.name, masks.get(path.stem), saturation=saturation))
    return {root.resolve().name: grouped(root, rows, pattern)}


def _saturation(file: Path) -> tuple[Saturation, ...]:
    """Read the entries of ``defects_config.json``; there are none where there is no such file."""
    if not file.is_file():
        return ()
    try:
        return tuple(
            Saturation(
                int(entry["pixel_value"]),
                str(entry["defect_name"]),
                float(entry["saturation_threshold"]),
                bool(entry["relative_saturation"]),
            )
            for entry in json.loads(file.read_text("utf-8"))
        )
    except (ValueError, KeyError, TypeError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}: {error}): expected a list of entries with defect_name, "
            "pixel_value, saturation_threshold and relative_saturation"
        ) from error
