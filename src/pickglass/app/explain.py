"""Say why a model judged an image as it did: how far from the threshold, where, like what, and seen in which layers.

Works for good images and for bad ones that were missed alike. An exported model says what needs no torch; the rest is
named, with what it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.app.drift import described
from pickglass.app.models import AnyModel, as_model
from pickglass.app.pages.explain import Crop, Explained, PlacePictures, share_of_good, write_explanation
from pickglass.app.pages.images import Array, close_up, display
from pickglass.app.results import ExplainedPlace, ExplainResult, NearestPatch, SimilarImage
from pickglass.app.see.defect import named_defect
from pickglass.calibration import Calibration
from pickglass.calibration.drift import Sample, already_known, image_facts
from pickglass.calibration.scale import PValue
from pickglass.data import Preprocess, Row, Table, as_table, image_digest, with_roi
from pickglass.data.files import output_path
from pickglass.errors import DataError, ImageError, InputError
from pickglass.metrics.labelling import connected_regions
from pickglass.result import BoolArray, FloatArray, Found
from pickglass.runtime.compute import ComputeOptions, Progress
from pickglass.runtime.exported import ExportedModel
from pickglass.runtime.provenance import Provenance

__all__ = ["explain", "explained"]

_PLACES = 3
_NEAREST = 3  # good patches beside a place
_COMPARED = 8  # good images that layers are compared with
_MOST_SIMILAR = 200  # good images among which the most similar one is looked for
_APART = 1 / 12  # of the shorter side: nearer to a hot place there is no other
_AROUND = 6  # sides of a patch that a crop shows
_LEAST_CROP = 40  # px
_UP = 4  # folders above a file in which training images are looked for
_FLOOR = 0.01  # of the mean spread of the channels: a silent one would count without end


def explain(
    model: str | Path | AnyModel,
    image: Any,
    page: str | Path | None = None,
    *,
    good: Any = None,
    mask: str | Path | None = None,
    box: Sequence[int] | None = None,
    places: int = _PLACES,
    roi: str | Path | None = None,
    folders: Sequence[str | Path] = (),
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> ExplainResult:
    """Explain the verdict on one image: the score against the threshold, the hottest places, and what they are like.

    Args:
        model: model file, exported file, or what was loaded of one.
        image: file, array, PIL image or encoded bytes; or a row of a data set.
        page: HTML page to write.
        good: folder of good images, or other images of :func:`pickglass.data.as_table`: where the files of training
            images are looked for (else beside the image, the model and the working folder); up to eight of them are
            what layers are compared with, in place of the surroundings; and where the model keeps no good images of its
            own, the most similar one is one of these.
        mask: image file, above 0 where a defect is that the model may have missed; it is explained first.
        box: x, y, width, height of such a defect in pixels, in place of a mask.
        places: how many places above the pixel threshold at most, 1 or more; below it the hottest one is explained.
        roi: region of interest, a mask; None: the model's.
        folders: where else the files of training images are looked for.
        compute: where to compute.
        progress: called with (stage, done, total).

    Returns:
        The explanation; what could not be said is in its ``notes``.

    Raises:
        InputError: no image or several, a box outside of it, a number of places below 1, a page that is no .html.
        DataError: the image cannot be read, or a good one.

    Example:
        ``pg.explain("bottle.safetensors", "part.png", "why.html", good="datasets/bottle/train")["sentence"]``
    """
    target = None if page is None else output_path(page, ".html")
    whole = explained(
        model,
        image,
        good=good,
        mask=mask,
        box=box,
        places=places,
        roi=roi,
        folders=folders,
        compute=compute,
        progress=progress,
    )
    if target is None:
        return whole.result
    result: ExplainResult = {**whole.result, "page": str(target)}
    write_explanation(target, replace(whole, result=result))
    return result


def explained(
    model: str | Path | AnyModel,
    image: Any,
    *,
    good: Any = None,
    mask: str | Path | None = None,
    box: Sequence[int] | None = None,
    places: int = _PLACES,
    roi: str | Path | None = None,
    folders: Sequence[str | Path] = (),
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> Explained:
    """Return the explanation of :func:`explain` with the pictures that a page shows; arguments as there."""
    if places < 1:
        raise InputError(f"places={places!r}: expected at least 1")
    run = compute or ComputeOptions()
    detector = as_model(model)
    table = with_roi(as_table(image, role="test"), roi)
    if len(table) != 1:
        raise InputError(f"{len(table)} images: expected one, for each is explained on its own")
    rows = Table([]) if good is None else as_table(good, role="test").where(lambda row: row.label != 1)
    if good is not None and not rows:
        raise InputError(f"good={_shown(good)}: expected a folder with good images, and there is none")
    prediction = detector.predict(table, progress=progress, **run.arguments())
    if prediction.failed:
        raise DataError("the image cannot be judged:", list(prediction.failed))
    found = prediction.found[0]
    pixels = found.row.image(run.max_pixels)
    defect = named_defect(found.size, mask, box, run.max_pixels)
    calibration = prediction.calibration
    limit = calibration.pixel_threshold if calibration else None
    full = found.full_map()
    hot = _hottest(full, limit, _region(found), places, defect)
    notes = _notes(detector, calibration, rows)
    near = [found.row.path, *([str(model)] if isinstance(model, (str, Path)) else [])]
    around = [parent for path in near for parent in list(Path(path).absolute().parents)[:_UP]]
    files = _Files(detector.provenance, rows, [*map(Path, folders), *around, Path.cwd()])
    answers, pictures = _inside(detector, found, hot, rows, files, pixels, run)
    similar: SimilarImage | None = None
    picture: Array | None = None
    nearest = [patch for place in answers for patch in place["nearest"]]
    if any(patch["image"] is None for patch in nearest):
        notes.append(
            "the model does not tell which training images its nearest patches are from, for an older pickglass fitted "
            "it: fit it anew to see them"
        )
    if not any(patch["image"] is not None for patch in nearest):
        similar, picture = _similar(detector, found, rows, files, notes, run, progress)
    if files.missing:
        notes.append(
            f"{len(files.missing)} training image{'s' if len(files.missing) > 1 else ''} cannot be shown: the file is "
            f"not where it is looked for, or was changed ({', '.join(sorted(files.missing)[:3])}). Name their folder "
            "(good, --good)"
        )
    result = _result(detector, found, calibration, limit, answers, similar, notes)
    scores = calibration.scores if calibration else ()
    return Explained(result, pixels, full, defect, pictures, picture, scores)


def _shown(data: Any) -> str:
    return repr(str(data)) if isinstance(data, (str, Path)) else type(data).__name__


def _notes(detector: AnyModel, calibration: Calibration | None, good: Table) -> list[str]:
    notes = []
    if isinstance(detector, ExportedModel):
        notes.append(
            "an exported model tells where and how much; the nearest good patches, the share of each level and what "
            "its layers show need the model file (.safetensors) that it was exported from, and pickglass[train]"
        )
    if calibration is None or calibration.image_threshold is None:
        notes.append("the model has no image threshold: 'pickglass threshold MODEL DATA' sets one")
    elif calibration.stale:
        notes.append("the settings were changed after the threshold was set, and so were the scores: set it anew")
    if len(good) == 1:
        notes.append("a single good image was named: layers compare a place with its surroundings, not with that")
    return notes


# -- where -------------------------------------------------------------------------------------------------------------


class _Hot(NamedTuple):
    """A place: its pixel, the value there, the pixels (H, W) that belong to it, and what they are."""

    x: int
    y: int
    value: float
    mask: BoolArray
    above: bool
    named: bool

    @property
    def box(self) -> list[int]:
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def _region(found: Found) -> BoolArray:
    inside = found.inside()
    return np.ones(found.size, np.bool_) if inside is None or not inside.any() else inside


def _hottest(full: FloatArray, limit: float | None, inside: BoolArray, n: int, defect: BoolArray | None) -> list[_Hot]:
    """Find the places to explain: the named defect, then the hottest regions above the threshold, or the hottest place.

    Args:
        full: (H, W) map.
        limit: pixel threshold; None: the model has none.
        inside: (H, W), the region of interest.
        n: how many above the threshold at most.
        defect: (H, W), what the user named.
    """
    apart = max(1, round(_APART * min(full.shape)))
    left = np.where(inside, full, -np.inf)
    places = []
    if defect is not None:
        y, x = _highest(np.where(defect, full, -np.inf))
        value = float(full[y, x])
        places.append(_Hot(x, y, value, defect, limit is not None and value > limit, True))
        left[defect] = -np.inf
    regions, _ = connected_regions(full > limit) if limit is not None else (np.zeros(full.shape, np.int32), None)
    for _ in range(n):
        y, x = _highest(left)
        value = float(left[y, x])
        above = limit is not None and value > limit
        if not np.isfinite(value) or (places and not above):
            break
        around = np.zeros(full.shape, np.bool_)
        around[max(0, y - apart) : y + apart + 1, max(0, x - apart) : x + apart + 1] = True
        mask = regions == regions[y, x] if above else np.zeros(full.shape, np.bool_)
        mask[y, x] = True
        left[mask | around] = -np.inf
        places.append(_Hot(x, y, value, mask, above, False))
    return places


def _highest(values: npt.NDArray[np.floating[Any]]) -> tuple[int, int]:
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    return int(y), int(x)


# -- inside the detector -----------------------------------------------------------------------------------------------


def _inside(
    detector: AnyModel,
    found: Found,
    hot: Sequence[_Hot],
    good: Table,
    files: _Files,
    pixels: Array,
    compute: ComputeOptions,
) -> tuple[list[ExplainedPlace], list[PlacePictures]]:
    """Explain each place, as far as the model can, and cut out its pictures."""
    limit = _pixel_threshold(detector)
    size = found.size
    if isinstance(detector, ExportedModel):
        h, w = found.map.shape
        places = [_place(one, limit) for one in hot]
        patch = (detector.canvas[0] / h, detector.canvas[1] / w)
        own = [_crop(pixels, (one.y, one.x), _scaled(patch, detector.preprocess, size), one) for one in hot]
        return places, [PlacePictures(crop, []) for crop in own]
    from pickglass.app.see.inside import Asked, look_inside

    some = _some(good, _COMPARED) if len(good) > 1 else Table([])
    asked = [Asked(one.x, one.y, one.mask) for one in hot]
    insides = look_inside(detector, found, asked, detector.provenance.within_regions(some).rows, compute, _NEAREST)
    names = detector.provenance.image_names or ()
    side = getattr(detector, "patch", 1)
    places, pictures = [], []
    for one, inside in zip(hot, insides, strict=True):
        place = _place(one, limit)
        place["shares"] = [{"name": name, "share": share} for name, share in inside.shares.items()]
        place["layers"] = [
            {"layer": seen.layer, "contrast_sd": seen.sd, "verdict": seen.verdict} for seen in inside.layers
        ]
        patch = (side * inside.patch[0], side * inside.patch[1])
        crops: list[Crop | None] = []
        for near in inside.near:
            name = names[near.image] if near.image is not None and near.image < len(names) else None
            told: NearestPatch = {
                "distance": near.distance,
                "image": name,
                "x": None,
                "y": None,
                "canvas_x": None if near.canvas is None else near.canvas[0],
                "canvas_y": None if near.canvas is None else near.canvas[1],
                "turned": near.turned,
                "found": False,
            }
            row = None if name is None else files.fitted(name)
            crop = None
            if row is not None and near.canvas is not None:
                training = row.image(compute.max_pixels)
                of = (training.shape[0], training.shape[1])
                y, x = _on_image(near.canvas, detector.preprocess, of)
                told |= {"x": x, "y": y, "found": True}
                crop = _crop(training, (y, x), _scaled(patch, detector.preprocess, of))
            place["nearest"].append(told)
            crops.append(crop)
        place["sentence"] = _place_sentence(place)
        places.append(place)
        mine = _crop(pixels, (one.y, one.x), _scaled(patch, detector.preprocess, size), one)
        pictures.append(PlacePictures(mine, crops))
    return places, pictures


def _pixel_threshold(detector: AnyModel) -> float | None:
    calibration = detector.current_calibration()
    return calibration.pixel_threshold if calibration else None


def _place(hot: _Hot, limit: float | None) -> ExplainedPlace:
    extent = hot.above or hot.named
    place: ExplainedPlace = {
        "x": hot.x,
        "y": hot.y,
        "value": hot.value,
        "over": hot.value / limit if limit is not None and limit > 0 else None,
        "box": hot.box if extent else None,
        "area_px": int(hot.mask.sum()) if extent else None,
        "named": hot.named,
        "sentence": "",
        "shares": [],
        "nearest": [],
        "layers": [],
    }
    place["sentence"] = _place_sentence(place)
    return place


def _some(table: Table, n: int) -> Table:
    """Return at most so many rows, evenly spread."""
    n = min(n, len(table))
    return Table([table[i * len(table) // n] for i in range(n)])


def _scaled(patch: tuple[float, float], preprocess: Preprocess, size: tuple[int, int]) -> tuple[float, float]:
    """Bring height and width in pixels of the canvas to those of an image of this size (H, W)."""
    top, left, bottom, right = preprocess.window(size)
    return (
        patch[0] / preprocess.size[0] / (bottom - top) * size[0],
        patch[1] / preprocess.size[1] / (right - left) * size[1],
    )


def _on_image(canvas: tuple[int, int], preprocess: Preprocess, size: tuple[int, int]) -> tuple[int, int]:
    """Return y, x in pixels of an image of a pixel x, y of the canvas; beyond the image the nearest one."""
    top, left, bottom, right = preprocess.window(size)
    y = ((canvas[1] + 0.5) / preprocess.size[0] - top) / (bottom - top) * size[0]
    x = ((canvas[0] + 0.5) / preprocess.size[1] - left) / (right - left) * size[1]
    return min(size[0] - 1, max(0, int(y))), min(size[1] - 1, max(0, int(x)))


def _crop(pixels: Array, middle: tuple[int, int], patch: tuple[float, float], hot: _Hot | None = None) -> Crop:
    """Cut a square around y, x, so large that a defect or several patches have room in it."""
    y, x = middle
    height, width = max(1, round(patch[0])), max(1, round(patch[1]))
    box = (x - width // 2, y - height // 2, width, height)
    side = max(_LEAST_CROP, _AROUND * max(height, width))
    if hot is not None and (hot.above or hot.named):
        box = (hot.box[0], hot.box[1], hot.box[2], hot.box[3])
        middle = (box[1] + box[3] // 2, box[0] + box[2] // 2)
        side = max(side, 2 * max(box[2:]))
    rows, columns = close_up(middle, min(side, max(pixels.shape[:2])), pixels.shape)
    part = display(pixels)[rows, columns]
    left, top = max(0, box[0] - columns.start), max(0, box[1] - rows.start)
    right = min(part.shape[1], box[0] + box[2] - columns.start)
    bottom = min(part.shape[0], box[1] + box[3] - rows.start)
    return Crop(np.array(part), (left, top, max(1, right - left), max(1, bottom - top)))


# -- the good images ---------------------------------------------------------------------------------------------------


class _Files:
    """Training images are known by the end of their paths; this finds their files, and shows none that is another.

    Args:
        provenance: where the model comes from.
        good: rows that the user named.
        folders: where their files may be, the likeliest first.
    """

    def __init__(self, provenance: Provenance, good: Table, folders: Sequence[Path]) -> None:
        self._fitted = set(provenance.fitted_images or ())
        self._good = good
        self._folders = list(dict.fromkeys(folders))
        self._known: dict[str, Row | None] = {}
        self.missing: set[str] = set()

    def fitted(self, name: str) -> Row | None:
        """Find an image that the model has learned."""
        return self.named(name, lambda row: image_digest(row)[:16] in self._fitted)

    def named(self, name: str, is_it: Callable[[Row], bool]) -> Row | None:
        """Find an image by its name; ``is_it`` says whether it is the one."""
        if name not in self._known:
            self._known[name] = next((row for row in self._candidates(name) if _readable(row, is_it)), None)
        if self._known[name] is None:
            self.missing.add(name)
        return self._known[name]

    def _candidates(self, name: str) -> Iterator[Row]:
        wanted = PurePath(name).parts
        alike = [row for row in self._good if PurePath(row.path).name == wanted[-1]]
        yield from sorted(alike, key=lambda row: -_common_end(PurePath(row.path).parts, wanted))
        for folder in self._folders:
            path = folder / name
            if path.is_file():
                yield Row(str(path))


def _readable(row: Row, is_it: Callable[[Row], bool]) -> bool:
    try:
        return is_it(row)
    except (OSError, ImageError):
        return False


def _common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _similar(
    detector: AnyModel,
    found: Found,
    good: Table,
    files: _Files,
    notes: list[str],
    compute: ComputeOptions,
    progress: Progress | None,
) -> tuple[SimilarImage | None, Array | None]:
    """Find the good image that is most like this one as a whole, and its pixels where its file is found."""
    arguments = compute.arguments()
    kept = detector.reference
    known = kept is not None and len(kept) > 0 and kept.features.shape[1] > 0 and bool((kept.names != "").any())
    if isinstance(detector, ExportedModel) and "features" not in detector.header.get("outputs", ()):
        notes.append("no similar good image: the exported file does not compute what images are compared by")
        return None, None
    if not known and not good:
        notes.append(
            "no similar good image: the model keeps none with their names ('pickglass fit' of this version does). Name "
            "some (good, --good)"
        )
        return None, None
    some = _some(good, _MOST_SIMILAR) if good else good
    sample = kept if known else described(detector, some, progress, **arguments)[0]
    if sample is None or not len(sample):
        notes.append("no similar good image: none of those that were named can be read")
        return None, None
    own = described(detector, Table([found.row]), None, **arguments)[0]
    if not len(own) or own.features.shape[1:] != sample.features.shape[1:] or not sample.features.shape[1]:
        notes.append("no similar good image: the method reads no features by which images could be compared")
        return None, None
    distances, usual = _distances(own, sample)
    nearest = int(distances.argmin())
    name = str(sample.names[nearest])
    row = files.named(name, lambda row: _is_image(detector, row, sample.take([nearest])))
    similar: SimilarImage = {
        "image": name,
        "distance": float(distances[nearest]),
        "usual": usual,
        "found": row is not None,
    }
    return similar, None if row is None else row.image(compute.max_pixels)


def _distances(own: Sample, sample: Sample) -> tuple[FloatArray, float | None]:
    """Measure how far one image is from each of a sample, and how far these are from their nearest other."""
    features = sample.features.astype(np.float64)
    spread = features.std(axis=0)
    spread = np.maximum(spread, max(_FLOOR * float(spread.mean()), 1e-12))
    scaled, mine = features / spread, own.features[0].astype(np.float64) / spread
    distances: FloatArray = np.sqrt(np.square(scaled - mine).mean(axis=1)).astype(np.float32)
    if len(scaled) < 3:
        return distances, None
    nearest = []
    for i, one in enumerate(scaled):
        others = np.sqrt(np.square(np.delete(scaled, i, axis=0) - one).mean(axis=1))
        nearest.append(float(others.min()))
    return distances, float(np.median(nearest))


def _is_image(detector: AnyModel, row: Row, sample: Sample) -> bool:
    """Whether an image is the one of a sample, by its brightness, contrast and sharpness as the network gets it."""
    (row,) = detector.provenance.within_regions(Table([row]))
    roi = (
        None
        if detector.roi is None
        else np.asarray(detector.roi.cpu() if hasattr(detector.roi, "cpu") else detector.roi)
    )
    value = detector.preprocess.prepared(row.image(), row, roi)
    one = Sample.of([image_facts(value.image, value.keep)], [0.0], np.zeros((1, 0), np.float32), [None])
    return bool(already_known(sample, one)[0])


# -- in words ----------------------------------------------------------------------------------------------------------


def _result(
    detector: AnyModel,
    found: Found,
    calibration: Calibration | None,
    limit: float | None,
    places: list[ExplainedPlace],
    similar: SimilarImage | None,
    notes: list[str],
) -> ExplainResult:
    threshold = calibration.image_threshold if calibration else None
    scores = calibration.scores if calibration else ()
    spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    rarity = calibration.p_value(found.score) if calibration else None
    result: ExplainResult = {
        "path": found.row.path,
        "model_id": detector.model_id(),
        "model_version": detector.model_version,
        "method": detector.method,
        "sentence": "",
        "verdict": calibration.verdict(found.score) if calibration else None,
        "score": found.score,
        "threshold": threshold,
        "unsure_threshold": calibration.unsure_threshold if calibration else None,
        "ratio": found.score / threshold if threshold is not None and min(threshold, found.score) > 0 else None,
        "spread": spread,
        "spreads": (found.score - threshold) / spread if threshold is not None and spread else None,
        "p_value": rarity.p if rarity else None,
        "p_value_log10": rarity.log10 if rarity else None,
        "p_value_extrapolated": rarity.extrapolated if rarity else None,
        "pixel_threshold": limit,
        "places": places,
        "similar": similar,
        "notes": notes,
        "page": None,
    }
    result["sentence"] = _sentence(result, rarity)
    return result


def _sentence(result: ExplainResult, rarity: PValue | None) -> str:
    """Say the verdict, and how far from the threshold the score lies."""
    score, threshold = result["score"], result["threshold"]
    if threshold is None or result["verdict"] is None:
        return f"no verdict: the score is {score:.4g}, and the model has no threshold to compare it with"
    above = score > threshold
    words = (
        f"{result['verdict']}: the score {score:.4g} lies {'above' if above else 'below'} the threshold {threshold:.4g}"
    )
    if score == threshold:
        words = f"{result['verdict']}: the score {score:.4g} is the threshold itself, and only what exceeds it is bad"
    elif result["verdict"] == "unsure":
        words += f" and above that of unsure, {result['unsure_threshold']:.4g}"
    far = []
    if result["ratio"] is not None and score != threshold:
        far.append(f"{result['ratio']:.2f} times it")
    if result["spreads"] is not None and score != threshold:
        far.append(f"{abs(result['spreads']):.1f} standard deviations of good scores away")
    words += f", {', '.join(far)}" if far else ""
    if rarity is not None:
        beyond = ", as far as the tail of good scores tells" if rarity.extrapolated else ""
        share = share_of_good(rarity.p)
        words += f"; {share}{' of' if share.endswith('%') else ''} good parts score as high{beyond}"
    return words


def _place_sentence(place: ExplainedPlace) -> str:
    """Say what is known of a place in one sentence."""
    where = f"x {place['x']}, y {place['y']}"
    what = f"the defect that was named, highest at {where}" if place["named"] else where
    if place["over"] is None:
        words = f"{what}: map value {place['value']:.4g}"
    else:
        words = f"{what}: {place['over']:.2f} times the pixel threshold"
        if place["over"] <= 1:
            words += ", so it is not marked"
    if place["shares"]:
        most = max(place["shares"], key=lambda part: part["share"])
        words += f"; {100 * most['share']:.0f} % of it comes from {most['name']}"
    if place["nearest"] and place["nearest"][0]["image"] is not None:
        words += f"; the nearest good patch is from {place['nearest'][0]['image']}"
    by_verdict = {
        verdict: [layer["layer"] for layer in place["layers"] if layer["verdict"] == verdict]
        for verdict in ("visible", "faint", "lost", "unclear")
    }
    fate = [f"{verdict} in {', '.join(names)}" for verdict, names in by_verdict.items() if names]
    words += f"; {', '.join(fate)}" if fate else ""
    if place["layers"] and (place["over"] or 0) <= 1:
        if by_verdict["visible"]:
            words += ": the layers show it, but no more than what good parts differ by"
        elif len(by_verdict["lost"]) == len(place["layers"]):
            words += ": these layers do not show it; finer ones or a larger size may, see 'pickglass advise'"
    return words
