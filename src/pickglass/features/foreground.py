"""Good images of a fixed camera show where the part is, and where there is only background: one mask for all.

The border of the images says what background looks like, the "boundary prior" of saliency detection (Wei, Wen, Zhu and
Sun, "Geodesic Saliency Using Background Priors", ECCV 2012; templates from the border: Li, Lu, Zhang, Ruan and Yang,
"Saliency Detection via Dense and Sparse Reconstruction", ICCV 2013). Each cell of a fine layer of the frozen network is
measured against cells at the border of *other* images; a place is background only if no image ever shows anything else
there. AnomalyDINO (Damm, Laszkiewicz, Lederer and Fischer, WACV 2025) masks each image by the sign of its first
principal component and leaves the mask out where a look at one image speaks against it.

Where we depart, and why: one mask for all images, so that no part can be hidden by being unusual, and with a margin;
no principal component, which of this network took the holes of a perforated board for the part; and a self-check in
numbers instead of a look, that rather gives no mask than a doubtful one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from pickglass.data import MAX_PIXELS, Preprocess, Table, decode_all
from pickglass.errors import DataError
from pickglass.features.engine import BackboneEngine
from pickglass.features.extractor import FeatureExtractor
from pickglass.runtime.compute import EngineName

__all__ = ["Check", "Foreground", "find_foreground", "foreground_of", "in_pixels"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

_BACKBONE, _LAYER = "efficientnet_lite0", "stage2"  # a cell sees little, so that the part's outline is its own
_STRIDE = 4  # of that layer
_AREA = 256 * 256  # of the input, pixels
_AROUND = 32  # pixels of mirrored image: the network's zero padding makes cells at the border look alike
_IMAGES = 200  # more say little more
_BORDER = 2  # cells
_BANK = 500  # cells of the border
_COMMON = 0.25  # of the bank: what fills less of the border than this is not its ground
_USUAL = 0.995  # of the border's cells count as ground
_MARGIN = 3  # cells, about a twentieth of the shorter side
_LEAST = 0.05  # of a distance: below it, a rendered ground without noise

_MIN_IMAGES = 8
_MAX_SPREAD = 2.5
_MIN_SEPARATION = 1.5
_SHARES = (0.1, 0.9)
_MIN_IOU = 0.8
_MAX_OUTSIDE = 0.02


class Check(NamedTuple):
    """A check must hold before a mask can be trusted.

    Attributes:
        name: what is checked.
        value: what was measured; None: nothing could be.
        passed: whether the check holds.
        says: number and limit in a sentence.
    """

    name: str
    value: float | None
    passed: bool
    says: str


@dataclass(frozen=True)
class Foreground:
    """The foreground of a set of images is a mask, or the reason why there is none.

    Attributes:
        mask: (H, W) bool, True where the part may be, margin included; None where a check failed.
        share: part of the image inside what would be the mask, 0 to 1.
        n_images: how many images were looked at.
        checks: the self-check, in the order in which it is made.
        shown: path of an image -> (h, w) bool, the cells on which that image shows the part, holes filled; empty where
            there is no mask.
    """

    mask: Bools | None
    share: float
    n_images: int
    checks: tuple[Check, ...]
    shown: Mapping[str, Bools] = field(default_factory=dict)

    @property
    def why_not(self) -> str:
        """Say which checks failed, with their numbers; empty where none did."""
        return "; ".join(check.says for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """Return what the provenance of a model keeps."""
        numbers = {check.name: check.value for check in self.checks}
        return {"share": self.share, "n_images": self.n_images, "checks": numbers}


def find_foreground(
    table: Table,
    *,
    device: str = "cpu",
    engine: EngineName = "auto",
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Foreground:
    """Look for the part on good images; at most 200 of them, drawn at random, are read.

    Args:
        table: good images of a fixed camera, all of one size.
        device, engine: what runs the network, as of :class:`pickglass.features.engine.BackboneEngine`.
        workers, max_pixels: as of :func:`pickglass.data.decode`.
        seed: seeds what is drawn at random.
        progress: called with (stage, done, total).

    Raises:
        DataError: an image cannot be read, or there is none.
        WeightsMissing: those of EfficientNet-Lite0 are not here.

    >>> find_foreground(table).why_not  # doctest: +SKIP
    'the images have 12 sizes, e.g. 103x210 and 114x200: one mask needs one size'
    """
    if not table:
        raise DataError("there is no good image to find the foreground on")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(table))[:_IMAGES])
    rows = Table([table[int(i)] for i in drawn])
    network = FeatureExtractor(_BACKBONE, (_LAYER,))
    ready: BackboneEngine | None = None
    prepare: Preprocess | None = None
    cells: list[Floats] = []
    sizes: dict[tuple[int, int], None] = {}
    stage = "looking for the foreground"
    for _, image in decode_all(rows, lambda image, _: image, workers, max_pixels, progress=progress, stage=stage):
        height, width = image.shape[:2]
        sizes[height, width] = None
        if prepare is None or ready is None:
            prepare = Preprocess(_input_size((height, width)), network.interpolation)
            ready = BackboneEngine(network, device, engine)
        if len(sizes) == 1:
            cells.append(_cells(prepare(image), ready))
    if len(sizes) > 1:
        two = " and ".join(f"{h}x{w}" for h, w in list(sizes)[:2])
        says = f"the images have {len(sizes)} sizes, e.g. {two}: one mask needs one size"
        return Foreground(None, 1.0, len(rows), (Check("sizes", len(sizes), False, says),))
    (size,) = sizes
    return foreground_of(np.stack(cells), [row.unit for row in rows], size, seed, [row.path for row in rows])


def _input_size(image: tuple[int, int]) -> tuple[int, int]:
    """Choose about 256 x 256 pixels at the images' aspect, in steps of 32."""
    scale = math.sqrt(_AREA / (image[0] * image[1]))
    height, width = (max(64, 32 * round(side * scale / 32)) for side in image)
    return height, width


