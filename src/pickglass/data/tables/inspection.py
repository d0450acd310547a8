"""A data set is inspected before anything is trained: what it holds, what cannot be used, and what looks wrong."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickglass.data.images.decoder import (
    MAX_PIXELS,
    Array,
    Header,
    decode,
    read_header,
)
from pickglass.data.images.masks import MaskSource, Size, read_marks
from pickglass.data.tables.layouts.tree import SHOWN
from pickglass.data.tables.rows import Dataset, Row, Table
from pickglass.errors import Failure, ImageError

__all__ = ["describe", "find_problems", "image_sizes", "usual_size"]

_FEWEST = 8  # training images below which nothing is said of what looks unlike them
_REACH = 3.0  # interquartile ranges beyond the quartiles: Tukey's "far out"
_GAP, _ASIDE = 0.25, 0.2  # of the range of a statistic; of the training images, on either side


class _Statistic(NamedTuple):
    """Set-ups differ by a statistic of their images; ``least`` is the smallest interquartile range that is believed."""

    name: str
    least: float
    log: bool


# Floors: with identical training images, brightness must be off by 15 grey levels, logarithms by a third.
_STATISTICS = (
    _Statistic("height", 0.05, True),
    _Statistic("width", 0.05, True),
    _Statistic("brightness", 0.02, False),
    _Statistic("contrast", 0.1, True),
    _Statistic("sharpness across", 0.1, True),
    _Statistic("sharpness down", 0.1, True),
    _Statistic("red against green", 0.02, False),
    _Statistic("yellow against blue", 0.02, False),
)


class _Seen(NamedTuple):
    """A decoded image leaves these facts behind."""

    content: bytes
    mode: str
    statistics: NDArray[np.float64]  # (S,), as listed in _STATISTICS


class _SeenMask(NamedTuple):
    """A mask that was read leaves these facts behind, or ``error``."""

    path: str
    share: float = 0.0  # of the image that it marks
    soft: bool = False
    no_background: bool = False
    error: str | None = None


def _masks_of(row: Row) -> list[tuple[str, MaskSource]]:
    """Name each file of a row's mask, or its array."""
    if isinstance(row.mask, np.ndarray):
        return [(f"mask of {row.path}", row.mask)]
    return [(file, file) for file in row.masks]


def _look_at_mask(named: tuple[str, MaskSource], size: Size, max_pixels: int) -> _SeenMask:
    path, source = named
    try:
        marks = read_marks(source, size, max_pixels)
    except ImageError as error:
        return _SeenMask(path, error=error.reason)
    return _SeenMask(path, float(marks.pixels.mean()), marks.soft, marks.no_background)


def find_problems(dataset: Dataset, max_pixels: int = MAX_PIXELS, workers: int = 2) -> dict[str, list[str]]:
    """Look at every image and mask of a data set once and list what may be wrong with it; nothing is trained.

    An image looks unlike the training images where its mode differs from all of theirs, or where one of a few plain
    statistics (height, width, brightness, contrast, sharpness, colour) lies further from their quartiles than three
    times the range between the quartiles and also beyond every one of them. Fewer than 8 training images say nothing.
    The comparison feeds no model.

    Returns:
        Sentences by problem; a problem that is not there is left out:

        - ``unreadable``, ``masks_unusable``: images and masks that cannot be used, and why;
        - ``masks_soft``: masks with soft edges or the noise of JPEG, which are cut at half, see
          :mod:`pickglass.data.images.masks`; ``masks_mark_most``: masks that mark more than half of their image, as
          inverted ones do, but for those that mark all of it with one value;
        - ``masks_empty``: defective images whose mask marks nothing; ``good_with_mask``: good ones whose mask does;
        - ``no_mask``: defective images without a mask, where others have one;
        - ``defective_equals_good``: the pixels of an image in a defect folder are those of a good image;
        - ``in_two_roles``: the same pixels in training and test; ``duplicates``: twice in one role;
        - ``group_in_two_roles``: the same part or roll in training and test;
        - ``training_in_two_kinds``: a gap in one of the statistics, at least a quarter of its range wide, with a fifth
          of the training images on either side: two products, cloths or set-ups under one name;
        - ``unlike_training``: good or unknown test images that look like another product or set-up;
        - ``defective_unlike_training``: defective ones; a large defect does that too.
    """
    problems: dict[str, list[str]] = defaultdict(list)
    looks: list[tuple[Row, _Seen]] = []
    usable: list[tuple[Row, tuple[int, int]]] = []
    for item in decode(dataset.table, _look, workers, max_pixels=max_pixels):
        if item.value is None:
            problems["unreadable"].append(f"{item.row.path}: {item.error}")
        else:
            looks.append((item.row, item.value))
            usable.append((item.row, item.size))
    _judge_masks(dataset.table, usable, problems, max_pixels, workers)
    _same_content(looks, problems)
    roles_of: dict[str, set[bool]] = defaultdict(set)
    for row in dataset.table:
        if row.group is not None:
            roles_of[row.group].add(row.role == "test")
    problems["group_in_two_roles"] += [group for group, roles in roles_of.items() if len(roles) > 1]
    _unlike_training(looks, problems)
    return {name: found for name, found in problems.items() if found}


