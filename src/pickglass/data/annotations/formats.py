"""The formats of annotation files are listed here, and told apart by the keys or the root near a file's ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import NamedTuple, TypeAlias

from pickglass.data.annotations import coco, cvat, datumaro, labelme, via, voc, yolo
from pickglass.data.annotations.annotation import Annotation

__all__ = ["COLLECTIONS", "ENDS", "FORMATS", "Collected", "Sidecar", "format_of"]

ENDS = 1 << 16  # bytes at either end of a file by which its format is told

Size: TypeAlias = "tuple[int, int] | None"


class Sidecar(NamedTuple):
    """A format with one file for each image; ``read`` takes path, content, image size and the names that mean good."""

    what: str
    read: Callable[[str, bytes, Size, Collection[str]], Annotation]


class Collected(NamedTuple):
    """A format with many images in one file; ``read`` takes path, content and the names that mean good."""

    what: str
    read: Callable[[str, bytes, Collection[str]], dict[str, Annotation]]


FORMATS: dict[str, Sidecar | Collected] = {
    "labelme": Sidecar("labelme: IMAGE.json with 'shapes'", labelme.read),
    "voc": Sidecar("Pascal VOC: IMAGE.xml with the root 'annotation'", voc.read),
    "yolo": Sidecar("YOLO: IMAGE.txt with lines 'class x y width height' or 'class x y x y x y ...'", yolo.read),
    "coco": Collected("COCO: FILE.json with 'images', 'annotations' and 'categories'", coco.read),
    "cvat": Collected("CVAT for images 1.1: FILE.xml with the root 'annotations'", cvat.read),
    "datumaro": Collected("Datumaro: FILE.json with 'items' and 'categories'", datumaro.read),
    "via": Collected("VIA: FILE.json with 'filename' and 'regions' of each image", via.read),
}
COLLECTIONS = frozenset(name for name, entry in FORMATS.items() if isinstance(entry, Collected))

_KEY = re.compile(rb'"(\w+)"\s*:')
_COCO = {b"images", b"annotations", b"categories", b"image_id"}
_ROOT = re.compile(rb"<([A-Za-z][\w.-]*)")
_PROLOGUE = re.compile(rb"<\?.*?\?>|<!--.*?-->", re.S)
_NUMBERS = re.compile(rb"\d+(\s+[-+.\deE]+){4,}\s*")


def format_of(path: str, ends: bytes) -> str | None:
    """Tell a format by the first and last :data:`ENDS` bytes of a file: a name in :data:`FORMATS`, or None."""
    if ends[:2] in (b"\xff\xfe", b"\xfe\xff"):
        ends = ends.decode("utf-16", "ignore").encode("utf-8", "ignore")
    start = ends.removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.lower().endswith(".txt"):
        return "yolo" if not start or _NUMBERS.fullmatch(start.splitlines()[0]) else None
    if start.startswith(b"{"):
        return _json_format(set(_KEY.findall(ends)))
    if start.startswith(b"<"):
        root = _ROOT.search(_PROLOGUE.sub(b"", start))
        return {b"annotation": "voc", b"annotations": "cvat"}.get(root[1]) if root else None
    return None


def _json_format(keys: set[bytes]) -> str | None:
    if keys & {b"_via_img_metadata", b"shape_attributes"} or {b"filename", b"regions"} <= keys:
        return "via"
    if {b"items", b"categories"} <= keys or b"dm_format_version" in keys:
        return "datumaro"
    if len(keys & _COCO) >= 2:
        return "coco"
    if keys & {b"shapes", b"shape_type", b"imageData"}:
        return "labelme"
    return None