def _cells(image: Floats, engine: BackboneEngine) -> Floats:
    """Describe an image (3, H, W) in [0, 1] by (C, h, w), as if it went on beyond its border."""
    wide = np.pad(image, ((0, 0), (_AROUND, _AROUND), (_AROUND, _AROUND)), mode="reflect")
    level = engine(torch.from_numpy(wide)[None].to(engine.device))[0][0]  # (C, h, w) with what lies around
    n = _AROUND // _STRIDE
    inside: Floats = level[:, n:-n, n:-n].cpu().numpy()
    return inside


def foreground_of(
    cells: Floats, groups: list[str], image: tuple[int, int], seed: int = 0, names: Sequence[str] = ()
) -> Foreground:
    """Find the mask from features.

    Args:
        cells: (N, C, h, w) of good images; no zero padding may have touched those at the border.
        groups: group of each image; those of one group are never measured against each other.
        image: (H, W) of the images.
        seed: draws the halves and the cells.
        names: what the images are called, by which ``shown`` has the place of the part on each.
    """
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys(groups))
    half = dict(zip(names, rng.permutation(len(names)) % 2, strict=True))
    second = np.array([half[name] == 1 for name in groups])
    n = len(groups)
    fewest = int(2 * min(second.sum(), n - second.sum()))
    says = f"{n} images, of which each half has at least {fewest // 2}: expected {_MIN_IMAGES // 2} or more in each"
    enough = Check("images", float(n), fewest >= _MIN_IMAGES, says)
    if not enough.passed:
        return Foreground(None, 1.0, n, (enough,))
    distance, border = _distances(cells, second, rng)
    at_border = distance[:, border]
    usual = max(float(np.quantile(at_border, _USUAL)), _LEAST)
    other = distance > usual
    for shown in other:  # what is one cell wide is noise: a line of one pixel already fills more
        shown[:] = ndimage.binary_opening(shown, np.ones((2, 2)))
    halves = [_place(other[second]), _place(other[~second])]
    place = _grown(_place(other))
    share = float(place.mean())
    checks = [
        enough,
        _one_ground(usual / max(float(np.median(at_border)), _LEAST)),
        _apart(float(np.median(distance[other])) / usual if other.any() else None),
    ]
    if other.any():
        checks += [_room(share), *_agreement(halves[0], halves[1])]
    if not all(check.passed for check in checks):
        return Foreground(None, share, n, tuple(checks))
    shown = {name: _place(one[None]) for name, one in zip(names, other, strict=False)}
    return Foreground(in_pixels(place, image), share, n, tuple(checks), shown)