def _judge_masks(
    table: Table,
    usable: list[tuple[Row, tuple[int, int]]],
    problems: dict[str, list[str]],
    max_pixels: int,
    workers: int,
) -> None:
    masks = [(named, size) for row, size in usable for named in _masks_of(row)]
    with ThreadPoolExecutor(workers) as pool:
        looked = iter(pool.map(_look_at_mask, *zip(*masks, strict=True), repeat(max_pixels)) if masks else [])
    for row, size in usable:
        found = [next(looked) for _ in _masks_of(row)]
        problems["masks_unusable"] += [f"{mask.path}: {mask.error}" for mask in found if mask.error is not None]
        marks = any(mask.share > 0 for mask in found)
        if found and row.label == 1 and not marks and all(mask.error is None for mask in found):
            problems["masks_empty"].append(row.path)
        if row.label == 0 and marks:
            problems["good_with_mask"].append(row.path)
        if row.label != 0:
            problems["masks_soft"] += [mask.path for mask in found if mask.soft]
            problems["masks_mark_most"] += [
                f"{m.path}: {m.share:.0%}" for m in found if m.no_background or 0.5 < m.share < 1
            ]
        if row.annotation is not None:
            try:
                row.truth(size)
            except ImageError as error:
                problems["masks_unusable"].append(f"{row.path}: {error.reason}")
    if any(row.has_mask for row in table):
        problems["no_mask"] += [row.path for row in table if row.label == 1 and not row.has_mask]


def _same_content(looks: list[tuple[Row, _Seen]], problems: dict[str, list[str]]) -> None:
    copies: dict[bytes, list[Row]] = defaultdict(list)
    for row, look in looks:
        copies[look.content].append(row)
    for rows in copies.values():
        first = rows[0]
        for row in rows[1:]:
            other = next((r for r in rows if {r.label, row.label} == {0, 1}), None)
            if other is not None and row.label == 1:
                problems["defective_equals_good"].append(f"{row.path} = {other.path}")
            elif other is not None and other is first:
                continue
            elif (row.role == "test") != (first.role == "test"):
                problems["in_two_roles"].append(f"{row.path} = {first.path}")
            else:
                problems["duplicates"].append(f"{row.path} = {first.path}")


