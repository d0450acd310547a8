"""The advisor judges by good images that were held back and painted with defects, since no real defect is known.

Each image is decoded once. What the network reads is made at once for every size of the input; of the original pixels
only a window stays, in which maps are judged, so that images of any size fit into the memory.

Letters: H x W pixels of the original image, h x w of the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pickglass.app.advise.request import AdviseRequest
from pickglass.data import Preprocess, Role, Row, Table, decode_all, paint, split_roles
from pickglass.data.painting.defects import WITH_WIDTH, Kind
from pickglass.data.painting.softness import edge_spread
from pickglass.errors import DataError, InputError
from pickglass.features.foreground import Foreground, in_pixels
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = [
    "Brush",
    "Judged",
    "PaintedSet",
    "as_input",
    "brush_of",
    "choose_rows",
    "decoded",
    "judged_image",
    "paint_set",
    "rows_of",
]

Size = tuple[int, int]

CONTRASTS = (1.0, 0.6, 0.3)
AROUND = (1.5, 1.0, 0.7)
"""How strong defects are painted, times the contrast at which the default of ``fit`` finds half of one."""

MOST_FIT = 20  # images that teach,
MOST_HELD = 10  # that are held back,
MOST_PAINTED = 28  # and defects painted on these: more say little more, and take the time of it
_WINDOW = 512  # px
_OK_PIXELS = 16_000  # of a window that count as good ground
_HELD_SHARE = 1 / 3
_SOFTNESS = 8  # images that say how soft edges are
_USUAL_SPREAD = 1.0  # px, of a good lens in focus: where the images show no edge that says more
_TRIES = 40  # places for a defect in a region of interest
_INSIDE = 0.9  # of it


@dataclass(frozen=True)
class Brush:
    """What is painted: defects of one size, as soft as the images, on the part.

    Attributes:
        size_px, width_px: length and width in pixels of the original images; no width: as each kind has it.
        spread_px: standard deviation of their edges.
        measured: whether the images said so, or hardly show an edge.
        part: (H, W) bool, where parts may lie on all images; None: anywhere, or in the region of interest of a row.
        seed: decides places and shapes.
        shown: path of an image -> (h, w) bool, the cells on which that image shows the part.
    """

    size_px: float
    width_px: float | None
    spread_px: float
    measured: bool
    part: NDArray[np.bool_] | None
    seed: int
    shown: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def paint(
        self, row: Row, pixels: NDArray[np.uint8], turn: int, kind: Kind, contrast: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Paint a defect, inside the region of interest where there is one; return image and mask.

        Args:
            row, pixels: a good image.
            turn: the same number gives the same shape at the same place, at any contrast.
            kind, contrast: of the defect.

        Raises:
            InputError: it cannot be painted.
        """
        rng = np.random.default_rng([self.seed, turn])
        region = row.region(pixels)
        if region is None and self.part is not None and self.part.shape == pixels.shape[:2]:
            region = self.part
            if row.path in self.shown:
                region = region & in_pixels(self.shown[row.path], (pixels.shape[0], pixels.shape[1]))
        width = self.width_px if kind in WITH_WIDTH else None
        for _ in range(_TRIES):
            done = paint(pixels, kind, self.size_px, rng, contrast, width_px=width, spread_px=self.spread_px)
            if region is None or bool(region[done.mask].mean() >= _INSIDE):
                return done.image, done.mask
        raise InputError(f"where to look on {row.path} there is no room for a defect of {self.size_px:g} px")


def brush_of(
    request: AdviseRequest,
    taught: Table,
    part: NDArray[np.bool_] | Foreground | None,
    compute: ComputeOptions,
) -> Brush:
    """Make the brush for a request, as soft as some of the good images are, for the part where one was found."""
    found = part if isinstance(part, Foreground) else None
    mask = part.mask if isinstance(part, Foreground) else part
    images = (pixels for _, pixels in decoded(taught[:_SOFTNESS], compute, None, "reading images"))
    spread = edge_spread(images)
    measured = spread is not None
    return Brush(
        request.defect_px,
        request.width_px,
        _USUAL_SPREAD if spread is None else spread,
        measured,
        mask,
        request.seed,
        {} if found is None else found.shown,
    )


