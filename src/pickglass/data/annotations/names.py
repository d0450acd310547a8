r"""Names of images in an annotation file are paired with the images, whatever their folders, slashes and Unicode form.

A tool may write ``a.png``, ``images/a.png``, ``C:\work\a.png`` or, without a suffix, ``a`` for the same image.
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from pickglass.data.images.decoder import IMAGE_SUFFIXES
from pickglass.errors import DataError

__all__ = ["pair_names", "plain_name"]


def plain_name(name: str) -> str:
    r"""Return a name as it can be compared: with ``/``, without ``./`` before it, in one Unicode form (NFC).

    >>> plain_name(".\\images\\a.png")
    'images/a.png'
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def pair_names(names: Iterable[str], images: Iterable[str]) -> dict[str, str]:
    """Find which name in an annotation file stands for which image.

    A name that is the end of an image's path stands for it; where there is no such image, a name stands for the image
    with the same file name if its folders fit no other better. A name without a suffix stands for any suffix.

    Args:
        names: names as the file gives them.
        images: paths of the images.

    Returns:
        The name for each image that has one. Names of images that are not there are left out.

    Raises:
        DataError: a name fits several images equally well, or an image several names.

    >>> pair_names(["a.png", "C:\\\\work\\\\b.png"], ["images/a.png", "images/b.png", "images/c.png"])
    {'images/a.png': 'a.png', 'images/b.png': 'C:\\\\work\\\\b.png'}
    """
    files: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    stems: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for image in images:
        *folders, file = plain_name(image).split("/")
        files[file].append((image, folders))
        stems[posixpath.splitext(file)[0]].append((image, folders))
    found: dict[str, tuple[tuple[bool, int], str]] = {}
    for name in names:
        *folders, file = plain_name(name).split("/")
        whole = posixpath.splitext(file)[1].lower() in IMAGE_SUFFIXES
        scored = [(_fit(folders, others), image) for image, others in (files if whole else stems).get(file, [])]
        if not scored:
            continue
        best = max(score for score, _ in scored)
        fits = [image for score, image in scored if score == best]
        if len(fits) > 1:
            raise DataError(f"the name {name!r} fits {len(fits)} images, e.g. {fits[0]} and {fits[1]}: add its folder")
        known = found.get(fits[0])
        if known is not None and known[0] == best:
            raise DataError(f"the names {known[1]!r} and {name!r} both fit {fits[0]}: add their folders")
        if known is None or best > known[0]:
            found[fits[0]] = (best, name)
    return {image: name for image, (_, name) in found.items()}


def _fit(folders: list[str], others: list[str]) -> tuple[bool, int]:
    """Say whether all folders of a name are the last of an image's path, and how many of them are."""
    common = 0
    for one, other in zip(reversed(folders), reversed(others), strict=False):
        if one != other:
            break
        common += 1
    return common == len(folders), common
