"""Names of files and folders mean something: good, defective, a mask, a split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from pickglass.data.tables.layouts.tree import key
from pickglass.data.tables.rows import Role

__all__ = [
    "GOOD",
    "IMAGE_FOLDERS",
    "MASK_FOLDERS",
    "SPLITS",
    "means_bad",
    "means_good",
    "means_mask",
    "meant_image",
    "split_of",
]

GOOD = ("good", "ok", "okay", "normal", "pass", "passed", "no_defect", "defect_free", "non_defective", "anomaly_free")
"""A folder with such a name holds good parts; so does one with ``_images`` or a number after it, in any case."""

MASK_FOLDERS = (
    *("ground_truth", "groundtruth", "ground-truth", "ground truth", "gt", "masks", "mask", "labels", "label"),
    *("annotations", "annotation", "segmentation", "segmentations", "mask_images"),
    *("segmentationclass", "segmentationobject"),
)
"""A folder with such a name, in any case, holds masks or annotations; its files are never images."""

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "rgb")
"""A folder with such a name, in any case, says nothing of its images."""

SPLITS: dict[str, Role] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validate"),
    **dict.fromkeys(("test", "testing", "test_public"), "test"),
}
"""A folder with such a name, in any case and with a number after it, is a split of a data set."""

_BAD = frozenset(
    {
        *("bad", "ko", "ng", "nok", "notgood", "notok", "ungood", "nio", "abnormal", "anomaly", "anomalies"),
        *("anomalous", "defect", "defects", "defective", "fail", "failed", "fault", "faulty", "reject", "rejected"),
    }
)
_LETTERS = re.compile(r"[\W\d_]+")
_TAIL = re.compile(r"(?<=.)(images?|imgs?|parts?|samples?)$")
_MASK_END = re.compile(r"^(?P<image>.+)[_.\- ](masks?|gt|labels?|ground[_-]?truth)[_-]?\d*$")
_MASK_START = re.compile(r"^(mask|gt|ground[_-]?truth)[_.\- ](?P<image>.+)$")


def _plain(name: str) -> str:
    return _TAIL.sub("", _LETTERS.sub("", key(name)))


_GOOD = frozenset({*(_plain(name) for name in GOOD), "nodefects", "nondefect", "goods", "io"})


def means_good(name: str, others: Iterable[str] = ()) -> bool:
    """Tell whether a folder's name says that it holds good parts.

    Args:
        name: the folder's name.
        others: more names that mean good here.

    >>> means_good("NODefect_images"), means_good("pass"), means_good("scratch"), means_good("fine", ["Fine"])
    (True, True, False, True)
    """
    return _plain(name) in _GOOD or key(name) in {key(other) for other in others}


def means_bad(name: str) -> bool:
    """Tell whether a folder's name says that it holds defective parts, of whatever type.

    >>> means_bad("NG"), means_bad("Ungood"), means_bad("scratch")
    (True, True, False)
    """
    return _plain(name) in _BAD


def means_mask(name: str) -> bool:
    """Tell whether a file's name says that it is a mask.

    >>> means_mask("001_GT.png"), means_mask("mask_001.png"), means_mask("001.png")
    (True, True, False)
    """
    return meant_image(os.path.splitext(name)[0]) is not None


def meant_image(stem: str) -> str | None:
    """Return the key of the image that a mask's name means; None where the name does not say that it is a mask.

    >>> meant_image("001_mask"), meant_image("mask_001"), meant_image("0040_019_04_mask2"), meant_image("001")
    ('001', '001', '0040_019_04', None)
    """
    match = _MASK_END.match(key(stem)) or _MASK_START.match(key(stem))
    return None if match is None else match["image"]


def split_of(name: str) -> Role | None:
    """Return the role that a split's folder gives to its images; None where the name is not that of a split.

    >>> split_of("Train"), split_of("val2017"), split_of("bottle")
    ('train', 'validate', None)
    """
    return SPLITS.get(key(name).rstrip("0123456789"))
