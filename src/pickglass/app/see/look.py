"""Show an image through the layers of a backbone, and whether a defect can still be seen there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pickglass.app.pages.look import Channel, LayerView, Scene, write_look
from pickglass.app.results import LookLayer, LookResult
from pickglass.app.see.defect import named_defect
from pickglass.app.see.request import BackboneRequest
from pickglass.data import MAX_PIXELS, Preprocess, as_table, read_image
from pickglass.data.files import output_path
from pickglass.data.images.decoder import Array
from pickglass.errors import InputError
from pickglass.features.anatomy.visibility import FAINT, VISIBLE, Contrast, Seen, contrast, stand_out, touched_cells
from pickglass.features.extractor import FeatureExtractor, shown_layers
from pickglass.nn.maps import kept_cells

__all__ = ["Looked", "colours_of", "first_filters", "look", "look_through", "strongest_channels"]

_SIDE = 256  # px
_CHANNELS = 6  # shown of a layer
_FILTERS = 64  # shown of the first layer
_GOOD = 40  # images: the features of all are held at once

Progress = Callable[[str, int, int], None]


class Looked(NamedTuple):
    """What the layers show of an image: the result of ``look``, and what its page draws."""

    result: LookResult
    scene: Scene
    views: Sequence[LayerView]
    filters: Sequence[NDArray[np.uint8]]


def look(
    image: str | Path,
    page: str | Path | None = None,
    request: BackboneRequest | None = None,
    *,
    mask: str | Path | None = None,
    box: Sequence[int] | None = None,
    good: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> LookResult:
    """Show an image through the layers of a backbone, and judge where its defect is still visible.

    Args:
        image: file.
        page: HTML page to write.
        request: the backbone and its layers; None: EfficientNet-Lite0.
        mask: image file, above 0 where the defect is.
        box: x, y, width, height of the defect in pixels of the image, in place of a mask.
        good: image or folder: what the defect is compared with in place of its surroundings; at most 40 images, evenly
            spread, are read.
        max_pixels: images with more are refused.
        progress: called with (stage, done, total).

    Raises:
        InputError: unknown names, a mask and a box, a box outside the image, an empty mask, a single good image.
        WeightsMissing: the file of the weights was not found.
        DataError: an image cannot be read.
    """
    target = None if page is None else output_path(page, ".html")
    seen = look_through(image, request, mask=mask, box=box, good=good, max_pixels=max_pixels, progress=progress)
    if target is not None:
        seen.result["page"] = str(write_look(target, seen.result, seen.scene, seen.views, seen.filters))
    return seen.result


def look_through(
    image: str | Path,
    request: BackboneRequest | None = None,
    *,
    mask: str | Path | None = None,
    box: Sequence[int] | None = None,
    good: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Looked:
    """Show an image through the layers of a backbone, for a page to draw; see :func:`look`.

    Args:
        image, request, mask, box, good, max_pixels, progress: as in :func:`look`.
    """
    pixels = read_image(image, max_pixels)
    defect = named_defect((pixels.shape[0], pixels.shape[1]), mask, box, max_pixels)
    if good is not None and defect is None:
        raise InputError("good images are there to compare a defect with: give its mask or box too")
    asked = request or BackboneRequest()
    chosen = list(asked.layers) if asked.layers else shown_layers(asked.backbone)
    extractor = FeatureExtractor(asked.backbone, chosen, asked.weights or "default", asked.seed)
    references = [] if good is None else [read_image(path, max_pixels) for path in _some(good)]
    patch = extractor.cells.patch
    sizes = [(p.shape[0], p.shape[1]) for p in (pixels, *references)]
    prepare = Preprocess.for_images(asked.size or round(_SIDE / patch) * patch, extractor.interpolation, sizes)
    extractor.shapes(prepare.size)  # says what is wrong with the size or a layer
    levels = _read(extractor, prepare, pixels)
    compared = []
    for done, reference in enumerate(references, start=1):
        compared.append(_read(extractor, prepare, reference))
        if progress is not None:
            progress("reading good images", done, len(references))
    window = prepare.window(sizes[0])
    views = []
    for i, (name, seen) in enumerate(zip(chosen, levels, strict=True)):
        views.append(_view(name, seen, prepare.size, defect, window, [one[i] for one in compared]))
        if progress is not None:
            progress("looking at layers", i + 1, len(chosen))
    result: LookResult = {
        "backbone": asked.backbone,
        "weights": str(extractor.weights.name) if extractor.weights else "",
        "size": list(prepare.size),
        "layers": [view.facts for view in views],
        "page": None,
    }
    canvas = np.round(255 * prepare(pixels).transpose(1, 2, 0)).astype(np.uint8)  # (H, W, 3)
    on_canvas = None if defect is None else touched_cells(defect, prepare.size, window).numpy()
    scene = Scene(Path(image).name, pixels, canvas, defect, on_canvas, len(references), VISIBLE, FAINT)
    return Looked(result, scene, views, first_filters(extractor))


def strongest_channels(features: Tensor, defect: Tensor | None, counts: Tensor, n: int) -> list[Channel]:
    """Find the channels of a layer (C, h, w) that respond most, strongest first.

    Args:
        features: features of one image.
        defect: (h, w) bool; the channels then are those whose value on the defect is farthest from their mean
            elsewhere, in their standard deviations elsewhere. None: those of the highest variance.
        counts: (h, w) bool, the cells that count.
        n: how many at most.
    """
    elsewhere = features[:, counts if defect is None else counts & ~defect].double()  # (C, m)
    if elsewhere.shape[1] == 0:
        elsewhere = features.double().flatten(1)
    mean, variance = elsewhere.mean(dim=1), elsewhere.var(dim=1, correction=0)  # (C,)
    # a channel silent elsewhere would divide by nothing
    spread = variance.clamp(min=max(0.01 * float(variance.mean()), 1e-30)).sqrt()
    if defect is None:
        strength = variance
    else:
        strength = ((features[:, defect].double() - mean[:, None]) / spread[:, None]).abs().amax(dim=1)
    order = strength.argsort(descending=True, stable=True)[:n].tolist()
    return [Channel(i, features[i].numpy(), None if defect is None else float(strength[i])) for i in order]


def colours_of(features: Tensor, counts: Tensor) -> NDArray[np.uint8]:
    """Paint the first three principal components of the cells (C, h, w) as red, green and blue: (h, w, 3) uint8.

    Each from the 1 % to the 99 % quantile of the cells that count, (h, w) bool, the largest weight of each positive.
    """
    _, h, w = features.shape
    cells = features.double().flatten(1).T  # (h w, C)
    own = cells[counts.flatten()]
    mean = own.mean(dim=0)
    centred = own - mean
    if len(own) > own.shape[1]:
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)  # (C, up to 3)
    else:
        axes = torch.linalg.svd(centred, full_matrices=False).Vh[:3].T
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    parts = (cells - mean) @ (axes * signs)  # (h w, up to 3)
    shown = torch.zeros(h * w, 3, dtype=torch.float64)
    shown[:, : parts.shape[1]] = parts
    low, high = shown[counts.flatten()].quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    unit = torch.where(high - low > 1e-9, (shown - low) / (high - low).clamp(min=1e-9), 0.5).clamp(0, 1)
    return np.asarray((255 * unit).round().byte().view(h, w, 3))


def first_filters(extractor: FeatureExtractor) -> list[NDArray[np.uint8]]:
    """Paint the filters (k, k, 3) uint8 of the first convolution, strongest first, 64 at most; grey is weight 0.

    All share one scale, so that a faint one looks faint. None where the network does not begin with a convolution of
    colours.
    """
    for module in extractor.body.modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] == 3:
            weight = module.weight.detach()  # (C, 3, k, k)
            order = weight.flatten(1).norm(dim=1).argsort(descending=True, stable=True)[:_FILTERS]
            shown = weight[order] / (2 * weight.abs().quantile(0.995).clamp(min=1e-12)) + 0.5
            return list(np.asarray((255 * shown.clamp(0, 1)).round().byte().permute(0, 2, 3, 1)))  # (n, k, k, 3)
    return []


def _view(
    name: str,
    seen: Seen,
    size: tuple[int, int],
    defect: NDArray[np.bool_] | None,
    window: tuple[float, float, float, float],
    good: Sequence[Seen],
) -> LayerView:
    channels, h, w = seen.features.shape
    counts = torch.ones(h, w, dtype=torch.bool) if seen.keep is None else seen.keep
    cells = None if defect is None else touched_cells(defect, (h, w), window)
    found: Contrast | None = None if cells is None else contrast(seen, cells, good)
    facts: LookLayer = {
        "layer": name,
        "grid": [h, w],
        "stride": max(round(size[0] / h), round(size[1] / w)),
        "channels": channels,
        "contrast_sd": None if found is None else found.sd,
        "verdict": None if found is None else found.verdict,
    }
    return LayerView(
        facts,
        (stand_out(seen) if found is None else found.map).numpy(),
        colours_of(seen.features, counts),
        strongest_channels(seen.features, cells, counts, _CHANNELS),
        None if cells is None else cells.numpy(),
        0 if found is None else found.places,
        None if found is None else found.beaten,
    )


def _read(extractor: FeatureExtractor, prepare: Preprocess, pixels: Array) -> list[Seen]:
    kept = prepare.kept((pixels.shape[0], pixels.shape[1]))
    with torch.no_grad():
        levels = [level[0] for level in extractor(torch.from_numpy(prepare(pixels))[None])]  # (C, h, w) each
    keep = None if kept is None else torch.from_numpy(kept)
    return [Seen(level, kept_cells(keep, (level.shape[1], level.shape[2]))) for level in levels]


def _some(good: str | Path) -> list[str]:
    """List at most 40 of the good images, evenly spread."""
    paths = [row.path for row in as_table(Path(good))]
    n = min(len(paths), _GOOD)
    return [paths[i * len(paths) // n] for i in range(n)]
