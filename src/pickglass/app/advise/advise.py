"""The advisor finds from good images alone which backbone, layers, size, tiling and method see a small defect.

Geometry first, then painted defects on images that are held back, then the clock; after Heckler and König, "Feature
Selection for Unsupervised Anomaly Detection and Localization Using Synthetic Defects" (VISAPP 2024), who choose layers
by synthetic defects. ``docs/advisor.md`` says how it decides and how well it did.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pickglass.app.advise.candidates import USUAL_SIDE, Candidate, candidates, input_sizes, size_text
from pickglass.app.advise.choice import Advice, Baseline, Rated, by_contrast, limits_of, slow
from pickglass.app.advise.painted import PaintedSet, choose_rows, paint_set
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.scoring import difference, judge, measure_cost, window_map
from pickglass.app.pages.advise import PaintedImage, ShownModel, heat_range, write_advice
from pickglass.app.results import Advised, AdviseResult, RuledOut
from pickglass.data import DataSource, Preprocess, Table, usual_size
from pickglass.data.files import output_path
from pickglass.errors import InputError, WeightsMissing
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.backbones.weights import find_weights
from pickglass.features.shared import SharedFeatures
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["advise", "find_advice", "usable_backbones"]

LITES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")

_CONTENDERS = 6  # of the first backbone, that the others are tried on
_SHORT_LIST = 3  # whose cost is measured, and that other methods and tiles are tried on
_ENLARGED = 2.0
_PICTURES = 10  # painted images on the page
_DEFAULT_LAYERS = ("stage3", "stage5")  # of an EfficientNet-Lite, as PatchCore reads it by default


def advise(
    data: DataSource | str | Path,
    request: AdviseRequest,
    report: str | Path | None = None,
    *,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> AdviseResult:
    """Find which features, size, tiling and method can see a defect; no defective image is read.

    At most 40 good images teach, and at most 16 others, of other groups, are painted on, 32 defects in all.

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
    """List the backbones to try: those of the request, or the EfficientNet-Lites whose weights are here.

    Raises:
        WeightsMissing: one of the request has no weights here, or none of the Lites has.
    """
    if wanted is not None:
        for name in wanted:
            find_weights(find_backbone(name))
        return list(wanted)
    found = []
    for name in LITES:
        try:
            find_weights(find_backbone(name))
        except WeightsMissing:
            if name == LITES[0]:
                raise
        else:
            found.append(name)
    return found