def _look(image: Array, row: Row) -> _Seen:
    """Measure a sub-sampled image; sharpness is that between true neighbours, on some rows and columns."""
    step = max(1, max(image.shape[:2]) // 256)
    white = np.float32(1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max)
    small = image[::step, ::step] / white  # (h, w) or (h, w, 3)
    across = np.abs(np.diff(image[::step].astype(np.float32), axis=1)) / white
    down = np.abs(np.diff(image[:, ::step].astype(np.float32), axis=0)) / white
    red, green, blue = (float(c) for c in (small.reshape(-1, 3).mean(axis=0) if small.ndim == 3 else [0.0] * 3))
    grey = small if small.ndim == 2 else small.mean(axis=2)  # (h, w)
    least = 1 / 255  # below a grey level of 8 bits, texture is noise
    statistics = [
        np.log(image.shape[0]),
        np.log(image.shape[1]),
        float(grey.mean()),
        np.log(float(grey.std()) + least),
        np.log((float(across.mean()) if across.size else 0.0) + least),
        np.log((float(down.mean()) if down.size else 0.0) + least),
        red - green,
        (red + green) / 2 - blue,
    ]
    content = hashlib.blake2b(f"{image.shape}{image.dtype}".encode(), digest_size=16)
    content.update(np.ascontiguousarray(image).data)
    return _Seen(content.digest(), _mode(8 * image.dtype.itemsize, image.ndim == 2), np.array(statistics))


def _mode(bits: int, grey: bool) -> str:
    return f"{bits}-bit {'grey' if grey else 'colour'}"


def _unlike_training(looks: list[tuple[Row, _Seen]], problems: dict[str, list[str]]) -> None:
    train = [look for row, look in looks if row.role != "test"]
    if len(train) < _FEWEST:
        return
    problems["training_in_two_kinds"] += _gaps(np.stack([look.statistics for look in train]))
    modes = sorted({look.mode for look in train})
    statistics = np.stack([look.statistics for look in train])  # (N, S)
    low, high = np.quantile(statistics, [0.25, 0.75], axis=0)  # (S,)
    reach = _REACH * np.maximum(high - low, [s.least for s in _STATISTICS])
    floor, ceiling = np.minimum(low - reach, statistics.min(axis=0)), np.maximum(high + reach, statistics.max(axis=0))
    for row, look in looks:
        if row.role != "test":
            continue
        reasons = [] if look.mode in modes else [f"{look.mode}, training {' and '.join(modes)}"]
        for i in np.flatnonzero((look.statistics < floor) | (look.statistics > ceiling)):
            name, _, log = _STATISTICS[i]
            shown = [look.statistics[i], statistics[:, i].min(), statistics[:, i].max()]
            value, least, most = (float(np.exp(v)) if log else float(v) for v in shown)
            reasons.append(f"{name} {value:.3g}, training {least:.3g} to {most:.3g}")
        if reasons:
            kind = "defective_unlike_training" if row.label == 1 else "unlike_training"
            problems[kind].append(f"{row.path}: {'; '.join(reasons)}")


def _gaps(statistics: NDArray[np.float64]) -> list[str]:
    sentences = []
    for i, (name, least, log) in enumerate(_STATISTICS):
        values = np.sort(statistics[:, i])  # (N,)
        aside = math.ceil(_ASIDE * len(values))
        gaps = np.diff(values)[aside - 1 : len(values) - aside]
        widest = int(gaps.argmax())
        if gaps[widest] < max(least, _GAP * (values[-1] - values[0])):
            continue
        below = widest + aside
        low, high = (float(np.exp(v)) if log else float(v) for v in values[below - 1 : below + 1])
        sentences.append(
            f"{name} is at most {low:.3g} in {below} training images and at least {high:.3g} in {len(values) - below}"
        )
    return sentences


def usual_size(table: Iterable[Row]) -> tuple[int, int]:
    """Return the median height and width of the images in pixels, from their headers.

    Raises:
        ImageError: a header cannot be read.
    """
    sizes = image_sizes(table)
    return round(median(h for h, _ in sizes)), round(median(w for _, w in sizes))


def image_sizes(table: Iterable[Row]) -> list[tuple[int, int]]:
    """Return height and width of each image in pixels, from their headers.

    Raises:
        ImageError: a header cannot be read.
    """
    headers = [_row_header(row) for row in table]
    return [(header.height, header.width) for header in headers]


def describe(dataset: Dataset) -> dict[str, Any]:
    """What is known of a data set without decoding a pixel: a plain dict, ready for JSON.

    Returns:
        ``name``, ``root``, ``layout``, ``images``; ``roles`` and ``types`` (defect type, ``good`` or ``unknown``), each
        name to count; ``masks``; ``boxes``: images with boxes and no mask; ``groups``; ``sizes``: ``smallest`` and
        ``largest`` ([height, width], by area) and the five ``commonest`` as ``"HxW"`` to count; ``modes``: e.g.
        ``"8-bit grey"`` to count; ``failed``: headers that cannot be read, each a dict of path and error; ``account``:
        :meth:`pickglass.data.Account.to_json`; ``private``: number of images without published truth.
    """
    table = dataset.table
    headers: list[Header] = []
    failed: list[Failure] = []
    for row in table:
        try:
            headers.append(_row_header(row))
        except ImageError as error:
            failed.append(Failure(error.path, error.reason))
    sizes = sorted(((h.height, h.width) for h in headers), key=lambda size: size[0] * size[1])
    return {
        "name": dataset.name,
        "root": dataset.root,
        "layout": dataset.layout,
        "images": len(table),
        "roles": dict(Counter(row.role for row in table)),
        "types": dict(Counter(_type(row) for row in table)),
        "masks": sum(row.has_mask for row in table),
        "boxes": sum(bool(row.boxes) and not row.has_mask for row in table),
        "groups": len({row.group for row in table if row.group is not None}),
        "sizes": {
            "smallest": list(sizes[0]) if sizes else None,
            "largest": list(sizes[-1]) if sizes else None,
            "commonest": {f"{h}x{w}": n for (h, w), n in Counter(sizes).most_common(SHOWN)},
        },
        "modes": dict(Counter(_mode(h.bits, h.channels == 1) for h in headers)),
        "failed": [failure._asdict() for failure in failed],
        "account": dataset.account.to_json(),
        "private": len(dataset.private),
    }


def _row_header(row: Row) -> Header:
    if row.pixels is None:
        return read_header(row.path)
    image = row.image()
    return Header(image.shape[0], image.shape[1], 8 * image.dtype.itemsize, 1 if image.ndim == 2 else 3)


def _type(row: Row) -> str:
    if row.label is None:
        return "unknown"
    return "good" if row.label == 0 else row.defect or "bad"
