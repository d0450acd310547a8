"""The advisor finds from good images alone which backbone, layers, size, tiling and method see a small defect.

Geometry first, then painted defects on images that are held back, then the clock; after Heckler and König, "Feature
Selection for Unsupervised Anomaly Detection and Localization Using Synthetic Defects" (VISAPP 2024), who choose layers
by synthetic defects. ``docs/advisor.md`` says how it decides and how well it did.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from pickglass.app.advise.candidates import (
    TOGETHER,
    TOO_SMALL,
    Candidate,
    candidates,
    input_sizes,
    shared_names,
    size_text,
    usual_input,
)
from pickglass.app.advise.choice import Advice, Baseline, Rated, by_contrast, limits_of, slow
from pickglass.app.advise.painted import Brush, PaintedSet, brush_of, choose_rows, paint_set, rows_of
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.scoring import (
    PLAIN,
    Score,
    averaged,
    detector_of,
    difference,
    judge,
    measure_cost,
    one_at_a_time,
    window_map,
)
from pickglass.app.advise.transfer import spread, widened
from pickglass.app.advise.visibility import half_contrasts
from pickglass.app.advise.within_foreground import look_for_part
from pickglass.app.pages.advise import PaintedImage, ShownModel, heat_range, write_advice
from pickglass.app.results import Advised, AdviseResult, RuledOut
from pickglass.data import DataSource, Preprocess, Table, image_sizes, usual_size
from pickglass.data.files import output_path
from pickglass.data.painting.defects import WITH_WIDTH, Kind
from pickglass.errors import InputError
from pickglass.features.backbones.registry import find_backbone, published
from pickglass.features.backbones.weights import find_weights, lookup
from pickglass.features.extractor import usual_layers
from pickglass.features.foreground import Foreground
from pickglass.features.shared import SharedFeatures
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["advise", "check_extent", "find_advice", "usable_backbones"]

LITES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
TRANSFORMERS = (
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_small_patch8_224",
    "vit_small_patch16_224",
)
"""Vision transformers that take long, and are tried where somebody has put their weights."""

OTHERS = ("padim", "subspace", TOGETHER)
"""Methods that are tried beside PatchCore; the parts of one that is several stand before it."""

_SCREENED = 4  # sets of layers, the best at the usual size, that are judged at another one
_CONTENDERS = 2  # of the first backbone, that the others are tried on
_SHORT_LIST = 2  # whose cost is measured, and that other methods are tried on; tiles on the first
_HELD_GB = 0.2  # of features of one backbone and size in memory; what is more waits in a temporary file
_ENLARGED = 2.0
_PICTURES = 10  # painted images on the page


def advise(
    data: DataSource | str | Path,
    request: AdviseRequest,
    report: str | Path | None = None,
    *,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> AdviseResult:
    """Find which features, size, tiling and method can see a defect; no defective image is read.

    At most 20 good images teach, and at most 10 others, of other groups, are painted on, 28 defects in all.

    Args:
        data: folder in any layout that :func:`pickglass.load_dataset` knows, or how to read it; its test images are
            not touched.
        request: the defect to be seen.
        report: HTML page to write.
        compute: where to compute.
        progress: called with (stage, done, total).

    Raises:
        InputError: a defect that cannot be painted, unknown names.
        WeightsMissing: a backbone of the request has none.
        DataError: too few good images.
    """
    began = time.perf_counter()
    page = None if report is None else output_path(report, ".html")
    source = DataSource.of(data)
    dataset = source.load()
    table = source.placed(dataset.train)
    advice = find_advice(table, request, compute=compute, progress=progress)
    result = _result(advice, source)
    result["seconds"] = time.perf_counter() - began
    if page is not None:
        result["report"] = str(page)
        first = [] if advice.choice is None else [advice.choice]
        two = [*first, *(one for one in advice.ranking if one not in first)][:2]
        write_advice(page, dataset.name, result, *_shown(two, advice.data))
    return result


def usable_backbones(wanted: Sequence[str] | None) -> list[str]:
    """List the backbones to try: those of the request, or the EfficientNet-Lites and small ViTs whose weights are here.

    Raises:
        WeightsMissing: one of the request has no weights here, or none of the Lites has.
    """
    if wanted is not None:
        for name in wanted:
            find_weights(find_backbone(name))
        return list(wanted)
    find_weights(find_backbone(LITES[0]))
    others = (*LITES[1:], *TRANSFORMERS)
    return [LITES[0], *(name for name in others if lookup(published(find_backbone(name))) is not None)]


def find_advice(
    table: Table,
    request: AdviseRequest,
    *,
    costs: bool = True,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> Advice:
    """Find the advice for rows; see :func:`advise`.

    Args:
        table: good images.
        request, compute, progress: as in :func:`advise`.
        costs: measure what the best candidates cost; always done where the request bounds the latency.
    """
    run = one_at_a_time(compute or ComputeOptions())
    image = usual_size(table)
    check_extent(request, image)
    names = usable_backbones(request.backbones)
    usual = usual_input(image_sizes(table))
    sizes, small = input_sizes(image, request.defect_px, usual)
    ruled_out: list[RuledOut] = [{"layers": None, "size": list(size), "why": why} for size, why in small]
    kept: dict[str, tuple[Candidate, ...]] = {}
    for name in names:
        options = candidates(name, sizes, request.defect_px)
        kept[name] = options.kept
        ruled_out += [{"layers": layers, "size": list(size), "why": why} for layers, size, why in options.ruled_out]
    default = _default(names[0], usual, kept[names[0]])
    used = sorted({usual} | {one.size for part in kept.values() for one in part})
    own = [usual, *(one.size for one in kept[names[0]])]
    doubled = _doubled(own, usual, image, request.defect_px, ruled_out)
    inputs = [*used, doubled] if doubled else used
    prepares = [Preprocess(size, find_backbone(names[0]).interpolation) for size in inputs]
    rows = choose_rows(table, request.seed)
    found = _foreground(rows, request.seed, run, progress)
    brush = brush_of(request, rows[0], found, run)
    half = _half_seen(default, rows, prepares[inputs.index(usual)], brush, request, run, progress)
    contrasts: dict[Kind, float] = {kind: value or 1.0 for kind, value in half.items()}
    data = paint_set(rows, brush, prepares, contrasts, compute=run, progress=progress)
    with _Judging(data, request, default, len(table), run, progress) as judging:
        first = kept[names[0]]
        judging.backbone([default, *(one for one in first if one.size == usual and one != default)])
        judging.backbone(judging.screened([one for one in first if one.size != usual]))
        for name in names[1:]:
            judging.backbone(judging.contenders(kept[name], names[0]))
        judging.short_list(doubled)
        if costs or request.latency_ms is not None:
            judging.measure()
        return judging.advice(ruled_out, image, half, found)


def check_extent(request: AdviseRequest, image: tuple[int, int]) -> None:
    """Check that a defect of the size asked for can be painted on images of (H, W).

    Raises:
        InputError: it cannot.
    """
    length, width, most = request.defect_px, request.width_px, min(image) - 2
    if not 4 <= length <= most:
        raise InputError(
            f"defect_px={length!r} on images of {image[0]}x{image[1]} pixels: expected 4 to {most}, the "
            "longest extent of the smallest defect in pixels of the original image"
        )
    if width is not None and not 1 <= width <= length:
        raise InputError(f"defect_px: a width of {width:g} px for a length of {length:g}: expected 1 to {length:g}")
    if width is not None and not set(request.kinds) & set(WITH_WIDTH):
        raise InputError(
            f"defect_px: a width of {width:g} px, but {', '.join(request.kinds)} have a width of their own: leave it "
            f"out, or paint kinds of {', '.join(WITH_WIDTH)}"
        )


def _default(backbone: str, usual: tuple[int, int], kept: Sequence[Candidate]) -> Candidate:
    """Return the candidate that ``fit`` is by default; its ``defect`` is 0 where geometry rules it out."""
    layers = usual_layers(backbone)
    for one in kept:
        if (one.layers, one.size) == (layers, usual):
            return one
    return Candidate(backbone, layers, usual, 0.0, 8, 1.0)


def _doubled(
    used: Sequence[tuple[int, int]],
    usual: tuple[int, int],
    image: tuple[int, int],
    defect_px: float,
    ruled_out: list[RuledOut],
) -> tuple[int, int] | None:
    """Return the canvas for tiles, twice the largest size; None, and the sentence why, where there is none."""
    largest = max(used, key=lambda size: size[0] * size[1])
    doubled = (2 * largest[0], 2 * largest[1])
    here = defect_px * min(usual[0] / image[0], usual[1] / image[1])
    if doubled[0] > _ENLARGED * image[0] or doubled[1] > _ENLARGED * image[1]:
        why = f"tiles of {size_text(largest)} would enlarge an image of {size_text(image)} px beyond twice"
    elif here >= TOO_SMALL:
        why = f"tiles of {size_text(largest)} take four times as long, and the defect has {here:.1f} px without them"
    else:
        return doubled
    ruled_out.append({"layers": None, "size": list(doubled), "why": why})
    return None


def _foreground(
    rows: tuple[Table, Table], seed: int, compute: ComputeOptions, progress: Progress | None
) -> Foreground | None:
    """Look for the part on the images that teach and are held back; None where a region of interest is given."""
    both = rows[0] + rows[1]
    return look_for_part(both, seed, compute, progress) if all(row.roi is None for row in both) else None


def _half_seen(
    default: Candidate,
    rows: tuple[Table, Table],
    prepare: Preprocess,
    brush: Brush,
    request: AdviseRequest,
    compute: ComputeOptions,
    progress: Progress | None,
) -> dict[Kind, float | None]:
    """Find at which contrasts the default of ``fit`` finds half of a defect of each kind."""
    taught = rows_of(rows[0], prepare, "fit", compute)
    detector = detector_of(default, len(taught), PLAIN)
    detector.fit(taught, validate=0.0, calibrate=0.0, seed=request.seed, memory_gb=2.0, **compute.arguments())
    half = half_contrasts(detector, rows[1], prepare, brush, request.kinds, compute, progress)
    if not half:
        raise InputError(
            f"no defect of {request.defect} could be painted on {len(rows[1])} images: of the kinds "
            f"{', '.join(request.kinds)} none fits where to look, or none changes the image"
        )
    return half


class _Judging(ExitStack):
    """Judges candidates; all of one backbone and size share one pass over the images."""

    def __init__(
        self,
        data: PaintedSet,
        request: AdviseRequest,
        default: Candidate,
        n_images: int,
        compute: ComputeOptions,
        progress: Progress | None,
    ) -> None:
        super().__init__()
        self.data = data
        self.request = request
        self.default = default
        self.n_images = n_images
        self.compute = compute
        self.progress = progress
        self.rated: list[Rated] = []
        self.refused: list[RuledOut] = []
        self.listed: list[Candidate] = []
        self.measured = False
        self.shared: dict[tuple[str, tuple[int, int]], SharedFeatures] = {}

    def backbone(self, chosen: Sequence[Candidate]) -> None:
        """Judge candidates of one backbone."""
        for size in sorted({one.size for one in chosen}):
            own = [one for one in chosen if one.size == size]
            layers = [layer for one in own for layer in one.layers]
            images = len(self.data.fit[size]) + len(self.data.test[size])
            beside = next((known for (name, _), known in self.shared.items() if name == own[0].backbone), None)
            features = SharedFeatures(own[0].backbone, "default", self.request.seed, layers, images, _HELD_GB, beside)
            self.shared[own[0].backbone, size] = self.enter_context(features)
            for n, candidate in enumerate(own, start=1):
                self._judge(candidate, features)
                if self.progress is not None:
                    self.progress(f"judging {candidate.backbone} at {size_text(size)}", n, len(own))

    def _judge(self, candidate: Candidate, shared: SharedFeatures | None) -> None:
        if len(candidate.methods) > 1:
            score = self._together(candidate)
        else:
            score = judge(candidate, self.data, shared, self.compute, changes=PLAIN, seed=self.request.seed)
        each = np.inf if shared is None else 1000 * shared.seconds / max(shared.computed, 1) * candidate.share
        self.rated.append(Rated(candidate, score, each))

    def _together(self, candidate: Candidate) -> Score:
        """Score several methods from what each said alone.

        Raises:
            InputError: one of them could not be judged.
        """
        known = {one.candidate: one.score for one in self.rated}
        parts = [replace(candidate, method=method) for method in candidate.methods]
        missing = [part.name for part in parts if part not in known]
        if missing:
            raise InputError(f"{', '.join(missing)} could not be judged, so it cannot be judged with another")
        return averaged([known[part] for part in parts], self.data, self.request.seed)

    def screened(self, chosen: Sequence[Candidate]) -> Sequence[Candidate]:
        """Select at other sizes the layers that did best at the usual one, if geometry left enough to choose from."""
        seen = [one for one in self.rated if one.candidate.defect]
        if len(seen) < _SCREENED:
            return chosen
        best = {one.candidate.layers for one in sorted(seen, key=lambda one: -one.score.aupro[0])[:_SCREENED]}
        return [one for one in chosen if one.layers in best]

    def contenders(self, chosen: Sequence[Candidate], first: str) -> list[Candidate]:
        """Select the candidates of another backbone: the layers that did best so far at their size.

        One with other layers, a transformer, is tried at the smallest size that geometry leaves, several levels first.
        """
        if not chosen:
            return []
        if not shared_names(chosen[0].backbone, first):
            smallest = min((one.size for one in chosen), key=math.prod)
            own = [one for one in chosen if one.size == smallest]
            return sorted(own, key=lambda one: -len(one.layers))[: _CONTENDERS + 1]
        ranked = sorted(self.rated, key=lambda one: -one.score.aupro[0])
        size = ranked[0].candidate.size
        best = [one.candidate.layers for one in ranked if one.candidate.size == size][:_CONTENDERS]
        return [one for one in chosen if one.layers in best and one.size == size]

    def short_list(self, doubled: tuple[int, int] | None) -> None:
        """Try other methods on the best candidates, PatchCore and PaDiM together among them, and tiles on the best."""
        fast = [one for one in self.rated if not slow(one, self.request.latency_ms)] or self.rated
        best = sorted(fast, key=lambda one: -one.score.aupro[0])[:_SHORT_LIST]
        tried = [replace(one.candidate, method=method) for method in OTHERS for one in best]
        if best and doubled is not None:
            first = best[0].candidate
            factor = doubled[0] / first.size[0]
            tried.append(replace(first, size=doubled, tile=_half(doubled), defect=first.defect * factor))
        self.listed = [one.candidate for one in best]
        for n, candidate in enumerate(tried, start=1):
            try:
                self._judge(candidate, self.shared.get((candidate.backbone, candidate.size)))
            except InputError as error:  # it would take more memory than it may, or its parts have no scale
                self.refused.append({"layers": candidate.name, "size": list(candidate.size), "why": str(error)})
            else:
                if candidate.tile is not None or replace(candidate, method=best[0].candidate.method) == self.listed[0]:
                    self.listed.append(candidate)
            if self.progress is not None:
                self.progress("other methods and tiles", n, len(tried))

    def measure(self) -> None:
        """Measure what the short list costs, and the choice too, if it is not on it."""
        self.measured = True
        for n, candidate in enumerate(self.listed, start=1):
            self._measure(candidate)
            if self.progress is not None:
                self.progress("measuring the cost", n, len(self.listed))

    def _measure(self, candidate: Candidate) -> None:
        at = next(i for i, one in enumerate(self.rated) if one.candidate == candidate)
        shared = self.shared.get((candidate.backbone, candidate.size))
        extractor = None if shared is None else shared.extractor_of(candidate.layers)
        cost = measure_cost(candidate, self.data, self.n_images, self.compute, extractor)
        self.rated[at] = replace(self.rated[at], cost=cost, latency_ms=1000 * cost.seconds)

    def advice(
        self,
        ruled_out: Sequence[RuledOut],
        image: tuple[int, int],
        half: Mapping[Kind, float | None],
        found: Foreground | None,
    ) -> Advice:
        """Rank the candidates, and say of each how surely it beats the default of ``fit``."""
        baseline = next(Baseline(one.candidate, one.score) for one in self.rated if one.candidate == self.default)
        for i, one in enumerate(self.rated):
            if one.score.aupro[0] > baseline.score.aupro[0]:
                painted = difference(one.score, baseline.score, self.data, self.request.seed)["aupro"]
                self.rated[i] = replace(one, gain=widened(painted, spread()))
        while True:
            refused = (*ruled_out, *self.refused)
            advice = Advice(tuple(self.rated), refused, self.data, image, self.request, baseline, half, found)
            if not self.measured or advice.choice is None or advice.choice.cost is not None:
                return advice
            self._measure(advice.choice.candidate)


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2


# -- the answer --------------------------------------------------------------------------------------------------------


def _command(candidate: Candidate, source: DataSource) -> str:
    parts = ["pickglass", "fit", str(source.path), "-o", "model.safetensors", "--method", candidate.method]
    parts += ["--backbone", candidate.backbone, "--layers", "+".join(candidate.layers)]
    parts += ["--size", size_text(candidate.size)]
    if candidate.tile is not None:
        tile = size_text(candidate.tile)
        parts += ["--tile", tile, "--stride", tile]
    extras = {
        "--layout": source.layout,
        "--group-by": source.group_by,
        "--roi": source.roi,
        "--pixel-mm": source.pixel_mm,
    }
    for option, value in extras.items():
        parts += [] if value is None else [option, str(value)]
    return shlex.join(parts)


def _shown(best: Sequence[Rated], data: PaintedSet) -> tuple[list[ShownModel], list[PaintedImage]]:
    """Return the candidates whose maps the page shows, and painted images of many kinds and contrasts."""
    if not best:
        return [], []
    models = []
    for one in best:
        good = [i for i, image in enumerate(data.judged) if image.mask is None]
        ground = np.concatenate([window_map(one.score.maps[i], data.judged[i]).ravel()[::7] for i in good])
        models.append(ShownModel(one.candidate.name, heat_range(ground)))
    chosen: dict[tuple[float, str], PaintedImage] = {}
    for i, image in enumerate(data.judged):
        kind, contrast, factor = image.kind, image.contrast, image.factor
        if image.mask is None or kind is None or contrast is None or factor is None or (-factor, kind) in chosen:
            continue
        maps = [window_map(one.score.maps[i], image) for one in best]
        chosen[-factor, kind] = PaintedImage(kind, contrast, image.pixels, image.mask, maps)
    return models, [chosen[key] for key in sorted(chosen)][:_PICTURES]


def _result(advice: Advice, source: DataSource) -> AdviseResult:
    request, pixel_mm = advice.request, source.pixel_mm
    ranking: list[Advised] = [
        {
            "method": one.candidate.method,
            "backbone": one.candidate.backbone,
            "layers": list(one.candidate.layers),
            "size": list(one.candidate.size),
            "tile": None if one.candidate.tile is None else list(one.candidate.tile),
            "aupro_05": one.score.aupro[0],
            "aupro_05_interval": list(one.score.aupro[1:]),
            "gain": None if one.gain is None else one.gain[0],
            "gain_interval": None if one.gain is None else list(one.gain[1:]),
            "image_auroc": one.score.auroc[0],
            "image_auroc_interval": list(one.score.auroc[1:]),
            "by_contrast": by_contrast(one.score, advice.data),
            "latency_ms": one.latency_ms,
            "measured": one.cost is not None,
            "model_mb": None if one.cost is None else one.cost.model_mb,
            "peak_mb": None if one.cost is None else one.cost.peak_mb,
            "too_slow": slow(one, request.latency_ms),
            "command": _command(one.candidate, source),
        }
        for one in advice.ranking
    ]
    choice = advice.choice
    (fit, *_) = advice.data.fit.values()
    painted = sum(one.mask is not None for one in advice.data.judged)
    return {
        "command": None if choice is None else _command(choice.candidate, source),
        "why": advice.why,
        "ranking": ranking,
        "ruled_out": list(advice.ruled_out),
        "limits": list(limits_of(advice)),
        "defect_px": request.defect_px,
        "defect_mm": None if pixel_mm is None else request.defect_px * pixel_mm,
        "width_px": request.width_px,
        "half_contrast": {str(kind): value for kind, value in advice.half.items()},
        "spread_px": None if advice.data.brush is None else advice.data.brush.spread_px,
        "part": None if advice.foreground is None or advice.foreground.mask is None else advice.foreground.share,
        "image": list(advice.image),
        "n_fit": len(fit),
        "n_held": len(advice.data.judged) - painted,
        "n_painted": painted,
        "seconds": 0.0,
        "report": None,
    }