@dataclass(frozen=True)
class Judged:
    """One image that candidates are judged by, good or with a painted defect.

    Attributes:
        path: path of the image that it was made from.
        group: images of one group are drawn together by the bootstrap.
        image: (H, W) of the original.
        window: top, left, height, width of the part that maps are judged in, in pixels of the original.
        mask: (h, w) bool; None: a good image.
        keep: (h, w) bool, the pixels that count.
        pixels: (h, w) or (h, w, 3) uint8, to be shown.
        kind, contrast: of the defect; None: a good image.
        factor: its contrast in units of that at which the default of ``fit`` finds half of such a defect.
    """

    path: str
    group: str
    image: Size
    window: tuple[int, int, int, int]
    mask: NDArray[np.bool_] | None
    keep: NDArray[np.bool_]
    pixels: NDArray[np.uint8]
    kind: str | None = None
    contrast: float | None = None
    factor: float | None = None


@dataclass(frozen=True)
class PaintedSet:
    """The images that teach and those to judge by, ready for inputs of several sizes.

    Attributes:
        judged: the images to judge by: each held back as it is, then painted ones.
        fit: (H, W) of the input -> rows to teach with, their pixels as the network reads them.
        test: (H, W) of the input -> rows in the order of ``judged``.
        skipped: why a defect could not be painted, once each.
        brush: what was painted with.
        groups, kinds: of the images judged, in their order.
    """

    judged: tuple[Judged, ...]
    fit: dict[Size, Table]
    test: dict[Size, Table]
    skipped: tuple[str, ...] = ()
    brush: Brush | None = None
    groups: tuple[str, ...] = field(init=False)
    kinds: tuple[str | None, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(one.group for one in self.judged))
        object.__setattr__(self, "kinds", tuple(one.kind for one in self.judged))


def choose_rows(table: Table, seed: int, fit: int = MOST_FIT, held: int = MOST_HELD) -> tuple[Table, Table]:
    """Choose good images that teach and good images that are held back, of different groups.

    Raises:
        DataError: fewer than four images, or all of one group.
    """
    good = table.where(lambda row: row.role != "test" and row.label != 1)
    whole = Table([replace(row, role="train") for row in good])
    divided = split_roles(whole, _HELD_SHARE, 0.0, seed)
    parts = divided.role("fit"), divided.role("validate")
    if len(good) < 4 or not all(map(len, parts)):
        raise DataError(
            f"{len(good)} good images of which {len(parts[1])} can be held back: the advisor needs at least 4, of two "
            "groups or more"
        )
    rng = np.random.default_rng(seed)
    taught, kept = (
        Table([part[i] for i in sorted(rng.permutation(len(part))[:most])])
        for part, most in zip(parts, (fit, held), strict=True)
    )
    return taught, kept


