"""Real-IAD shows each part from five sides; the split is in a JSON file a category, beside the images' root.

Published at huggingface.co/datasets/Real-IAD/Real-IAD, and described by Wang et al., "Real-IAD: A Real-World
Multi-View Dataset for Benchmarking Versatile Industrial Anomaly Detection", CVPR 2024. The images are JPEG files, and
the masks PNG files beside them. The images of one part are one group.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.kolektor2 import DEFECTIVE_TRAINING
from pickglass.data.tables.layouts.names import means_mask
from pickglass.data.tables.layouts.pairing import pair
from pickglass.data.tables.layouts.tables import grouped, held_out
from pickglass.data.tables.layouts.tree import Folder, is_image
from pickglass.data.tables.rows import Row, Table
from pickglass.errors import DataError

__all__ = ["read"]

_PLACES = (
    *("", "..", "../realiad_jsons", "../realiad_jsons/realiad_jsons"),
    *("../../realiad_jsons", "../../realiad_jsons/realiad_jsons"),
)
"""Folders that may hold CATEGORY.json, relative to the category's folder, in the order in which they are tried."""


def read(root: Folder, ask: Ask) -> Found | None:
    """Read one category: ``OK/PART/*.jpg`` and ``NG/TYPE/PART/*.jpg`` with masks, divided as ``CATEGORY.json`` says.

    Without that file the good images are divided by part, as in plain folders.
    """
    good, bad = root.find("OK"), root.find("NG")
    if good is None or bad is None or good.images or not all(kind.folders for kind in bad.folders.values()):
        return None
    found = Found()
    file = next((path for path in _jsons(root) if os.path.isfile(path)), None)
    if file is None:
        table = grouped(root, [*_good(good), *_bad(bad, found)], ask, found)
        found.tables = {root.name: held_out(Table(table), found)}
    else:
        found.used[file] = "lists of the split"
        found.tables = {root.name: grouped(root, list(_listed(root, file, found)), ask, found)}
    return found


def _jsons(root: Folder) -> Iterator[str]:
    for place in _PLACES:
        yield os.path.normpath(os.path.join(root.path, place, f"{root.name}.json"))


def _good(folder: Folder) -> list[Row]:
    return [
        Row(folder.at(name), "train", 0, group=f"OK/{os.path.dirname(name)}")
        for name in folder.all_files()
        if is_image(name) and not means_mask(name)
    ]


def _bad(folder: Folder, found: Found) -> list[Row]:
    rows: list[Row] = []
    for kind, below in folder.folders.items():
        names = [name for name in below.all_files() if is_image(name)]
        photographs = {os.path.splitext(name)[0] for name in names if _is_jpeg(name)}
        masks = [
            name
            for name in names
            if means_mask(name) or (not _is_jpeg(name) and os.path.splitext(name)[0] in photographs)
        ]
        images = [name for name in names if name not in set(masks)]
        pairs, doubtful = pair(images, [(name, below.at(name)) for name in masks])
        found.unused.update(doubtful)
        for name in images:
            group, mask = f"NG/{kind}/{os.path.dirname(name)}", (pairs.get(name) or (None,))[0]
            # of a part with a defect, a view without a mask need not show it
            known = mask is not None or not masks
            rows.append(Row(below.at(name), "test", 1 if known else None, kind if known else None, mask, group))
    return rows


def _is_jpeg(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg"))


def _listed(root: Folder, file: str, found: Found) -> Iterator[Row]:
    try:
        split = json.loads(Path(file).read_text("utf-8"))
        normal = str(split["meta"]["normal_class"])
        entries = [(part, entry) for part in ("train", "test") for entry in split[part]]
        for part, entry in entries:
            yield from _entry(root, part, entry, normal, found)
    except (ValueError, KeyError, TypeError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}: {error}): expected meta.normal_class, and in train and "
            "test entries with anomaly_class, image_path and mask_path"
        ) from error


def _entry(root: Folder, part: str, entry: Mapping[str, Any], normal: str, found: Found) -> Iterator[Row]:
    name, kind = str(entry["image_path"]), str(entry["anomaly_class"])
    path = root.at(os.path.normpath(name))
    mask = root.at(os.path.normpath(str(entry["mask_path"]))) if entry.get("mask_path") else None
    group = os.path.dirname(name)
    if kind == normal:
        yield Row(path, "train" if part == "train" else "test", 0, group=group)
    elif part == "test":
        yield Row(path, "test", 1, kind, mask, group)
    else:
        found.unused[path] = DEFECTIVE_TRAINING
        if mask is not None:
            found.used[mask] = "masks of unused training images"
