"""Measure what the layers of a backbone see and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pickglass.app.pages.layers import Gradient, write_fields
from pickglass.app.results import LayerProbe, LayerResult, LayersListing, LayersResult
from pickglass.app.see.probe import probe, summary
from pickglass.app.see.request import BackboneRequest
from pickglass.data import Preprocess, as_table, load_dataset, read_image
from pickglass.data.files import output_path
from pickglass.errors import InputError, WeightsMissing
from pickglass.features.anatomy.facts import LayerFacts, layer_facts
from pickglass.features.anatomy.gradient_field import (
    SIDE,
    GradientField,
    effective_fields,
    gradient_fields,
    relative_field,
)
from pickglass.features.backbones.layers import preset_names
from pickglass.features.extractor import FeatureExtractor, layer_names, shown_layers

__all__ = ["layers", "list_layers"]

_PATCHES = 32  # in a row of a transformer's empty image: attention over more takes a minute
_WINDOWED = 512  # px, side of the empty image of a transformer with windows

Progress = Callable[[str, int, int], None]


def layers(
    request: BackboneRequest,
    *,
    images: Sequence[str | Path] = (),
    probe_data: str | Path | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> LayersResult:
    """Measure grid, stride, channels, receptive fields and cost of a backbone's layers.

    Args:
        request: the backbone; weights that are not named and not found are random, which the result says. The size is
            that for grid, cost and RRF. The seed also decides the noise image and the folds and draws of the probe.
        images: files or folders, to measure the effective receptive fields on; the first one is drawn on.
        probe_data: folder of labelled images, to measure how well each layer tells defect types apart and defects from
            good surface; all its images are used, so it must not judge the model whose layers are chosen by it.
        output: page (.html) or picture (.png) of the receptive fields to write.
        progress: called with (stage, done, total).

    Raises:
        InputError: unknown names, weights that do not fit, an output of another kind.
        DataError: an image cannot be read, or there are no labelled images to probe with.
    """
    if output is not None:
        if Path(output).suffix not in (".html", ".png"):
            raise InputError(f"output file {str(output)!r}: expected a name that ends in .html or .png")
        output_path(output, Path(output).suffix)
    backbone, seed = request.backbone, request.seed
    chosen = list(request.layers) if request.layers else shown_layers(backbone)
    extractor = _extractor(backbone, chosen, request.weights, seed)
    patch = extractor.cells.patch
    canvas = _canvas(request.size, patch)
    facts = layer_facts(extractor, canvas)
    fields = gradient_fields(extractor, _side(extractor), seed, progress)
    pictures = [row.path for row in as_table([Path(image) for image in images])]
    effective: list[int] | list[None] = [None] * len(facts)
    if pictures:
        effective = effective_fields(
            extractor, _prepared(pictures, Preprocess(canvas, extractor.interpolation), progress)
        )
    rows = None if probe_data is None else load_dataset(probe_data).table
    probed: list[LayerProbe] | list[None] = [None] * len(facts)
    if rows is not None:
        probed = probe(extractor, rows, Preprocess(canvas, extractor.interpolation), seed, progress)
    info = extractor.weights.to_json() if extractor.weights else {}
    result: LayersResult = {
        "backbone": backbone,
        "weights": str(info.get("name")),
        "weights_info": info,
        "size": list(canvas),
        "nodes": [_row(*parts, canvas) for parts in zip(facts, fields, effective, probed, strict=True)],
        "output": None if output is None else str(output),
        "probed": None if rows is None else summary(rows),
    }
    if output is not None:
        gradients = [Gradient(field.gradient.numpy(), field.box, field.image) for field in fields]
        write_fields(Path(output), result, gradients, read_image(pictures[0]) if pictures else None)
    return result


def list_layers(backbone: str | None = None) -> LayersListing:
    """List the backbones whose layers are named, with these; or all layers of one backbone."""
    if backbone is not None:
        return {"backbones": {backbone: layer_names(backbone)}}
    return {"backbones": {name: [level.name for level in levels] for name, levels in preset_names().items()}}


def _extractor(backbone: str, names: list[str], weights: str | None, seed: int) -> FeatureExtractor:
    try:
        return FeatureExtractor(backbone, names, weights or "default", seed)
    except WeightsMissing:
        if weights is not None:
            raise
        return FeatureExtractor(backbone, names, "random", seed)  # the result says so


def _side(extractor: FeatureExtractor) -> int:
    """Choose the side of the empty image, so that a transformer answers in seconds."""
    cells = extractor.cells
    if cells.prefix is not None:
        return min(SIDE, _PATCHES * cells.patch)
    return _WINDOWED if cells.channels_last else SIDE


def _canvas(size: int | str | tuple[int, int] | None, patch: int) -> tuple[int, int]:
    if isinstance(size, str):
        raise InputError(f"size={size!r}: layers are measured at a size in pixels, e.g. 256 or (256, 512)")
    if size is None:
        side = round(256 / patch) * patch
        return side, side
    return (size, size) if isinstance(size, int) else size


def _prepared(paths: list[str], prepare: Preprocess, progress: Progress | None) -> Iterator[Tensor]:
    for done, path in enumerate(paths, start=1):
        yield torch.from_numpy(prepare(read_image(path)))[None]  # (1, 3, H, W)
        if progress is not None:
            progress("measuring on images", done, len(paths))


def _row(
    facts: LayerFacts, field: GradientField, effective: int | None, probed: LayerProbe | None, canvas: tuple[int, int]
) -> LayerResult:
    return {
        "node": facts.node,
        "name": facts.layer,
        "grid": list(facts.grid),
        "stride": max(facts.stride),
        "channels": facts.channels,
        "rf_gradient": field.size,
        "rf_at_least": field.at_least,
        "rf_image": field.image,
        "rf_theoretical": facts.theoretical,
        "rf_effective": effective,
        "rrf": relative_field(field.size, canvas),
        "macs": facts.macs,
        "probe": probed,
    }