def _distances(cells: Floats, second: Bools, rng: np.random.Generator) -> tuple[Floats, Bools]:
    """Measure how far each cell (N, h, w) is from much of the other half's border; also return the border, (h, w)."""
    scaled = cells.transpose(0, 2, 3, 1)  # (N, h, w, C)
    scaled = (scaled - scaled.mean((0, 1, 2))) / (scaled.std((0, 1, 2)) + 1e-6)
    border = np.ones(scaled.shape[1:3], np.bool_)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    distance = np.empty(scaled.shape[:3], np.float32)
    for half in (second, ~second):
        ground = scaled[~half][:, border].reshape(-1, scaled.shape[3])
        ground = ground[rng.permutation(len(ground))[:_BANK]]
        nth = max(1, round(_COMMON * len(ground)))
        for i in np.flatnonzero(half):
            to_all = torch.cdist(torch.from_numpy(scaled[i].reshape(-1, scaled.shape[3])), torch.from_numpy(ground))
            distance[i] = to_all.kthvalue(nth, dim=1).values.numpy().reshape(border.shape)  # (h w) -> (h, w)
    return distance, border


def _place(other: Bools) -> Bools:
    """Mark where any image (N, h, w) shows something else than ground, or what that surrounds: (h, w)."""
    filled: Bools = ndimage.binary_fill_holes(other.any(axis=0))
    return filled


def _grown(place: Bools) -> Bools:
    grown: Bools = ndimage.binary_dilation(place, np.ones((3, 3)), iterations=_MARGIN)
    return grown


def _one_ground(spread: float) -> Check:
    says = (
        f"the border of the images does not show one even ground: its unusual cells are {spread:.2f} times as far from "
        f"it as its usual ones, expected at most {_MAX_SPREAD:g} (a structured ground, or a part that reaches it)"
    )
    return Check("spread of the border", spread, spread <= _MAX_SPREAD, says)


def _apart(separation: float | None) -> Check:
    if separation is None:
        return Check(
            "separation", None, False, "nothing stands out from what the border shows: no part, or no background"
        )
    says = (
        f"part and background are not well apart: what is not background is {separation:.2f} times as far from it as "
        f"background ever is, expected at least {_MIN_SEPARATION:g}"
    )
    return Check("separation", separation, separation >= _MIN_SEPARATION, says)


def _room(share: float) -> Check:
    low, high = _SHARES
    says = f"the mask covers {share:.0%} of the image, expected {low:.0%} to {high:.0%}"
    return Check("share", share, low <= share <= high, says)


def _agreement(first: Bools, second: Bools) -> tuple[Check, Check]:
    """Compare what each half of the images says of the other's part."""
    union = int((first | second).sum())
    iou = float((first & second).sum() / union) if union else 0.0
    lost = max(float((a & ~_grown(b)).sum() / max(1, a.sum())) for a, b in ((first, second), (second, first)))
    return (
        Check(
            "agreement of halves",
            iou,
            iou >= _MIN_IOU,
            f"two halves of the images disagree on where the part is: IoU {iou:.2f}, expected at least {_MIN_IOU:g}",
        ),
        Check(
            "outside the other half",
            lost,
            lost <= _MAX_OUTSIDE,
            f"{lost:.1%} of the part in one half of the images lies outside the mask of the other half, expected at "
            f"most {_MAX_OUTSIDE:.0%}",
        ),
    )


def in_pixels(place: Bools, image: tuple[int, int]) -> Bools:
    """Enlarge cells (h, w) to pixels (H, W)."""
    rows, columns = (np.arange(n) * cells // n for n, cells in zip(image, place.shape, strict=True))
    pixels: Bools = place[np.ix_(rows, columns)]
    return pixels
