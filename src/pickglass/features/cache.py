"""What heads read, computed once: in memory while it fits the budget, else in a memory-mapped file.

An image is one row of float32 numbers, its levels and its pixels one after the other, so that a read from disk is one
stretch. Which pixels count is kept as one bit each, in rows of their own, and only where some do not.

Letters: B images, P positions, C channels, h x w cells of a layer, H x W pixels of the network's input.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pickglass.data.files import written_whole
from pickglass.errors import InputError
from pickglass.features.batch import Batch

__all__ = ["FeatureCache", "cache_key"]

_FORMAT = 1


def cache_key(
    images: Sequence[str],
    *,
    backbone: str,
    weights: Mapping[str, Any] | None,
    layers: Sequence[str],
    reads: Sequence[str],
    preprocess: Mapping[str, Any],
    engine: str,
) -> str:
    """Fingerprint of cached readings: hexadecimal SHA-256 of all that shapes them.

    Args:
        images: digest of each image, and of its mask of what counts, in order.
        backbone: its name.
        weights: what identifies its weights, as JSON, their SHA-256 among it; None where no backbone is read.
        layers: that are read.
        reads: ``"features"``, ``"images"``.
        preprocess: as JSON, with all that decides size and position.
        engine: that runs the backbone; two engines differ in their last bits.
    """
    parts = [_FORMAT, list(images), backbone, weights, list(layers), list(reads), preprocess, engine]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class FeatureCache:
    """Readings of images, added once in order and read as often as wanted; float32, exactly as they came.

    Args:
        n_images: how many will be added.
        memory_gb: what may be held in memory (1 GB = 1e9 bytes); where the images take more, a file is made.
        folder: of the file; None: the system's folder for temporary files.
        key: of :func:`cache_key`. With folder and key, a file that a killed run completed is taken over (then
            ``filled`` is True from the start); without, the file has no name and not even a killed run leaves it.

    Use it as a context manager or call :meth:`close`; otherwise a file goes when the interpreter ends.

    Attributes:
        added: how many images are in.
        where: ``"memory"`` or ``"file"``; None before the first reading.
        bytes: what all images take; 0 before the first reading.
    """

    def __init__(
        self, n_images: int, memory_gb: float, folder: str | Path | None = None, key: str | None = None
    ) -> None:
        self.n_images = n_images
        self.added = 0
        self.where: Literal["memory", "file"] | None = None
        self.bytes = 0
        self._budget = memory_gb * 1e9
        self._folder = Path(tempfile.gettempdir() if folder is None else folder)
        if not self._folder.is_dir():
            raise InputError(f"{self._folder}: no such folder for cached features: name an existing one")
        self._levels: list[list[int]] = []  # (P, C, h, w) of each
        self._images: list[int] | None = None  # (P, 3, H, W)
        self._keep: list[int] | None = None  # (P, H, W)
        self._numbers: _Rows | None = None
        self._bits: _Rows | None = None
        self._removal: weakref.finalize[[], FeatureCache] | None = None
        self._named = _Named(self._folder, key) if folder is not None and key is not None else None
        if self._named is not None:
            self._removal = weakref.finalize(self, self._named.remove)
            self._take_over(self._named)

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.added

    @property
    def filled(self) -> bool:
        """Whether all images are in."""
        return self.added == self.n_images

    def close(self) -> None:
        """Forget everything and remove the file."""
        self._numbers = self._bits = None
        if self._removal is not None:
            self._removal()  # once: not again when this object goes

    # -- writing -------------------------------------------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """Take in the next images.

        Raises:
            InputError: the disk has too little room.
        """
        tensors = [*batch.levels, *([] if batch.images is None else [batch.images])]
        shapes = [list(tensor.shape[1:]) for tensor in tensors]
        if self.where is None:
            self._begin(batch)
        begin, end = self.added, self.added + (len(tensors[0]) if tensors else 0)
        if self._numbers is None or shapes != self._shapes() or not begin < end <= self.n_images:
            raise RuntimeError(
                f"readings of shapes {shapes} for images {begin} to {end - 1}: "
                f"expected {self._shapes()} and {self.n_images} images in an open cache"
            )
        if any(tensor.dtype != torch.float32 for tensor in tensors):
            raise RuntimeError(f"readings of {[tensor.dtype for tensor in tensors]}: expected float32")
        numbers, at = self._numbers.data.view(torch.float32), 0  # (n_images, numbers)
        for tensor in tensors:
            flat = tensor.reshape(end - begin, -1)  # (B, numbers of the tensor)
            numbers[begin:end, at : at + flat.shape[1]] = flat.detach().to(numbers.device)
            at += flat.shape[1]
        self._numbers.used(end - begin)
        self._add_keep(batch.keep, begin, end)
        self.added = end
        if self.filled and self._named is not None and self.where == "file":
            for rows in (self._numbers, self._bits):
                if rows is not None:
                    rows.flush()
            self._named.seal(self._layout())

    def _begin(self, batch: Batch) -> None:
        """The first images tell what all of them take."""
        self._levels = [list(level.shape[1:]) for level in batch.levels]
        self._images = None if batch.images is None else list(batch.images.shape[1:])
        width = 4 * sum(map(math.prod, self._shapes()))
        bits = 0 if batch.keep is None else _bytes(batch.keep.shape[1:])
        self.bytes = self.n_images * (width + bits)
        self.where = "memory" if self.bytes <= self._budget else "file"
        if self.where == "file":
            self._check_room(self.bytes)
        self._numbers = self._rows(width, "numbers")

    def _add_keep(self, keep: Tensor | None, begin: int, end: int) -> None:
        if self._bits is None:
            if keep is None:
                return
            self._keep = list(keep.shape[1:])
            self._bits = self._rows(_bytes(self._keep), "bits")
            self._bits.data.fill_(255)  # everything counted so far
        if keep is not None:
            flat = keep.reshape(end - begin, -1).cpu().numpy()  # (B, P H W)
            self._bits.data[begin:end] = torch.from_numpy(np.packbits(flat, axis=1))
        self._bits.used(end - begin)

    def _rows(self, width: int, name: str) -> _Rows:
        if self.where == "memory":
            return _Rows(self.n_images, width, None, self._budget)
        try:
            with self._named.create(name) if self._named else tempfile.TemporaryFile(dir=self._folder) as file:
                _reserve(file, self.n_images * width)
                return _Rows(self.n_images, width, file, self._budget)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise self._too_full(self.n_images * width) from error
            raise InputError(f"{self._folder}: cannot keep features there ({error.strerror}): name another") from error

    def _check_room(self, needed: int) -> None:
        if needed > shutil.disk_usage(self._folder).free:
            raise self._too_full(needed)

    def _too_full(self, needed: int) -> InputError:
        free = shutil.disk_usage(self._folder).free
        return InputError(
            f"{self._folder}: the features of {self.n_images} images take {needed:,} bytes, {free:,} are free: free "
            f"the disk, keep temporary files elsewhere (TMPDIR), raise memory_gb by {needed / 1e9:.2g}, or lower size"
        )

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, indices: Sequence[int]) -> Batch:
        """The images of these indices, in their order, on the CPU; the tensors are the caller's own.

        ``keep`` is None where everything counts.
        """
        if self._numbers is None or not all(0 <= i < self.added for i in indices):
            raise IndexError(f"images {list(indices)} of a cache that holds {self.added if self._numbers else 0}")
        numbers, at = self._numbers.data.view(torch.float32), 0  # (n_images, numbers)
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

    # -- a file that outlives a killed run -----------------------------------------------------------------------------

    def _layout(self) -> dict[str, Any]:
        return {"n_images": self.n_images, "levels": self._levels, "images": self._images, "keep": self._keep}

    def _take_over(self, named: _Named) -> None:
        layout = named.sealed()
        if layout is None or layout["n_images"] != self.n_images:
            named.clear()
            return
        self._levels, self._images, self._keep = layout["levels"], layout["images"], layout["keep"]
        widths = {"numbers": 4 * sum(map(math.prod, self._shapes()))}
        if self._keep is not None:
            widths["bits"] = _bytes(self._keep)
        rows = {}
        for name, width in widths.items():
            with named.path(name).open("r+b") as file:
                rows[name] = _Rows(self.n_images, width, file, self._budget)
        self._numbers, self._bits = rows["numbers"], rows.get("bits")
        self.where, self.added, self.bytes = "file", self.n_images, self.n_images * sum(widths.values())


class _Rows:
    """Rows of bytes, in memory or mapped from a file; the mapping is resident within the budget."""

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
        """So many rows were read or written; beyond the budget the system may have their pages back."""
        self.resident += rows * self.width
        if self.mapping is not None and self.resident > self.most and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)  # of a shared file: what was written stays written
            self.resident = 0

    def flush(self) -> None:
        """Bring everything to the disk."""
        if self.mapping is not None:
            self.mapping.flush()


class _Named:
    """Files that a later run can find: ``KEY-TOKEN.numbers``, ``KEY-TOKEN.bits`` and, written last, ``KEY.json``.

    The token keeps apart two runs with the same key at the same time.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self.token = secrets.token_hex(8)

    def path(self, name: str) -> Path:
        return self.folder / f"{self.key}-{self.token}.{name}"

    @property
    def sidecar(self) -> Path:
        return self.folder / f"{self.key}.json"

    def create(self, name: str) -> IO[bytes]:
        return self.path(name).open("w+b")

    def seal(self, layout: Mapping[str, Any]) -> None:
        """Say that the files are complete."""
        sizes = {name: self.path(name).stat().st_size for name in ("numbers", "bits") if self.path(name).exists()}
        content = {"format": _FORMAT, "key": self.key, "token": self.token, "sizes": sizes, **layout}
        with written_whole(self.sidecar) as temporary:
            temporary.write_text(json.dumps(content))

    def sealed(self) -> dict[str, Any] | None:
        """The layout of complete files, which are this run's from now on; None if there are none."""
        content = self._said()
        if content is None or (content["format"], content["key"]) != (_FORMAT, self.key):
            return None
        found = {name: self.folder / f"{self.key}-{content['token']}.{name}" for name in content["sizes"]}
        if any(not path.is_file() or path.stat().st_size != content["sizes"][name] for name, path in found.items()):
            return None
        self.token = content["token"]
        return content

    def _said(self) -> dict[str, Any] | None:
        """What the sidecar says; None where it is missing or damaged."""
        try:
            content: dict[str, Any] = json.loads(self.sidecar.read_text())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) and {"format", "key", "token", "sizes"} <= set(content) else None

    def clear(self) -> None:
        """Remove what killed runs left under this key."""
        for path in [self.sidecar, *self.folder.glob(f"{self.key}-*")]:
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the files of this run."""
        said = self._said()
        if said is not None and said["token"] == self.token:
            self.sidecar.unlink(missing_ok=True)
        for name in ("numbers", "bits"):
            self.path(name).unlink(missing_ok=True)


def _bytes(pixels: Sequence[int]) -> int:
    """That as many bits take."""
    return -(-math.prod(pixels) // 8)


def _reserve(file: IO[bytes], size: int) -> None:
    """Claim the room now: a write into a mapping that finds the disk full kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)
