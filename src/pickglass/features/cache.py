"""Batches of features and images are computed once and kept: in memory within a budget, else in a temporary file.

An image is one row of float32 numbers, its levels and its pixels one after the other, so that a read from disk is one
stretch. Which pixels count is kept as one bit each, in rows of their own, and only where some do not. The file has no
name in its folder: not even a killed run leaves it behind.

Letters: B images, P positions, C channels, h x w cells of a layer, H x W pixels of the network's input.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import IO, Literal

import numpy as np
import torch
from torch import Tensor

from pickglass.errors import InputError
from pickglass.features.batch import Batch

__all__ = ["FeatureCache"]


class FeatureCache:
    """The cache takes images once, in order, and returns any of them as often as wanted, bit for bit.

    Args:
        n_images: how many images will be added.
        memory_gb: what may be held in memory (1 GB = 1e9 bytes); where the images take more, a file is made in the
            system's folder for temporary files (``TMPDIR``).

    Use it as a context manager or call :meth:`close`.

    Attributes:
        added: how many images are in.
        where: ``"memory"`` or ``"file"``; None before the first batch.
        bytes: what all images take; 0 before the first batch.
    """

    def __init__(self, n_images: int, memory_gb: float) -> None:
        self.n_images = n_images
        self.added = 0
        self.where: Literal["memory", "file"] | None = None
        self.bytes = 0
        self._budget = memory_gb * 1e9
        self._levels: list[list[int]] = []  # (P, C, h, w) of each
        self._images: list[int] | None = None  # (P, 3, H, W)
        self._keep: list[int] | None = None  # (P, H, W)
        self._numbers: _Rows | None = None
        self._bits: _Rows | None = None

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything; a file is gone once its last page is released."""
        self._numbers = self._bits = None

    # -- writing -------------------------------------------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """Copy the next images into the cache.

        Args:
            batch: levels (B, P, C, h, w), images (B, P, 3, H, W) or both, float32; of the same shapes each time.

        Raises:
            InputError: the disk has too little room.
            RuntimeError: the batch has other shapes or another type than the first, or there are too many images.
        """
        tensors = [*batch.levels, *([] if batch.images is None else [batch.images])]
        shapes = [list(tensor.shape[1:]) for tensor in tensors]
        if self.where is None:
            self._begin(batch)
        begin, end = self.added, self.added + (len(tensors[0]) if tensors else 0)
        if self._numbers is None or shapes != self._shapes() or not begin < end <= self.n_images:
            raise RuntimeError(
                f"a batch of shapes {shapes} for images {begin} to {end - 1}: "
                f"expected {self._shapes()} and {self.n_images} images in an open cache"
            )
        if any(tensor.dtype != torch.float32 for tensor in tensors):
            raise RuntimeError(f"a batch of {[tensor.dtype for tensor in tensors]}: expected float32")
        numbers, at = self._numbers.data.view(torch.float32), 0  # (n_images, numbers of an image)
        for tensor in tensors:
            flat = tensor.reshape(end - begin, -1)  # (B, numbers of the tensor)
            numbers[begin:end, at : at + flat.shape[1]] = flat.detach().to(numbers.device)
            at += flat.shape[1]
        self._numbers.used(end - begin)
        self._add_keep(batch.keep, begin, end)
        self.added = end

    def _begin(self, batch: Batch) -> None:
        """See from the first batch what all images take, and so where they go."""
        self._levels = [list(level.shape[1:]) for level in batch.levels]
        self._images = None if batch.images is None else list(batch.images.shape[1:])
        width = 4 * sum(map(math.prod, self._shapes()))
        bits = 0 if batch.keep is None else _packed_bytes(batch.keep.shape[1:])
        self.bytes = self.n_images * (width + bits)
        self.where = "memory" if self.bytes <= self._budget else "file"
        if self.where == "file" and self.bytes > _free_bytes():
            raise self._too_full(self.bytes)
        self._numbers = self._rows(width)

    def _add_keep(self, keep: Tensor | None, begin: int, end: int) -> None:
        if self._bits is None:
            if keep is None:
                return
            self._keep = list(keep.shape[1:])
            self._bits = self._rows(_packed_bytes(self._keep))
            self._bits.data.fill_(255)  # everything counted so far
        if keep is not None:
            flat = keep.reshape(end - begin, -1).cpu().numpy()  # (B, P H W)
            self._bits.data[begin:end] = torch.from_numpy(np.packbits(flat, axis=1))
        self._bits.used(end - begin)

    def _rows(self, width: int) -> _Rows:
        if self.where == "memory":
            return _Rows(self.n_images, width, None, self._budget)
        try:
            with tempfile.TemporaryFile() as file:
                _reserve(file, self.n_images * width)
                return _Rows(self.n_images, width, file, self._budget)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise self._too_full(self.n_images * width) from error
            raise InputError(
                f"{tempfile.gettempdir()}: features cannot be kept there ({error.strerror}): set TMPDIR to another "
                f"folder, or raise memory_gb by {self.n_images * width / 1e9:.2g}"
            ) from error

    def _too_full(self, needed: int) -> InputError:
        return InputError(
            f"{tempfile.gettempdir()}: the features of {self.n_images} images take {needed:,} bytes, "
            f"{_free_bytes():,} are free: free the disk, keep temporary files elsewhere (TMPDIR), raise memory_gb by "
            f"{needed / 1e9:.2g}, or lower size"
        )

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, indices: Sequence[int]) -> Batch:
        """Return the images of these indices in this order, on the CPU; the tensors are the caller's own.

        ``keep`` is None where everything counts.

        Raises:
            IndexError: an image has not been added yet.
        """
        if self._numbers is None or not all(0 <= i < self.added for i in indices):
            raise IndexError(f"images {list(indices)} of a cache that holds {self.added if self._numbers else 0}")
        numbers, at = self._numbers.data.view(torch.float32), 0  # (n_images, numbers of an image)
        tensors = []
        for shape in self._shapes():
            size = math.prod(shape)
            tensor = torch.empty(len(indices), size)
            for row, i in enumerate(indices):
                tensor[row] = numbers[i, at : at + size]
            tensors.append(tensor.view(len(indices), *shape))
            at += size
        self._numbers.used(len(indices))
        images = tensors.pop() if self._images is not None else None
        return Batch(tuple(tensors), images, self._read_keep(indices))

    def _read_keep(self, indices: Sequence[int]) -> Tensor | None:
        if self._bits is None or self._keep is None:
            return None
        packed = self._bits.data[list(indices)].numpy()
        self._bits.used(len(indices))
        flat = np.unpackbits(packed, axis=1, count=math.prod(self._keep))  # (B, P H W)
        return None if flat.all() else torch.from_numpy(flat).bool().view(len(indices), *self._keep)

    def _shapes(self) -> list[list[int]]:
        return [*self._levels, *([] if self._images is None else [self._images])]


class _Rows:
    """Rows of bytes, in memory or mapped from a file; of a mapping no more stays resident than the budget allows."""

    def __init__(self, n: int, width: int, file: IO[bytes] | None, budget: float) -> None:
        self.width = width
        self.most = budget / 8  # the system maps more than is touched: four times as much was seen
        self.resident = 0
        self.mapping = None if file is None else mmap.mmap(file.fileno(), n * width)
        if self.mapping is None:
            self.data = torch.empty(n, width, dtype=torch.uint8)
        else:
            self.data = torch.frombuffer(self.mapping, dtype=torch.uint8).view(n, width)  # (n, width)

    def used(self, rows: int) -> None:
        """Count rows that were read or written; beyond the budget the system may have their pages back."""
        self.resident += rows * self.width
        if self.mapping is not None and self.resident > self.most and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)  # of a shared file: what was written stays written
            self.resident = 0


def _packed_bytes(pixels: Sequence[int]) -> int:
    """Count the bytes that one bit a pixel takes."""
    return -(-math.prod(pixels) // 8)


def _free_bytes() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free


def _reserve(file: IO[bytes], size: int) -> None:
    """Claim the room now: a write into a mapping that finds the disk full kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)