def paint_set(
    rows: tuple[Table, Table],
    brush: Brush,
    prepares: Sequence[Preprocess],
    contrasts: Mapping[Kind, float],
    *,
    painted: int = MOST_PAINTED,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> PaintedSet:
    """Decode the images, paint on those that are held back, and prepare all of them for every size of the input.

    Args:
        rows: that teach, and that are held back; see :func:`choose_rows`.
        brush: what to paint with.
        prepares: one a size; they squeeze.
        contrasts: the kinds, taken in turn, and for each the contrast around which it is painted, see :data:`AROUND`.
        painted: defects in all, at least one an image.

    Raises:
        DataError: an image cannot be read, or no defect could be painted.
    """
    run = compute or ComputeOptions()
    taught, held = rows
    fit: dict[Size, list[Row]] = {prepare.size: [] for prepare in prepares}
    for row, pixels in decoded(taught, run, progress, "reading images"):
        for prepare in prepares:
            fit[prepare.size].append(as_input(prepare, row, pixels, "fit"))
    good: list[tuple[Judged, list[Row]]] = []
    bad: list[tuple[Judged, list[Row]]] = []
    kinds = list(contrasts)
    skipped: dict[str, None] = {}
    turns = max(painted, len(held))
    for i, (row, pixels) in enumerate(decoded(held, run, progress, "painting defects")):
        rng = np.random.default_rng([brush.seed, i, 1])
        whole = judged_image(row, pixels, None, rng)
        good.append((whole, [as_input(prepare, row, pixels, "test") for prepare in prepares]))
        for turn in range(i, turns, len(held)):
            kind = kinds[turn % len(kinds)]
            factor = AROUND[(turn % len(kinds) + turn // len(kinds)) % len(AROUND)]
            contrast = factor * contrasts[kind]
            try:
                image, mask = brush.paint(row, pixels, turn, kind, contrast)
            except InputError as error:
                skipped[str(error)] = None
                continue
            one = judged_image(row, image, mask, rng, before=pixels)
            one = replace(one, kind=kind, contrast=contrast, factor=factor)
            bad.append((one, [as_input(prepare, row, image, "test", f"{row.path}#{turn}") for prepare in prepares]))
    if not bad:
        raise DataError(
            f"no defect of {brush.size_px:g} px could be painted on the {len(held)} images: {', '.join(skipped)}"
        )
    both = [*good, *bad]
    test = {prepare.size: Table([made[i] for _, made in both]) for i, prepare in enumerate(prepares)}
    return PaintedSet(
        tuple(one for one, _ in both), {s: Table(part) for s, part in fit.items()}, test, tuple(skipped), brush
    )


def rows_of(table: Table, prepare: Preprocess, role: Role, compute: ComputeOptions) -> Table:
    """Make rows of good images whose pixels are the input of one network already."""
    return Table(
        [as_input(prepare, row, pixels, role) for row, pixels in decoded(table, compute, None, "reading images")]
    )


def as_input(prepare: Preprocess, row: Row, pixels: NDArray[np.uint8], role: Role, path: str | None = None) -> Row:
    """Make a row whose pixels are the network's input already, region of interest included.

    Args:
        prepare: squeezes to the size of the input.
        row: the image.
        pixels: its pixels, or its pixels with a defect painted on.
        role: the role of the new row.
        path: name of the new row, if it shows a defect; None: that of the image, which is good.
    """
    canvas = (prepare(pixels).transpose(1, 2, 0) * 255).round().astype(np.uint8)  # (H, W, 3)
    region = row.region(pixels)
    roi = None if region is None else prepare.kept((pixels.shape[0], pixels.shape[1]), region)
    return replace(row, path=path or row.path, pixels=canvas, roi=roi, role=role, label=int(path is not None))


def decoded(
    table: Table, run: ComputeOptions, progress: Progress | None, stage: str
) -> Iterator[tuple[Row, NDArray[np.uint8]]]:
    """Yield (row, 8-bit pixels) of each image, in order."""
    pixels = decode_all(table, lambda image, _: image, run.workers, run.max_pixels, progress=progress, stage=stage)
    return ((row, _eight_bits(image)) for row, image in pixels)


def _eight_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert an image to 8 bits, the only depth that painting knows."""
    if image.dtype == np.uint8:
        return image
    unit = image if image.dtype == np.float32 else image.astype(np.float32) / 65535
    bytes_: NDArray[np.uint8] = (unit * 255).round().astype(np.uint8)
    return bytes_


def judged_image(
    row: Row,
    pixels: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
    rng: np.random.Generator,
    before: NDArray[np.uint8] | None = None,
) -> Judged:
    """Cut the window to judge in out of an image: around its defect, moved at random, or anywhere on a good one.

    Args:
        row: the image.
        pixels: its pixels, with the defect.
        mask: (H, W) bool, the defect; None: there is none.
        rng: decides the window and which pixels of good ground count.
        before: its pixels without the defect; what else differs, the skirt of a soft defect, counts as nothing.
    """
    height, width = pixels.shape[:2]
    ys, xs = np.nonzero(np.zeros((1, 1)) if mask is None else mask)
    extent = max(int(np.ptp(ys)), int(np.ptp(xs))) + 1 if len(ys) else 0
    h, w = (min(n, max(_WINDOW, 2 * extent)) for n in (height, width))
    low, high = (0, 0), (height - h, width - w)
    if len(ys):
        ends = ((ys.min(), ys.max() + 1), (xs.min(), xs.max() + 1))
        low = tuple(max(0, min(end - n, limit)) for (_, end), n, limit in zip(ends, (h, w), high, strict=True))
        high = tuple(max(at, min(start, limit)) for (start, _), at, limit in zip(ends, low, high, strict=True))
    top, left = (int(rng.integers(a, b + 1)) for a, b in zip(low, high, strict=True))
    part = (slice(top, top + h), slice(left, left + w))
    inside = None if mask is None else mask[part].copy()
    keep = rng.random((h, w)) < _OK_PIXELS / (h * w)
    if inside is not None:
        if before is not None:
            keep &= (pixels[part] == before[part]).reshape(h, w, -1).all(axis=2)
        keep |= inside
    region = row.region(pixels)
    if region is not None:
        keep &= region[part]
    return Judged(
        row.path,
        row.unit,
        (height, width),
        (top, left, h, w),
        inside,
        keep,
        pixels[part].copy(),
    )
