"""Images are told from masks, and every mask is given to the image that it means."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickglass.data.images.decoder import read_image
from pickglass.data.tables.layouts.names import IMAGE_FOLDERS, MASK_FOLDERS, means_mask, meant_image
from pickglass.data.tables.layouts.tree import Folder, key, some
from pickglass.data.tables.rows import Row
from pickglass.errors import DataError, ImageError

__all__ = ["Sorted", "in_mask_folder", "pair", "refuse_unnamed_masks", "sort_images"]

_MASKS, _IMAGES = frozenset(map(key, MASK_FOLDERS)), frozenset(map(key, IMAGE_FOLDERS))


class Sorted(NamedTuple):
    """The files with the suffix of an image in a folder and below, relative to it, told apart by what they are."""

    images: list[str]
    masks: list[str]
    beside: dict[str, str]  # neither, and why


def in_mask_folder(name: str) -> bool:
    """Tell whether a file lies in a folder of masks or below one; ``name`` is relative to the data."""
    return any(key(part) in _MASKS for part in name.split(os.sep)[:-1])


def sort_images(folder: Folder, beside: Mapping[str, str] | None = None, *, deep: bool = True) -> Sorted:
    """Tell the images of a folder from its masks: by name, by folder, and by their values where two share a stem.

    Args:
        folder: what to sort.
        beside: names of folders that hold neither, and what they hold.
        deep: with all folders below.
    """
    found = Sorted([], [], {})
    unlike = {key(name): why for name, why in (beside or {}).items()}
    for below, place in folder.walk():
        parts = {key(part) for part in below.split(os.sep)}
        images = place.images
        if unlike.keys() & parts:
            why = next(unlike[part] for part in parts if part in unlike)
            found.beside.update({os.path.join(below, name): why for name in images})
        elif parts & _MASKS:
            found.masks.extend(os.path.join(below, name) for name in images)
        else:
            masks = {name for name in images if means_mask(name)}
            masks |= _two_valued_beside_others(place, [name for name in images if name not in masks])
            for name in images:
                (found.masks if name in masks else found.images).append(os.path.join(below, name))
        if not deep:
            break
    return found


def _two_valued_beside_others(folder: Folder, names: list[str]) -> set[str]:
    """Find those of several files of one stem that are masks of the others by their values, e.g. x.png by x.jpg."""
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(key(os.path.splitext(name)[0]), []).append(name)
    masks: set[str] = set()
    for alike in by_stem.values():
        if len(alike) > 1:
            two_valued = {name for name in alike if _is_black_and_white(folder.at(name))}
            masks |= two_valued if len(two_valued) < len(alike) else set()
    return masks


def _stem(path: str) -> str:
    return key(os.path.splitext(os.path.basename(path))[0])


def _is_black_and_white(path: str) -> bool:
    """Tell whether an image has two values at most, or only what JPEG makes of black and white."""
    try:
        pixels = read_image(path)
    except ImageError:
        return False  # it stays an image, and is named where it is read
    if _distinct(pixels) <= 2:
        return True
    white = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    extreme = (pixels <= _NOISE * white) | (pixels >= (1 - _NOISE) * white)
    return bool(extreme.mean() >= _MOST)


def _values(path: str) -> int:
    """Count the values of an image's pixels, up to three; 0 where it cannot be read, which is said where it is read."""
    try:
        return _distinct(read_image(path))
    except ImageError:
        return 0


