"""An annotation says of one image whether it is good, which types of defect it has, and where they are.

The rules, the same for every format:

- An image that was annotated as having nothing is good. One that a file does not name is not annotated: unknown.
- A shape or a label of the image whose name means good (:data:`GOOD_NAMES`) marks no defect. A good shape is not kept;
  an image that is labelled good and has a defect all the same is an error.
- Every other shape or label is a defect, and its name is the type. One named ``ignore`` or ``ignored`` is an error:
  there is no truth that is neither defect nor good.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pickglass.data.annotations.shapes import Box, Shape
from pickglass.errors import DataError, ImageError

__all__ = ["GOOD_NAMES", "Annotation", "Status", "annotated", "check_size", "means_good", "plain_label"]

Status: TypeAlias = Literal["good", "defective", "unknown"]

GOOD_NAMES = frozenset(
    {"good", "ok", "okay", "normal", "pass", "passed", "background"}
    | {"defect_free", "no_defect", "no_defects", "no_anomaly"}
)
"""Names of labels that mean a good part, in lower case with ``_`` for spaces and hyphens."""

_IGNORED = {"ignore", "ignored"}


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation says what is known of one image.

    Attributes:
        status: ``"good"``, ``"defective"`` or ``"unknown"``.
        types: names of the defect types in the order of the file, each once; none unless defective.
        shapes: where the defects are; none where only the whole image was labelled.
        size: (H, W) of the image if the file states it.
        source: the annotation file, for messages.
    """

    status: Status
    types: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()
    size: tuple[int, int] | None = None
    source: str = "<annotation>"

    @property
    def has_mask(self) -> bool:
        """It is known of every pixel whether it is defect: the image is good, or each defect has an outline."""
        if self.status == "defective":
            return bool(self.shapes) and not any(isinstance(shape, Box) for shape in self.shapes)
        return self.status == "good"

    @property
    def boxes(self) -> list[list[float]]:
        """The upright box ``[x, y, width, height]`` around each shape, in pixels from the top left corner."""
        return [list(shape.bounds) for shape in self.shapes]

    def check_size(self, size: tuple[int, int] | None) -> None:
        """Raise a DataError if the file states another size than ``size`` (H, W); None: not known."""
        check_size(self.size, size)

    def mask(self, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Draw which pixels are defect, bool (H, W), by the rule of :mod:`pickglass.data.annotations.raster`.

        Args:
            size: (H, W) of the image.

        Returns:
            None where that is not known of every pixel: a defect has only a box, or no place at all.

        Raises:
            ImageError: the file states another size, or a shape leaves the image.
        """
        try:
            self.check_size(size)
            shapes = [shape.within(size) for shape in self.shapes]
        except DataError as error:
            raise ImageError(self.source, str(error)) from error
        if not self.has_mask:
            return None
        mask = np.zeros(size, np.bool_)
        for shape in shapes:
            if not isinstance(shape, Box):
                shape.draw(mask)
        return mask


def means_good(name: str, good: Collection[str] = GOOD_NAMES) -> bool:
    """Say whether a label's name means a good part: case, spaces, hyphens and underscores at the ends do not count.

    >>> [means_good(name) for name in ("Good", "defect-free", "scratch")]
    [True, True, False]
    """
    return plain_label(name) in good


def plain_label(name: str) -> str:
    """Return the name of a label as the names in :data:`GOOD_NAMES` are written."""
    return name.strip().strip("_").lower().replace("-", "_").replace(" ", "_")


def annotated(
    source: str,
    labels: Sequence[str],
    shapes: Sequence[Shape],
    size: tuple[int, int] | None,
    good: Collection[str],
) -> Annotation:
    """Apply the rules of this module to what a file says of an image that was annotated.

    Args:
        source: the annotation file.
        labels: names that the whole image was labelled with.
        shapes: all shapes, good ones too.
        size: (H, W) of the image if it is known.
        good: names that mean a good part.

    Raises:
        DataError: a contradiction, or a shape that leaves the image.
    """
    defects = [shape for shape in shapes if not means_good(shape.type, good)]
    named = [label for label in labels if not means_good(label, good)]
    types = tuple(dict.fromkeys([*named, *(shape.type for shape in defects)]))
    if any(plain_label(name) in _IGNORED for name in types):
        raise DataError("a region is to be ignored, which pickglass cannot do: delete it, or name it a defect or good")
    praise = [label for label in labels if means_good(label, good)]
    if praise and types:
        raise DataError(
            f"the image is labelled {praise[0][:60]!r} and has defects ({', '.join(types)[:120]}): correct one of both"
        )
    if size is not None:
        defects = [shape.within(size) for shape in defects]
    return Annotation("defective" if types else "good", types, tuple(defects), size, source)


def check_size(stated: tuple[int, int] | None, size: tuple[int, int] | None) -> None:
    """Raise a DataError if the size (H, W) that a file states is not that of the image; None: not known."""
    if stated is not None and size is not None and stated != size:
        turned = " It was annotated turned by 90 degrees: see the image's EXIF orientation." * (stated == size[::-1])
        raise DataError(
            f"the annotation is for an image of {stated[0]}x{stated[1]} (height x width), but the image is "
            f"{size[0]}x{size[1]}: annotate the image as it is, or restore the one that was annotated.{turned}"
        )
