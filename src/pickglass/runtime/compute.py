"""Where and how a detector computes, and how it reports progress: declarations alone, which load no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict

from pickglass.data.images.decoder import MAX_PIXELS

__all__ = ["PIXELS_AT_ONCE", "ComputeArguments", "ComputeOptions", "EngineName", "Progress", "Shape"]

EngineName = Literal["auto", "openvino", "bfloat16", "torch", "onnxruntime"]
"""What runs networks; ``onnxruntime`` runs exported models alone, ``bfloat16`` and ``torch`` run all others."""

PIXELS_AT_ONCE = 1 << 22
"""So many pixels of images are computed at once: networks hold some hundred bytes a pixel, and more are no faster."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on."""

Shape = tuple[int, int, int]
"""(C, h, w) of one level."""


class ComputeArguments(TypedDict, total=False):
    """The fields of :class:`ComputeOptions` as keyword arguments."""

    device: str
    engine: EngineName
    batch: int
    workers: int
    max_pixels: int


@dataclass(frozen=True)
class ComputeOptions:
    """How a detector computes; none of it changes what is computed, beyond rounding.

    Attributes:
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``.
        engine: what runs the backbone and, for some methods, all that judges: see
            :class:`pickglass.features.engine.CompiledNetwork`; of exported models, all of them: see
            :class:`pickglass.ExportedModel`.
        batch: images at once, at least 1; fewer where they are so large that their features would fill the memory.
        workers: threads that decode images, at least 1.
        max_pixels: images with more pixels are refused.
    """

    device: str = "auto"
    engine: EngineName = "auto"
    batch: int = 8
    workers: int = 2
    max_pixels: int = MAX_PIXELS

    def arguments(self) -> ComputeArguments:
        """Return them as keyword arguments of :meth:`pickglass.Detector.fit` and ``predict``."""
        return {
            "device": self.device,
            "engine": self.engine,
            "batch": self.batch,
            "workers": self.workers,
            "max_pixels": self.max_pixels,
        }