def _distinct(pixels: NDArray[Any]) -> int:
    step = max(1, max(pixels.shape[:2]) // 128)
    few = len(np.unique(pixels[::step, ::step]))
    return 3 if few > 2 else min(3, len(np.unique(pixels)))


_NOISE, _MOST = 1 / 16, 0.97  # of the full scale, about black and white; of the pixels of a mask saved as JPEG
_SAMPLE, _FOLDERS = 4, 100  # images of a folder, and folders, that are looked at


def refuse_unnamed_masks(root: Folder, rows: Iterable[Row]) -> None:
    """Refuse a folder of images with two values beside folders of others: they look like masks and are not named so.

    So do black images beside others of the same names. One image of each folder without masks is read, of at
    most 100 folders, and a few more of one that looks so. JPEG files have no two values.

    Args:
        root: the data set.
        rows: what is taken for its images.

    Raises:
        DataError: there is such a folder.
    """
    folders: dict[str, list[str]] = {}
    sure: set[str] = set()  # whose images have masks, or are photographs by their format
    for row in rows:
        folder = os.path.dirname(row.path)
        folders.setdefault(folder, []).append(row.path)
        if row.mask is not None or row.path.lower().endswith((".jpg", ".jpeg")):
            sure.add(folder)
    doubtful = [folder for folder in folders if folder not in sure]
    if len(folders) == 1:
        return
    for folder in doubtful[:: max(1, len(doubtful) // _FOLDERS)]:
        if _values(folders[folder][0]) > 2:
            continue
        step = max(1, len(folders[folder]) // _SAMPLE)
        values = {path: _values(path) for path in folders[folder][::step]}
        most = max(values.values())
        others = [other for other in folders if other != folder]
        if most == 1 and any(read_image(path).any() for path, count in values.items() if count == 1):
            continue  # of one grey: no mask
        if most == 1:  # masks of good parts, or a camera that saw nothing
            stems = {_stem(path) for path in folders[folder]}
            beside = [other for other in others if os.path.dirname(other) == os.path.dirname(folder)]
            others = [other for other in beside if stems & {_stem(path) for path in folders[other]}]
        if 1 <= most <= 2 and any(other in sure or _values(folders[other][0]) > 2 for other in others):
            raise DataError(
                f"{folder} holds images of two values, e.g. {os.path.basename(folders[folder][0])}, which look like "
                f"masks: rename the folder, e.g. to masks or ground_truth, or move it out of {root.path}"
            )


def pair(images: Iterable[str], masks: Iterable[tuple[str, str]]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Give masks to images by their names, relative to the folders that hold them.

    A mask means the image of the same name without its suffix, of the name without ``_mask``, ``_gt`` ..., or, where
    it lies in a folder of the image's name, that image; then there may be several. Folders such as ``images`` and
    ``masks`` do not count, nor do upper and lower case.

    Args:
        images: names relative to their folder.
        masks: name relative to its folder, and path, of each.

    Returns:
        Image -> its masks, sorted; and mask -> why it was given to none of several images, or not taken beside others.
        Masks that mean none of the images are in neither.
    """
    known: dict[str, list[str]] = {}
    for image in images:
        known.setdefault(_plain(image), []).append(image)
    claims: dict[str, list[str]] = {}
    doubtful: dict[str, str] = {}
    for name, path in sorted(masks):
        meant = next((known[candidate] for candidate in _candidates(name) if candidate in known), [])
        if len(meant) > 1:  # names that differ in upper and lower case alone
            stem = os.path.splitext(os.path.basename(name))[0]
            own = [image for image in meant if _has_stem(stem, image)]
            meant = own if len(own) == 1 else meant
        if len(meant) > 1:
            doubtful[path] = f"a mask that may belong to {some(meant)}: give images and masks names of their own"
        elif meant:
            claims.setdefault(meant[0], []).append(path)
    pairs: dict[str, tuple[str, ...]] = {}
    for image, paths in claims.items():
        if len(paths) == 1 or _are_parts(image, paths):
            pairs[image] = tuple(paths)
        else:
            names = some([os.path.basename(path) for path in paths])
            doubtful.update(dict.fromkeys(paths, f"one of {len(paths)} masks of {image} ({names}): keep one of them"))
    return pairs, doubtful


def _plain(name: str) -> str:
    """Return a name as it is compared: without its suffix and without folders that say nothing."""
    *above, last = os.path.splitext(key(name))[0].split(os.sep)
    return "/".join([part for part in above if part not in _IMAGES and part not in _MASKS] + [last])


def _candidates(mask: str) -> list[str]:
    plain = _plain(mask)
    above, _, last = plain.rpartition("/")
    meant = meant_image(last)
    named = [] if meant is None else [f"{above}/{meant}" if above else meant]
    return [plain, *named, *([above] if above else [])]


def _has_stem(mask: str, image: str) -> bool:
    stem = os.path.splitext(os.path.basename(image))[0]
    return mask.startswith(stem) or mask.endswith(stem)


def _are_parts(image: str, paths: list[str]) -> bool:
    """Tell whether masks together are the mask of one image: in a folder of the image's name, or numbered."""
    stem = key(os.path.splitext(os.path.basename(image))[0])
    folders = {os.path.dirname(path) for path in paths}
    if len(folders) == 1 and key(os.path.basename(folders.pop())) == stem:
        return True
    stems = [os.path.splitext(path)[0] for path in paths]
    return len(set(stems)) == len(stems) and len({re.sub(r"\d+$", "", stem) for stem in stems}) == 1
