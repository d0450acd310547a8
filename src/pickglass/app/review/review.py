"""A data set is looked through with models: it is read once and judged in the background, the asked model first.

Everything that takes long runs in one thread of its own. Scores are published as they come, in the order in which they
came, so a reader asks for what is new since the last time. What was judged before the program ended stands in the
:class:`~pickglass.app.review.store.JudgedStore` and is there at once.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from pickglass.app.pages.images import QUALITY, colour_range, display, heat, picture_size, shrink_max, thumbnail
from pickglass.app.review.store import Judged, JudgedStore, small_map
from pickglass.app.testing.selection import select
from pickglass.app.watch.model import LoadedModel
from pickglass.data import MARGINS, Dataset, DataSource, Row, Table, image_digest
from pickglass.data.images.geometry import resize_map
from pickglass.errors import ImageError, InputError, PickglassError, UnknownName
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions

__all__ = ["Published", "Review", "ReviewedData", "Stage", "scores_key"]

Stage = Literal["reading", "waiting", "judging", "done", "failed"]

THUMBNAIL = 192  # px, longest side
_LOOKS = 5.0  # seconds; who has not asked for so long looks no more
_SECONDS = 1.0  # between two times that scores are written to the file

_LOG = logging.getLogger("pickglass.review")


@dataclass(frozen=True)
class ReviewedData:
    """The images of a data set as they were when it was read.

    Attributes:
        key: another one each time that the data set is read.
        dataset: all of it.
        rows: its images, also those of which nothing is known.
        names: a name for each image that tells it from the others and gives no folder of the machine away.
        times: when each file was last changed, in seconds since 1970; None for an image that is no file.
    """

    key: str
    dataset: Dataset
    rows: tuple[Row, ...]
    names: tuple[str, ...]
    times: tuple[float | None, ...]
    digests: list[str | None] = field(repr=False)

    def row(self, index: int) -> Row:
        """Return an image.

        Raises:
            UnknownName: there is none with this number.
        """
        if not 0 <= index < len(self.rows):
            raise UnknownName("image", index, [], f"there are {len(self.rows)}, numbered from 0 on")
        return self.rows[index]

    def digest(self, index: int) -> str:
        """Return the SHA-256 of an image's file or pixels.

        Raises:
            ImageError: the file cannot be read.
        """
        known = self.digests[index]
        if known is None:
            known = self.digests[index] = image_digest(self.row(index))
        return known


@dataclass
class Published:
    """What one model gave the images so far.

    Attributes:
        model: what scores are kept under, see :func:`scores_key`.
        stage: where the work is.
        scores: raw score of each image, None where there is none (yet).
        order: the images that have a score or an error, in the order in which they came.
        errors: why images have no score.
        outside: images that do not judge the model, because it was taught by them or may have been.
        left_out: how many these are, and why, in sentences.
        error: why the work stopped.
    """

    model: str
    scores: list[float | None]
    peaks: list[float | None]
    stage: Stage = "waiting"
    order: list[int] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    outside: frozenset[int] | None = None
    left_out: tuple[str, ...] = ()
    error: str | None = None


def scores_key(model: LoadedModel) -> str:
    """Return the name under which the scores of a model are kept: two models with one name give the same scores."""
    header: Mapping[str, Any] = getattr(model.detector, "header", {})
    precision = header.get("precision", "float32")
    return model.id if precision == "float32" else f"{model.id}-{precision}"


class Review:
    """A data set that models are judged on in the background.

    Args:
        source: the data set, and how it is read.
        store: where scores and thumbnails are kept; closed with the review.
        compute: where to compute.

    Attributes:
        error: why the data set cannot be read.

    Example:
        ``data, published = Review(source, store).ask(model)``
    """

    def __init__(self, source: DataSource, store: JudgedStore, compute: ComputeOptions | None = None) -> None:
        self.source = source
        self.store = store
        self.compute = compute or ComputeOptions()
        self.error: str | None = None
        self._data: ReviewedData | None = None
        self._asked: dict[str, _Asked] = {}
        self._published: dict[str, Published] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    # -- for readers ---------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> ReviewedData | None:
        """Wait for the data set to be read, and return its images; None: it takes longer, or cannot be read."""
        self._start()
        with self._changed:
            self._changed.wait_for(lambda: not self._to_read() or self._closed, seconds)
            return self._data

    def _start(self) -> None:
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="pickglass-review", daemon=True)
                self._thread.start()

    def ask(self, model: LoadedModel) -> tuple[ReviewedData | None, Published | None]:
        """Say that a person looks at the data set with this model now.

        Returns:
            The images, and what the model gave them so far; both None while the data set is being read, or where it
            cannot be (see ``error``).
        """
        self._start()
        with self._changed:
            key = scores_key(model)
            published = self._publish(key)
            self._asked[key] = _Asked(model, time.monotonic())
            self._asked = {name: one for name, one in self._asked.items() if name == key or self._is_left(name)}
            self._changed.notify_all()
            return self._data, published

    def reload(self) -> None:
        """Read the data set again: files were added, removed or changed."""
        with self._changed:
            self._data, self.error = None, None
            self._published.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """End the work, and keep what was done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.store.close()

    def judged(self, model: str, index: int) -> Judged | None:
        """Return what a model gave an image, with the small map, None where it was not judged."""
        data = self._read_data()
        return self.store.judged(model, _image_key(data.row(index), data.digest(index)))

    def picture(self, index: int, model: str | None = None, threshold: float | None = None) -> bytes:
        """Return the thumbnail of an image as a JPEG file; it is made once.

        Args:
            index: number of the image.
            model: draw the heat map of this model over it, where the image was judged; see :func:`scores_key`.
            threshold: the model's pixel threshold, by which all heat maps have the same colours.

        Raises:
            ImageError: the image cannot be read.
        """
        data = self._read_data()
        row, digest = data.row(index), data.digest(index)
        content = self.store.thumbnail(digest)
        if content is None:
            pixels = row.image(self.compute.max_pixels)
            content = _jpeg(thumbnail(display(pixels), picture_size(pixels.shape[0], pixels.shape[1], THUMBNAIL)))
            self.store.keep_thumbnail(digest, content)
        found = None if model is None else self.judged(model, index)
        if found is None or found.map is None:
            return content
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        values = found.map.values()
        size = (pixels.shape[0], pixels.shape[1])
        fine = (max(size[0], values.shape[0]), max(size[1], values.shape[1]))
        scale = colour_range(threshold, [] if threshold else [values])
        return _jpeg(heat(pixels, shrink_max(resize_map(values, fine), size), scale))

    def _read_data(self) -> ReviewedData:
        if self._data is None:
            raise InputError(self.error or "the data set is still being read: try again in a moment")
        return self._data

    def _publish(self, key: str) -> Published | None:
        if self._data is None:
            return None
        if key not in self._published:
            n = len(self._data.rows)
            self._published[key] = Published(key, [None] * n, [None] * n)
        return self._published[key]

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._to_read() or self._next() is not None)
                if self._closed:
                    return
                data, model = self._data, self._next()
            if data is None:
                self._read()
            elif model is not None:
                self._advance(data, model)

    def _to_read(self) -> bool:
        return self._data is None and self.error is None

    def _next(self, now: LoadedModel | None = None) -> LoadedModel | None:
        """Return the model to go on with: ``now``, unless nobody looks any more and somebody looks with another."""
        left = [one for key, one in self._asked.items() if self._is_left(key)]
        if not left or self._data is None:
            return None
        latest = max(one.time for one in left)
        looked = [one.model for one in left if latest - one.time < _LOOKS]
        return now if now is not None and any(model is now for model in looked) else looked[0]

    def _is_left(self, key: str) -> bool:
        """Say whether a model has not judged all images."""
        return key not in self._published or self._published[key].stage in ("waiting", "judging")

    def _read(self) -> None:
        data, error = None, None
        try:
            dataset = self.source.load(training=False)
            rows = tuple(self.source.placed(dataset.table + dataset.private))
            times = tuple(_changed(row) for row in rows)
            known = self.store.digests()
            digests = [_known_digest(row, known) for row in rows]
            data = ReviewedData(secrets.token_hex(4), dataset, rows, _names(rows, dataset.root), times, digests)
        except PickglassError as problem:
            error = str(problem)
        except Exception:
            _LOG.exception("the data set cannot be read")
            error = "the data set cannot be read; the server's log says why"
        with self._changed:
            self._data, self.error = data, error
            self._changed.notify_all()

    def _advance(self, data: ReviewedData, model: LoadedModel) -> None:
        """Judge images until all are judged, another model is asked for, or the review ends."""
        with self._changed:
            published = self._publish(scores_key(model))
            if published is None or self._data is not data:
                return
        try:
            published.stage = "judging"
            if published.outside is None:
                self._begin(data, model, published)
            self._judge(data, model, published)
        except PickglassError as error:
            published.stage, published.error = "failed", str(error)
        except Exception:
            _LOG.exception("the data set cannot be judged")
            published.stage, published.error = "failed", "the images cannot be judged; the server's log says why"

    def _begin(self, data: ReviewedData, model: LoadedModel, published: Published) -> None:
        """Find out which images judge the model, and take up the scores that are known."""
        self.store.begin(published.model)
        fair = select(data.dataset, [model.detector.provenance])
        paths = {row.path for row in (*fair.table, *data.dataset.private)}
        published.left_out = tuple(
            f"{n} {'image does' if n == 1 else 'images do'} not count: {reason}." for reason, n in fair.left_out.items()
        )
        published.outside = frozenset(i for i, row in enumerate(data.rows) if row.path not in paths)
        self._take_up(data, published, range(len(data.rows)))

    def _take_up(self, data: ReviewedData, published: Published, images: Sequence[int]) -> None:
        """Publish the scores of images that are known from before."""
        known = self.store.scores(published.model)
        for i in images:
            digest = data.digests[i]
            found = None if digest is None else known.get(_image_key(data.rows[i], digest))
            if found is not None:
                _set(published, i, found.score, found.peak)

    def _judge(self, data: ReviewedData, model: LoadedModel, published: Published) -> None:
        done = set(published.order)
        outside = published.outside or frozenset()
        left = [i for i in range(len(data.rows)) if i not in done]
        left.sort(key=lambda i: i in outside)  # the images that people came for are those that judge the model
        unread = [i for i in left if data.digests[i] is None]
        if unread:
            self._read_digests(data, published, unread)
            self._take_up(data, published, unread)
        done = set(published.order)
        left = [i for i in left if i not in done]
        fresh: dict[int, Judged] = {}
        stream = model.detector.stream(Table([data.rows[i] for i in left]), **self.compute.arguments())
        written = time.monotonic()
        try:
            for i, item in zip(left, stream, strict=True):
                if self._is_over(data, model):
                    return
                if isinstance(item, Found):
                    fresh[i] = Judged(item.score, float(item.map.max()), small_map(item))
                else:
                    _fail(published, i, item.error)
                if time.monotonic() - written > _SECONDS:
                    self._write(data, published, fresh)
                    written = time.monotonic()
        finally:
            closing = getattr(stream, "close", None)
            if closing is not None:  # ends the threads that decode
                closing()
            self._write(data, published, fresh)
        published.stage = "done"

    def _read_digests(self, data: ReviewedData, published: Published, images: Sequence[int]) -> None:
        """Read files whose digest is not known, and keep it."""
        known: list[tuple[str, int, int, str]] = []
        for i in images:
            if self._is_over(data, None):
                break
            try:
                digest = data.digest(i)
            except ImageError as error:
                _fail(published, i, error.reason)
                continue
            row = data.rows[i]
            if row.pixels is None:
                stat = os.stat(row.path)
                known.append((row.path, stat.st_size, stat.st_mtime_ns, digest))
        self.store.keep_digests(known)

    def _write(self, data: ReviewedData, published: Published, fresh: dict[int, Judged]) -> None:
        """Keep scores in the file, then publish them: what a person has seen is there after a restart."""
        self.store.keep(published.model, {_image_key(data.rows[i], data.digest(i)): one for i, one in fresh.items()})
        for i, one in fresh.items():
            _set(published, i, one.score, one.peak)
        fresh.clear()

    def _is_over(self, data: ReviewedData, model: LoadedModel | None) -> bool:
        """Say whether the review ends, the data set is read anew, or another model comes first."""
        if self._closed or self._data is not data:
            return True
        with self._changed:
            return model is not None and self._next(model) is not model


