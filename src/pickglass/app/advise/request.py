"""The advisor answers a question about a defect of a stated size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pickglass.data.painting.defects import Kind

__all__ = ["KINDS_PAINTED", "AdviseRequest"]

KINDS_PAINTED: tuple[Kind, ...] = ("scratch", "hole", "stain", "crack", "dent")
"""The kinds of defects that are painted where nobody names others."""


@dataclass(frozen=True)
class AdviseRequest:
    """The defect that a detector has to see, and the bounds within which.

    Attributes:
        defect_px: longest extent of the smallest defect in pixels of the original images; at least 4.
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
