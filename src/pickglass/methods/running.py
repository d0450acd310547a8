"""Running a detector over images: where, by what, and how much at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pickglass.data import MAX_PIXELS, Decoded, Preprocess, Table, decode
from pickglass.data.images import Array
from pickglass.errors import InputError
from pickglass.features.engine import EngineName

__all__ = ["Batch", "Progress", "Run", "Running", "Shape", "batches", "device_name", "silent"]


Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on."""

Shape = tuple[int, int, int]
"""(C, h, w) of one level."""


@dataclass(frozen=True)
class Run:
    """What a head may need to know while it learns.

    Attributes:
        n_images: how many images ``update`` will see in all.
        shapes: (C, h, w) of each level.
        positions: P.
        seed: of everything drawn at random.
        memory_gb: what may be held at once.
        progress: to report to.
    """

    n_images: int
    shapes: list[Shape]
    positions: int
    seed: int
    memory_gb: float
    progress: Progress


@dataclass(frozen=True)
class Running:
    """How to run; none of it changes what is computed, beyond rounding.

    Attributes:
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``.
        engine: what runs the backbone; see :class:`pickglass.features.engine.Engine`.
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


class Batch(NamedTuple):
    """Decoded images, broken ones among them, and the sound ones stacked: (B, 3, H, W), None if there is none."""

    items: list[Decoded[Array]]
    images: Tensor | None


def batches(table: Table, preprocess: Preprocess, running: Running) -> Iterator[Batch]:
    """Images in batches, in order, decoded ahead in threads."""
    waiting: list[Decoded[Array]] = []
    ahead = max(2 * running.batch, running.workers)
    for n, item in enumerate(decode(table, preprocess, running.workers, ahead, running.max_pixels), start=1):
        waiting.append(item)
        if len(waiting) == running.batch or n == len(table):
            sound = [d.value for d in waiting if d.value is not None]
            yield Batch(waiting, torch.from_numpy(np.stack(sound)) if sound else None)
            waiting = []


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
