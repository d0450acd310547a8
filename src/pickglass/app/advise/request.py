"""The advisor answers a question about a defect of a stated size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pickglass.data.painting.defects import Kind
from pickglass.errors import InputError, shortened

__all__ = ["KINDS_PAINTED", "AdviseRequest", "parse_extent"]

KINDS_PAINTED: tuple[Kind, ...] = ("scratch", "hole", "stain", "crack", "dent", "shade", "streak")
"""The kinds of defects that are painted where nobody names others."""


@dataclass(frozen=True)
class AdviseRequest:
    """The defect that a detector has to see, and the bounds within which.

    Attributes:
        defect_px: longest extent of the smallest defect in pixels of the original images; at least 4.
        width_px: its width, for defects that are long and thin; None: each kind is painted as wide as it usually is.
        latency_ms: milliseconds that one image may take on this machine; None: any time.
        backbones: names to try; None: EfficientNet-Lite0, and Lite1 and Lite2 where their weights are found.
        kinds: kinds of the painted defects; see :data:`pickglass.data.KINDS`.
        seed: decides everything that is drawn at random.
    """

    defect_px: float
    latency_ms: float | None = None
    backbones: Sequence[str] | None = None
    kinds: Sequence[Kind] = KINDS_PAINTED
    seed: int = 0
    width_px: float | None = None

    @property
    def defect(self) -> str:
        """The size of the defect in words: ``8 px``, or ``150 x 6 px`` where a width is given."""
        return f"{self.defect_px:g} px" if self.width_px is None else f"{self.defect_px:g} x {self.width_px:g} px"


def parse_extent(text: str) -> tuple[float, float | None]:
    """Read the size of a defect: its length in pixels, and its width where there is one.

    Raises:
        InputError: it is neither ``LENGTH`` nor ``LENGTHxWIDTH``.

    >>> parse_extent("8"), parse_extent("150x6")
    ((8.0, None), (150.0, 6.0))
    """
    parts = text.lower().split("x")
    try:
        length, *width = (float(part) for part in parts)
        if len(width) > 1 or not all(0 < n < math.inf for n in (length, *width)) or any(w > length for w in width):
            raise ValueError
    except ValueError:
        raise InputError(
            f"defect_px={shortened(text)}: expected the longest extent in pixels such as 8, or length x width such as "
            "150x6, the length first"
        ) from None
    return length, width[0] if width else None