def find_advice(
    table: Table,
    request: AdviseRequest,
    *,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> Advice:
    """Find the advice for rows; see :func:`advise`.

    Args:
        table: good images.
        request, compute, progress: as in :func:`advise`.
    """
    run, defect_px = compute or ComputeOptions(), request.defect_px
    image = usual_size(table)
    if not 4 <= defect_px <= min(image) - 2:
        raise InputError(
            f"defect_px={defect_px!r} on images of {image[0]}x{image[1]} pixels: expected 4 to {min(image) - 2}, the "
            "longest extent of the smallest defect in pixels of the original image"
        )
    names = usable_backbones(request.backbones)
    sizes, small = input_sizes(image, defect_px)
    ruled_out: list[RuledOut] = [{"layers": None, "size": list(size), "why": why} for size, why in small]
    kept: dict[str, tuple[Candidate, ...]] = {}
    for name in names:
        options = candidates(name, sizes, defect_px)
        kept[name] = options.kept
        ruled_out += [{"layers": layers, "size": list(size), "why": why} for layers, size, why in options.ruled_out]
    used = sorted({one.size for part in kept.values() for one in part}) or [size for size, _ in sizes]
    largest = max(used, key=lambda size: size[0] * size[1])
    doubled = (2 * largest[0], 2 * largest[1])
    tiled = doubled[0] <= _ENLARGED * image[0] and doubled[1] <= _ENLARGED * image[1]
    if not tiled:
        why = f"tiles of {size_text(largest)} would enlarge an image of {size_text(image)} px beyond twice"
        ruled_out.append({"layers": None, "size": list(doubled), "why": why})
    inputs = [*used, doubled] if tiled else used
    prepares = [Preprocess(size, find_backbone(names[0]).interpolation) for size in inputs]
    data = paint_set(
        choose_rows(table, request.seed),
        defect_px,
        prepares,
        kinds=request.kinds,
        seed=request.seed,
        compute=run,
        progress=progress,
    )
    judging = _Judging(data, request, run, progress)
    for i, name in enumerate(names):
        judging.backbone(kept[name] if i == 0 else judging.contenders(kept[name]))
    judging.short_list(doubled if tiled else None)
    return judging.advice(names[0], ruled_out, image)


class _Judging:
    """Judges candidates; all of one backbone and size share one pass over the images."""

    def __init__(
        self, data: PaintedSet, request: AdviseRequest, compute: ComputeOptions, progress: Progress | None
    ) -> None:
        self.data = data
        self.request = request
        self.compute = compute
        self.progress = progress
        self.rated: list[Rated] = []
        self.refused: list[RuledOut] = []

    def backbone(self, chosen: Sequence[Candidate]) -> None:
        """Judge all candidates of one backbone."""
        for size in sorted({one.size for one in chosen}):
            own = [one for one in chosen if one.size == size]
            layers = [layer for one in own for layer in one.layers]
            images = len(self.data.fit[size]) + len(self.data.test[size])
            with SharedFeatures(own[0].backbone, "default", self.request.seed, layers, images, 2.0) as shared:
                for n, candidate in enumerate(own, start=1):
                    score, _ = judge(candidate, self.data, shared, self.compute, seed=self.request.seed)
                    each = 1000 * shared.seconds / max(shared.computed, 1)
                    self.rated.append(Rated(candidate, score, each * candidate.share))
                    if self.progress is not None:
                        self.progress(f"judging {candidate.backbone} at {size_text(size)}", n, len(own))

    def contenders(self, chosen: Sequence[Candidate]) -> list[Candidate]:
        """Select the candidates of another backbone that read the layers and sizes which did best so far."""
        best = sorted(self.rated, key=lambda one: -one.score.aupro[0])[:_CONTENDERS]
        wanted = {(one.candidate.layers, one.candidate.size) for one in best}
        return [one for one in chosen if (one.layers, one.size) in wanted]

    def short_list(self, doubled: tuple[int, int] | None) -> None:
        """Try PaDiM and tiles on the best candidates, and measure what all of these cost."""
        fast = [one for one in self.rated if not slow(one, self.request.latency_ms)] or self.rated
        best = sorted(fast, key=lambda one: -one.score.aupro[0])[:_SHORT_LIST]
        tried = [replace(one.candidate, method="padim") for one in best]
        if best and doubled is not None:
            first = best[0].candidate
            factor = doubled[0] / first.size[0]
            tried.append(replace(first, size=doubled, tile=_half(doubled), defect=first.defect * factor))
        names = [one.candidate for one in best]
        for n, candidate in enumerate(tried, start=1):
            try:
                score, _ = judge(candidate, self.data, None, self.compute, seed=self.request.seed)
            except InputError as error:  # it would take more memory than it may
                self.refused.append({"layers": candidate.name, "size": list(candidate.size), "why": str(error)})
            else:
                self.rated.append(Rated(candidate, score, np.inf))
                names.append(candidate)
            if self.progress is not None:
                self.progress("other methods and tiles", n, len(tried))
        for n, candidate in enumerate(names, start=1):
            self._measure(candidate)
            if self.progress is not None:
                self.progress("measuring the cost", n, len(names))

    def _measure(self, candidate: Candidate) -> None:
        at = next(i for i, one in enumerate(self.rated) if one.candidate == candidate)
        cost = measure_cost(candidate, self.data, self.compute)
        self.rated[at] = replace(self.rated[at], cost=cost, latency_ms=1000 * cost.seconds)

    def advice(self, backbone: str, ruled_out: Sequence[RuledOut], image: tuple[int, int]) -> Advice:
        """Rank the candidates, and say of each how surely it beats the default of ``fit``."""
        baseline = self._baseline(backbone)
        for i, one in enumerate(self.rated):
            if baseline is not None and one.score.aupro[0] > baseline.score.aupro[0]:
                gain = difference(one.score, baseline.score, self.data.groups, self.request.seed)["aupro"]
                self.rated[i] = replace(one, gain=gain)
        while True:
            refused = (*ruled_out, *self.refused)
            advice = Advice(tuple(self.rated), refused, self.data, image, self.request, baseline)
            if advice.choice is None or advice.choice.cost is not None:
                return advice
            self._measure(advice.choice.candidate)

    def _baseline(self, backbone: str) -> Baseline | None:
        """Judge the default of ``fit`` at the size nearest to 512 x 512; None where it is no EfficientNet-Lite."""
        if backbone not in LITES:
            return None
        size = min(self.data.fit, key=lambda size: abs(size[0] * size[1] - USUAL_SIDE**2))
        wanted = Candidate(backbone, _DEFAULT_LAYERS, size, 0.0, 8, 1.0)
        for one in self.rated:
            if replace(one.candidate, defect=0.0, share=1.0) == wanted:
                return Baseline(one.candidate, one.score)
        return Baseline(wanted, judge(wanted, self.data, None, self.compute, seed=self.request.seed)[0])


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
    chosen: dict[tuple[str, float], PaintedImage] = {}
    for i, image in enumerate(data.judged):
        kind, contrast = image.kind, image.contrast
        if image.mask is not None and kind is not None and contrast is not None and (kind, contrast) not in chosen:
            maps = [window_map(one.score.maps[i], image) for one in best]
            chosen[kind, contrast] = PaintedImage(kind, contrast, image.pixels, image.mask, maps)
    return models, [chosen[key] for key in sorted(chosen, key=lambda key: (key[0], -key[1]))][:_PICTURES]


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
        "image": list(advice.image),
        "n_fit": len(fit),
        "n_held": len(advice.data.judged) - painted,
        "n_painted": painted,
        "seconds": 0.0,
        "report": None,
    }