class _Asked(NamedTuple):
    """Somebody asked for the scores of a model at this time."""

    model: LoadedModel
    time: float


def _set(published: Published, index: int, score: float, peak: float) -> None:
    published.scores[index], published.peaks[index] = score, peak
    published.order.append(index)  # last: a reader takes what stands in the order


def _fail(published: Published, index: int, why: str) -> None:
    published.errors[index] = why
    published.order.append(index)


# -- images ------------------------------------------------------------------------------------------------------------


def _changed(row: Row) -> float | None:
    try:
        return None if row.pixels is not None else os.stat(row.path).st_mtime
    except OSError:  # judging it says so
        return None


def _known_digest(row: Row, known: Mapping[str, tuple[int, int, str]]) -> str | None:
    """Return the digest of a file that has not changed since it was read."""
    if row.pixels is not None or row.path not in known:
        return None
    size, changed, digest = known[row.path]
    try:
        stat = os.stat(row.path)
    except OSError:
        return None
    return digest if (stat.st_size, stat.st_mtime_ns) == (size, changed) else None


def _image_key(row: Row, digest: str) -> str:
    """Return what a score is kept under: the image, and the region of interest if it has one."""
    if row.roi is None:
        return digest
    if isinstance(row.roi, np.ndarray):
        region = (row.roi > 0).tobytes()
    else:
        region = MARGINS.encode() if row.roi == MARGINS else Path(row.roi).read_bytes()
    return f"{digest}-{hashlib.sha256(region).hexdigest()[:16]}"


def _names(rows: Sequence[Row], root: str) -> tuple[str, ...]:
    """Name images by their place in the data set's folder, each one otherwise.

    >>> _names([Row("/data/a/good/1.png"), Row("array:0", pixels=b""), Row("array:0", pixels=b"")], "/data/a")
    ('good/1.png', 'array:0', 'array:0 (2)')
    """
    names: dict[str, None] = {}
    for row in rows:
        name = row.path if row.pixels is not None else Path(os.path.relpath(row.path, root)).as_posix()
        again = 1
        while (unique := name if again == 1 else f"{name} ({again})") in names:
            again += 1
        names[unique] = None
    return tuple(names)


def _jpeg(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
