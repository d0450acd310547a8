"""The reverse question: from which size and contrast on does a finished model see a defect?

Defects of many sizes are painted on good images, each at one place in several contrasts, and the model judges them with
its own threshold. Nothing is learned and nothing is set.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickglass.app.advise.advise import check_extent
from pickglass.app.advise.painted import Brush, brush_of, decoded
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.visibility import CONTRASTS, Place, first_seen
from pickglass.app.advise.within_foreground import look_for_part
from pickglass.app.models import AnyModel, as_model
from pickglass.app.pages.sight import SeenDefect, write_sight
from pickglass.app.results import SeenSize, SightResult
from pickglass.data import DataSource, Row, Table, short_names, usual_size
from pickglass.data.files import output_path
from pickglass.data.painting.defects import Kind
from pickglass.errors import DataError, InputError
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["sight"]

_SMALLEST = 4.0  # px
_MOST_SIZES = 6
_IMAGES = 14
_PLACES = 2  # of each kind at each size
_SHARE = 0.5  # of the shorter side, the largest size
_PICTURES = 6

Pixels = NDArray[np.uint8]


class _Looked(NamedTuple):
    """What was painted last at a place, and whether the model saw it."""

    pixels: Pixels
    mask: NDArray[np.bool_]
    contrast: float
    seen: bool


def sight(
    model: str | Path | AnyModel,
    data: DataSource | str | Path,
    request: AdviseRequest | None = None,
    report: str | Path | None = None,
    *,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> SightResult:
    """Find from which size and contrast on a model flags a defect, by painting on good images.

    At most 14 good images are painted on, those first that the model was not fitted on. A defect is seen where the
    model's verdict on the image turns from good to bad or unsure.

    Args:
        model: a fitted detector, an exported model, or the file of one; with a threshold.
        data: folder with good images; defective ones are not read.
        request: the size of the defect, 0 for six sizes from 4 pixels to half of the images' shorter side; kinds and
            seed. None: all as it is by default.
        report: HTML page to write.
        compute: where to compute.
        progress: called with (stage, done, total).

    Raises:
        InputError: the model has no threshold, flags every good image, or the defect cannot be painted.
        DataError: there is no good image, or one cannot be read.
    """
    began = time.perf_counter()
    page = None if report is None else output_path(report, ".html")
    run, loaded = compute or ComputeOptions(), as_model(model)
    source = DataSource.of(data)
    dataset = source.load()
    good = source.placed(dataset.table).where(lambda row: row.label != 1)
    rows, fresh = _drawn(good, loaded, 0 if request is None else request.seed)
    image = usual_size(rows)
    wished = request or AdviseRequest(0)
    sizes = [wished.defect_px] if wished.defect_px else _sizes(image)
    check_extent(replace(wished, defect_px=sizes[0]), image)
    images = list(decoded(rows, run, progress, "reading images"))
    calm, flagged, roi = _calm(loaded, images, run)
    alone = roi is None and all(row.roi is None for row in rows)
    found = look_for_part(rows, wished.seed, run, progress) if alone else None
    brush = brush_of(wished, rows, found or roi, run)
    told: list[SeenSize] = []
    shown: list[SeenDefect] = []
    pixel_mm = (
        source.pixel_mm or next((row.pixel_mm for row in rows if row.pixel_mm), None) or loaded.provenance.pixel_mm
    )
    for n, size in enumerate(sizes, start=1):
        seen, looked = _seen_at(loaded, replace(brush, size_px=size), calm, wished.kinds, run)
        told.append(_of_size(size, wished.width_px, pixel_mm, seen))
        shown += _pictures(size, looked, n, _PICTURES // len(sizes) or 1)
        if progress is not None:
            progress("painting defects", n, len(sizes))
    smallest = _smallest(told)
    result: SightResult = {
        "model": str(model) if isinstance(model, (str, Path)) else loaded.title,
        "method": loaded.method,
        "image": list(image),
        "n_images": len(calm),
        "n_fresh": fresh,
        "n_flagged": flagged,
        "kinds": list(wished.kinds),
        "sizes": told,
        "smallest_px": smallest,
        "smallest_mm": None if smallest is None or pixel_mm is None else smallest * pixel_mm,
        "spread_px": brush.spread_px,
        "part": None if found is None or found.mask is None else found.share,
        "limits": _limits(brush, wished.kinds, len(rows), fresh, flagged, found is not None and found.mask is None),
        "seconds": time.perf_counter() - began,
        "report": None if page is None else str(page),
    }
    if page is not None:
        write_sight(page, dataset.name, result, shown)
    return result


def _drawn(good: Table, model: AnyModel, seed: int) -> tuple[Table, int]:
    """Draw the images to paint on, and say how many of them the model was not fitted on."""
    if not good:
        raise DataError("there is no good image to paint defects on")
    unseen = {row.path for row in model.provenance.unseen(good)} if model.provenance.fitted_images else set()
    order = np.random.default_rng(seed).permutation(len(good))
    mixed = sorted((good[int(i)] for i in order), key=lambda row: row.path not in unseen)[:_IMAGES]
    return Table([replace(row, role="train") for row in mixed]), sum(row.path in unseen for row in mixed)


def _sizes(image: tuple[int, int]) -> list[float]:
    """Double the size from 4 pixels on, at most six times, up to half of the shorter side."""
    most = max(_SMALLEST, _SHARE * min(image))
    return [_SMALLEST * 2**i for i in range(_MOST_SIZES) if _SMALLEST * 2**i <= most]


def _calm(
    model: AnyModel, images: Sequence[tuple[Row, Pixels]], compute: ComputeOptions
) -> tuple[list[tuple[Row, Pixels]], int, NDArray[np.bool_] | None]:
    """Keep the images that the model calls good as they are; also count the others, and return where it looks."""
    calibration = model.current_calibration()
    if calibration is None or calibration.image_threshold is None:
        raise InputError(
            "the model has no threshold, so it sees nothing and misses nothing: set one with 'pickglass threshold'"
        )
    judged = _judged(model, [replace(row, pixels=pixels) for row, pixels in images], compute)
    calm = [one for one, found in zip(images, judged, strict=True) if calibration.verdict(found.score) == "good"]
    if not calm:
        names = ", ".join(short_names([row.path for row, _ in images])[:3])
        raise InputError(
            f"the model flags all {len(images)} good images ({names} ...), with or without a defect: set its threshold "
            "on good images with 'pickglass threshold' first"
        )
    same = len({pixels.shape[:2] for _, pixels in images}) == 1
    return calm, len(images) - len(calm), judged[0].inside() if same else None


def _judged(model: AnyModel, rows: Sequence[Row], compute: ComputeOptions) -> Sequence[Found]:
    prediction = model.predict(Table(rows), **compute.arguments())
    if prediction.failed:
        raise DataError(f"{len(prediction.failed)} of {len(rows)} images could not be judged:", prediction.failed)
    return prediction.found


def _seen_at(
    model: AnyModel, brush: Brush, calm: Sequence[tuple[Row, Pixels]], kinds: Sequence[Kind], compute: ComputeOptions
) -> tuple[dict[Kind, list[float | None]], dict[Place, list[_Looked]]]:
    """Find for each kind the contrasts from which on its defects of one size are seen, and what was looked at."""
    calibration = model.current_calibration()
    places = [Place(i % len(calm), i, kinds[i % len(kinds)]) for i in range(_PLACES * len(kinds))]
    looked: dict[Place, list[_Looked]] = {}

    def seen(asked: Sequence[tuple[Place, float]]) -> list[bool]:
        found = [False] * len(asked)
        made: list[tuple[int, Pixels, NDArray[np.bool_]]] = []
        for n, (place, contrast) in enumerate(asked):
            row, pixels = calm[place.image]
            try:
                made.append((n, *brush.paint(row, pixels, place.turn, place.kind, contrast)))
            except InputError:  # it changes nothing there: nobody sees that
                continue
        if made:
            rows = [replace(calm[asked[n][0].image][0], pixels=image, path=f"painted:{n}") for n, image, _ in made]
            for (n, image, mask), judged in zip(made, _judged(model, rows, compute), strict=True):
                found[n] = calibration is not None and calibration.verdict(judged.score) != "good"
                looked.setdefault(asked[n][0], []).append(_Looked(image, mask, asked[n][1], found[n]))
        return found

    first = first_seen(places, seen)
    told: dict[Kind, list[float | None]] = {}
    for place, value in zip(places, first, strict=True):
        if place in looked:
            told.setdefault(place.kind, []).append(value)
    return told, looked


def _of_size(
    size: float, width: float | None, pixel_mm: float | None, seen: dict[Kind, list[float | None]]
) -> SeenSize:
    every = [value for values in seen.values() for value in values]
    return {
        "size_px": size,
        "width_px": width,
        "size_mm": None if pixel_mm is None else size * pixel_mm,
        "n_painted": len(every),
        "seen": sum(value is not None for value in every) / len(every) if every else 0.0,
        "contrast": _middle(every),
        "by_kind": {kind: _middle(values) for kind, values in seen.items()},
    }


def _middle(values: Sequence[float | None]) -> float | None:
    """Return the contrast at which half of the defects are seen; None where fewer than half ever are."""
    value = median_low([math.inf if value is None else value for value in values]) if values else math.inf
    return None if math.isinf(value) else value


def _smallest(told: Sequence[SeenSize]) -> float | None:
    """Return the size from which on, and at all larger ones, half of the clearly visible defects are seen."""
    smallest = None
    for one in reversed(told):
        if one["contrast"] is None:
            break
        smallest = one["size_px"]
    return smallest


def _pictures(size: float, looked: dict[Place, list[_Looked]], turn: int, most: int) -> list[SeenDefect]:
    """Show defects at the edge of what is seen: the faintest that was, and the strongest that was missed.

    Another ``turn`` begins with another kind.
    """
    shown: list[SeenDefect] = []
    places = list(looked)
    first = turn % max(1, len(places))
    for place in places[first:] + places[:first]:
        tries = looked[place]
        seen = min((one for one in tries if one.seen), key=lambda one: one.contrast, default=None)
        missed = max((one for one in tries if not one.seen), key=lambda one: one.contrast, default=None)
        if seen is not None or missed is not None:
            both = [(one.pixels, one.contrast, one.seen) for one in (missed, seen) if one is not None]
            mask = (seen or missed or tries[0]).mask
            shown.append(SeenDefect(place.kind, size, mask, both))
        if len(shown) == most:
            break
    return shown


def _limits(brush: Brush, kinds: Sequence[Kind], n: int, fresh: int, flagged: int, anywhere: bool) -> list[str]:
    """Say what the curve cannot promise."""
    lowest = CONTRASTS[0] / math.sqrt(CONTRASTS[1] / CONTRASTS[0])
    why = "as the images' own edges" if brush.measured else "for the images show no edge that says more"
    say = [
        f"Defects were painted ({', '.join(kinds)}), with edges as soft as a spread of {brush.spread_px:.2g} px, "
        f"{why}; real ones may be of other kinds.",
        f"A contrast of 1 is clearly visible; {lowest:.2g} stands for {CONTRASTS[0]:.2g} and below. {_PLACES} places a "
        "kind and size: the curve is right within a factor of about 2.",
    ]
    if fresh < n:
        say.append(
            f"The model was fitted on {n - fresh} of the {n} images, or its file does not say: on new good images, "
            "which look less usual to it, faint defects may be easier or harder to see."
        )
    if flagged:
        say.append(f"{flagged} of {n} good images are flagged without a defect; they were left out.")
    if anywhere:
        say.append(
            "Defects were painted anywhere, for no part was told from a background: if the images show background, "
            "give the part as --roi."
        )
    return say
