"""The layer explorer: what each layer shows of an image, and what the cell under a pixel sees, as data for a page.

Letters: C channels and h x w cells of a layer, H x W pixels of the network's input.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pickglass.app.pages.images import HEAT_COLOURS
from pickglass.app.results import ExploredField, ExploredLayer, ExploreResult
from pickglass.app.see.defect import named_defect
from pickglass.app.see.inside import tile_at
from pickglass.app.see.look import colours_of
from pickglass.app.see.request import BackboneRequest
from pickglass.data import MAX_PIXELS, Preprocess, as_table
from pickglass.detectors.detector import Detector
from pickglass.errors import InputError, UnknownName
from pickglass.features.anatomy.facts import layer_facts
from pickglass.features.anatomy.gradient_field import field_of_cell
from pickglass.features.anatomy.visibility import Seen, contrast, stand_out, touched_cells
from pickglass.features.extractor import FeatureExtractor, shown_layers
from pickglass.nn.maps import kept_cells

__all__ = ["LayerExplorer", "PictureKind"]

PictureKind = Literal["colours", "map"]
"""``colours``: principal components of the features as red, green and blue; ``map``: how much each cell stands out."""

_SIDE = 256  # px of the input where only a backbone is named
_PROBED = 128  # px: theoretical fields do not hang on the size
_BRIGHT = 8.0  # sd at the bright end of the map


class _Frame(NamedTuple):
    """The part of the image that the network reads at once, in pixels of the image; it may reach beyond."""

    top: float
    left: float
    height: float
    width: float

    def box(self, size: tuple[int, int]) -> list[int]:
        """Return what of it lies in an image of this size (H, W), [x, y, w, h]."""
        return _cut((self.left, self.top, self.left + self.width, self.top + self.height), size)


class LayerExplorer:
    """One image is looked at through the layers of a backbone, or through those that a model reads.

    Args:
        source: a fitted detector, or which backbone and layers.
        image: file, array, PIL image or encoded bytes, or a row.
        place: x, y of the image; of a tiled detector the tile around it is shown. None: the middle.
        max_pixels: images with more are refused.

    Raises:
        InputError: no image or several, a place outside of it, unknown names.
        DataError: the image cannot be read.
    """

    def __init__(
        self,
        source: Detector | BackboneRequest,
        image: Any,
        *,
        place: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        table = as_table(image, role="test")
        if len(table) != 1:
            raise InputError(f"{len(table)} images: expected one to look at")
        pixels = table[0].image(max_pixels)
        self._max_pixels = max_pixels
        self.size = (pixels.shape[0], pixels.shape[1])
        x, y = place or (self.size[1] // 2, self.size[0] // 2)
        self._check(x, y)
        if isinstance(source, Detector):
            self._extractor, prepare = source.network, source.preprocess
        else:
            self._extractor, prepare = _of_backbone(source, self.size)
        window = prepare.window(self.size)
        canvas = torch.from_numpy(prepare(pixels))[None]  # (1, 3, H, W)
        kept = prepare.kept(self.size)
        keep = None if kept is None else torch.from_numpy(kept)[None]  # (1, H, W)
        if isinstance(source, Detector) and source.tiles is not None:
            tile = tile_at(source, self.size, window, (y, x))
            cut = source.tiles.cut_keep(keep, 1, canvas.device, range(tile.number, tile.number + 1))
            canvas = source.tiles.cut(canvas, range(tile.number, tile.number + 1))[:, 0]
            keep, window = None if cut is None else cut[:, 0], tile.window
        self._input, self._window = canvas, window
        down, across = self.size[0] / (window[2] - window[0]), self.size[1] / (window[3] - window[1])
        self._frame = _Frame(-window[0] * down, -window[1] * across, down, across)
        with torch.no_grad():
            levels = [level[0].float().cpu() for level in self._extractor(canvas.to(self._extractor.mean.device))]
        cells = [kept_cells(keep, (level.shape[1], level.shape[2])) for level in levels]
        self._levels = [Seen(level, None if own is None else own[0]) for level, own in zip(levels, cells, strict=True)]
        patch = self._extractor.cells.patch
        side = max(1, _PROBED // patch) * patch
        known = [fact.theoretical for fact in layer_facts(self._extractor, (side, side))]
        scales, layers = self._extractor.scales, self._extractor.layers
        self._names = [name if scale == 1 else f"{name} at {scale:g}" for scale in scales for name in layers]
        self._theoretical = [
            math.ceil(field / scale) if isinstance(field, int) else field for scale in scales for field in known
        ]
        self._maps: list[Tensor] | None = None

    def explore(self, *, mask: str | Path | None = None, box: Sequence[int] | None = None) -> ExploreResult:
        """Say what the layers are, and with a mask or box of a defect, whether they still show it.

        Args:
            mask: image file, above 0 where the defect is.
            box: x, y, width, height of the defect in pixels of the image, in place of a mask.

        Raises:
            InputError: a mask and a box, an empty mask, a box outside the image, or beyond what is shown of it.
        """
        defect = named_defect(self.size, mask, box, self._max_pixels)
        height, width = self._input.shape[2:]
        layers: list[ExploredLayer] = []
        maps = []
        for name, seen, theoretical in zip(self._names, self._levels, self._theoretical, strict=True):
            channels, h, w = seen.features.shape
            found = None
            if defect is not None:
                cells = touched_cells(defect, (h, w), self._window)
                if not bool(cells.any()):
                    raise InputError("the defect lies outside of the tile that is shown: ask for the place where it is")
                found = contrast(seen, cells)
            maps.append(stand_out(seen) if found is None else found.map)
            layers.append(
                {
                    "layer": name,
                    "grid": [h, w],
                    "stride": max(round(height / h), round(width / w)),
                    "channels": channels,
                    "rf_theoretical": theoretical,
                    "contrast_sd": None if found is None else found.sd,
                    "verdict": None if found is None else found.verdict,
                }
            )
        self._maps = maps
        return {
            "backbone": self._extractor.backbone,
            "weights": str(self._extractor.weights.name) if self._extractor.weights else "",
            "size": list(self.size),
            "seen": self._frame.box(self.size),
            "frame": [self._frame.left, self._frame.top, self._frame.width, self._frame.height],
            "input": [height, width],
            "layers": layers,
        }

    def picture(self, layer: str, kind: PictureKind) -> bytes:
        """Draw a layer as a PNG with one pixel a cell, to be enlarged without smoothing over the ``frame``.

        Args:
            layer: its name.
            kind: ``colours``, or ``map``: as :meth:`explore` measured it last, bright from 8 standard deviations.

        Raises:
            UnknownName: no such layer, or kind of picture.
        """
        if layer not in self._names:
            raise UnknownName("layer", layer, self._names)
        if kind not in get_args(PictureKind):
            raise UnknownName("kind of picture", kind, get_args(PictureKind))
        number = self._names.index(layer)
        seen = self._levels[number]
        if kind == "colours":
            counts = torch.ones(seen.features.shape[1:], dtype=torch.bool) if seen.keep is None else seen.keep
            pixels = colours_of(seen.features, counts)
        else:
            if self._maps is None:
                self.explore()
            values = (self._maps or [])[number].numpy()
            pixels = HEAT_COLOURS[np.round(255 * np.clip(values / _BRIGHT, 0, 1)).astype(np.uint8)]
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        return buffer.getvalue()

    def fields(self, x: int, y: int) -> list[ExploredField]:
        """Say what the cell over a pixel of the image sees, layer by layer.

        Raises:
            InputError: the pixel lies outside of the image, or of the tile that is shown.
        """
        self._check(x, y)
        place = (
            (y + 0.5 - self._frame.top) / self._frame.height,
            (x + 0.5 - self._frame.left) / self._frame.width,
        )
        if not (0 <= place[0] < 1 and 0 <= place[1] < 1):
            raise InputError(f"x {x}, y {y} lies outside of the tile that is shown: ask for the place where it is")
        height, width = self._input.shape[2:]
        answers: list[ExploredField] = []
        grids = [(seen.features.shape[1], seen.features.shape[2]) for seen in self._levels]
        cells = field_of_cell(self._extractor, self._input, grids, place)
        for name, field, seen, theoretical in zip(self._names, cells, self._levels, self._theoretical, strict=True):
            _, h, w = seen.features.shape
            middle = field.centre
            known = max(height, width) * 2 if theoretical == "global" else theoretical
            answers.append(
                {
                    "layer": name,
                    "cell": self._on_image(middle, (height / h, width / w)),
                    "theoretical": None if known is None else self._on_image(middle, (float(known), float(known))),
                    "effective": None if field.side is None else self._on_image(middle, (field.side, field.side)),
                }
            )
        return answers

    def _check(self, x: int, y: int) -> None:
        if not (0 <= x < self.size[1] and 0 <= y < self.size[0]):
            raise InputError(
                f"place x {x}, y {y}: expected a pixel of the image, which is {self.size[1]} pixels wide and "
                f"{self.size[0]} high"
            )

    def _on_image(self, middle: tuple[float, float], extent: tuple[float, float]) -> list[int]:
        """Return a box around y, x of the network's input as one of the image."""
        down = self._frame.height / self._input.shape[2]
        across = self._frame.width / self._input.shape[3]
        top = self._frame.top + (middle[0] - extent[0] / 2) * down
        left = self._frame.left + (middle[1] - extent[1] / 2) * across
        return _cut((left, top, left + extent[1] * across, top + extent[0] * down), self.size)


def _of_backbone(request: BackboneRequest, size: tuple[int, int]) -> tuple[FeatureExtractor, Preprocess]:
    """Return the network of a request, and how an image of this size becomes its input."""
    chosen = list(request.layers) if request.layers else shown_layers(request.backbone)
    extractor = FeatureExtractor(request.backbone, chosen, request.weights or "default", request.seed)
    patch = extractor.cells.patch
    prepare = Preprocess.for_images(request.size or round(_SIDE / patch) * patch, extractor.interpolation, [size])
    extractor.shapes(prepare.size)  # says what is wrong with the size or a layer
    return extractor, prepare


def _cut(corners: tuple[float, float, float, float], size: tuple[int, int]) -> list[int]:
    """Return the box [x, y, w, h] between corners left, top, right, bottom, as far as it lies in an image (H, W)."""
    left, top = max(0, math.floor(corners[0] + 1e-6)), max(0, math.floor(corners[1] + 1e-6))
    right, bottom = min(size[1], math.ceil(corners[2] - 1e-6)), min(size[0], math.ceil(corners[3] - 1e-6))
    return [left, top, max(1, right - left), max(1, bottom - top)]
