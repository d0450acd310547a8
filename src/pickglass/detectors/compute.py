"""Where and how a detector computes: device, engine, batch, decoding threads; and how progress is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch

from pickglass.data import MAX_PIXELS
from pickglass.errors import InputError
from pickglass.features.engine import EngineName

__all__ = ["ComputeArguments", "ComputeOptions", "Progress", "Shape", "device_name", "silent"]

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
    """How to run; none of it changes what is computed, beyond rounding.

    Attributes:
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``.
        engine: what runs the backbone and, of some methods, all that judges; see
            :class:`pickglass.features.engine.CompiledNetwork`.
        batch: images at once.
        workers: threads that decode images.
        max_pixels: images with more are refused.
    """

    device: str = "auto"
    engine: EngineName = "auto"
    batch: int = 8
    workers: int = 2
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name in ("batch", "workers", "max_pixels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)!r}: expected at least 1")

    def arguments(self) -> ComputeArguments:
        """Return them as keyword arguments of :meth:`pickglass.Detector.fit` and ``predict``."""
        return {
            "device": self.device,
            "engine": self.engine,
            "batch": self.batch,
            "workers": self.workers,
            "max_pixels": self.max_pixels,
        }


def silent(stage: str, done: int, total: int) -> None:
    """No progress wanted."""


def device_name(name: str) -> str:
    """``"auto"`` resolved, anything else tried.

    Raises:
        InputError: the device cannot be used on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r} cannot be used here ({str(error).splitlines()[0]}): try 'cpu'") from error
    return name
