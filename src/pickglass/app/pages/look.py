"""The page of ``pickglass look``: an image, and what is left of it in each layer, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pickglass.app.pages.build import write_page
from pickglass.app.pages.images import (
    HEAT_COLOURS,
    PREDICTED,
    Array,
    Badge,
    Picture,
    close_up,
    display,
    draw_contours,
    enlarged,
    grow,
    jpeg,
    nearest,
    picture_size,
    png,
    ramp,
    shape_of,
    shrink_max,
    thumbnail,
    tint,
)
from pickglass.app.results import LookLayer, LookResult

__all__ = ["BRIGHT", "Channel", "LayerView", "Scene", "at_a_glance", "sentence", "summary", "write_look"]

SIDE = 256  # px, longest side of a layer's picture; more where the grid is finer
LINES = 6  # px: smaller cells get no lines between them
SMALL = 20  # px: smaller defects get a frame of this side
BRIGHT = 8.0  # sd at the bright end of the contrast maps
CLOSE_UP = 6  # times the defect's extent, and at least:
LEAST_CLOSE_UP = 48  # px
FILTER = 56  # px, side of a filter's picture


class Channel(NamedTuple):
    """One channel of a layer: its place, its values (h, w), and how strongly it responds to the defect, in sd."""

    place: int
    values: Array
    strength: float | None


@dataclass(frozen=True)
class LayerView:
    """What the page shows of a layer.

    Attributes:
        facts: its row of the result.
        map: ``(h, w)`` how much each cell stands out, in sd.
        colours: ``(h, w, 3)`` uint8, principal components.
        channels: strongest first.
        touched: ``(h, w)`` bool, the defect's cells; None without a defect.
        places: other places that the defect was compared with.
        beaten: share of them that stand out less; None if there are too few.
    """

    facts: LookLayer
    map: Array
    colours: Array
    channels: Sequence[Channel]
    touched: Array | None
    places: int
    beaten: float | None


@dataclass(frozen=True)
class Scene:
    """The image, and the rules by which the layers were judged.

    Attributes:
        name: name of the file.
        pixels: the original pixels, ``(H, W)`` or ``(H, W, 3)``.
        canvas: what the network reads, ``(H, W, 3)`` uint8.
        defect: bool, of the size of ``pixels``; None if none was named.
        outline: bool, of the size of ``canvas``, the pixels that the defect touches; None likewise.
        good: how many good images were compared with.
        visible: contrast in sd from which a defect is visible.
        faint: contrast in sd from which a defect is faint.
    """

    name: str
    pixels: Array
    canvas: Array
    defect: Array | None
    outline: Array | None
    good: int
    visible: float
    faint: float


class _Layer(NamedTuple):
    """A layer as the page shows it."""

    facts: LookLayer
    sentence: str
    pictures: Sequence[Picture]
    channels: Sequence[Picture]


def write_look(
    path: Path, result: LookResult, scene: Scene, views: Sequence[LayerView], filters: Sequence[Array]
) -> Path:
    """Write the page, whole or not at all, and return its path."""
    values = {
        "title": f"{scene.name} in {result['backbone']}",
        "name": scene.name,
        "backbone": result["backbone"],
        "weights": result["weights"],
        "size": result["size"],
        "summary": summary(scene, views),
        "judged": scene.defect is not None,
        "shape": shape_of(*scene.canvas.shape[:2]),
        "image": _image(scene),
        "versus": f"{scene.good} good images" if scene.good else "the rest of the image",
        "good": scene.good,
        "visible": scene.visible,
        "faint": scene.faint,
        "bright": BRIGHT,
        "ramp": ramp(),
        "glance": [at_a_glance(scene, view) for view in views],
        "layers": [_layer(scene, view) for view in views],
        "filters": _filters(filters) if filters else None,
    }
    return write_page(path, "look.html.j2", values)


def sentence(view: LayerView, good: int = 0) -> str:
    """Return the verdict on a layer in words; empty without a defect."""
    facts = view.facts
    if facts["verdict"] is None:
        return ""
    where = f"places in {good // 2} good images" if good else "other places of this image"
    if facts["contrast_sd"] is None or view.beaten is None:
        return f"unclear: a grid of {_grid(facts)} has {view.places} {where} to compare with, too few"
    verdict = f"{facts['verdict']} ({round(facts['contrast_sd'], 1) + 0.0:.1f} sd): "
    more = round((1 - view.beaten) * view.places)
    if more == 0:
        return f"{verdict}none of {view.places} {where} stands out as much"
    return f"{verdict}{more} of {view.places} {where} stand{'s' if more == 1 else ''} out as much"


def summary(scene: Scene, views: Sequence[LayerView]) -> str:
    """Return what happens to the defect on its way through the layers; empty without a defect."""
    if scene.defect is None:
        return ""
    rows, columns = np.nonzero(scene.defect)
    height, width = (int(np.ptp(part)) + 1 for part in (rows, columns))
    by_verdict = {
        verdict: [view.facts["layer"] for view in views if view.facts["verdict"] == verdict]
        for verdict in ("visible", "faint", "lost", "unclear")
    }
    fate = "; ".join(f"{verdict} in {', '.join(names)}" for verdict, names in by_verdict.items() if names)
    return f"The defect, {width}x{height} px of {scene.pixels.shape[1]}x{scene.pixels.shape[0]}, is {fate}."


def _image(scene: Scene) -> list[Picture]:
    base = display(scene.pixels)
    size = picture_size(*base.shape[:2])
    small = thumbnail(base, size)
    if scene.defect is None:
        return [jpeg("", "the image", small)]
    outlined = draw_contours(small, truth=shrink_max(scene.defect, size))
    pictures = [jpeg("", "the image; outlined: the defect", outlined)]
    rows, columns = np.nonzero(scene.defect)
    extent = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    side = max(LEAST_CLOSE_UP, CLOSE_UP * extent)
    if side < max(base.shape[:2]) / 1.5:
        middle = (int(rows.min() + rows.max()) // 2, int(columns.min() + columns.max()) // 2)
        part = close_up(middle, side, base.shape)
        times = max(1, round(320 / side))
        near = draw_contours(enlarged(base[part], times), truth=enlarged(scene.defect[part], times))
        pictures.append(jpeg("closeup", f"close-up, {times} times" if times > 1 else "close-up", near))
    return pictures


def at_a_glance(scene: Scene, view: LayerView) -> Picture:
    """Draw what stands out in a layer, with the verdict on the defect."""
    facts = view.facts
    return png("map", f"{facts['layer']}, {_grid(facts)}", _contrast_map(scene, view), _badge(facts))


def _layer(scene: Scene, view: LayerView) -> _Layer:
    pictures = [
        png("cells", "its cells on what the network reads", _cells_on_image(scene, view)),
        png("colours", "principal components as red, green, blue", _outlined(scene, view, view.colours)),
        png("map", "what stands out", _contrast_map(scene, view)),
    ]
    channels = [
        png(
            "channel",
            f"channel {channel.place}" + ("" if channel.strength is None else f": {channel.strength:.1f} sd"),
            _outlined(scene, view, _grey(channel.values)),
        )
        for channel in view.channels
    ]
    return _Layer(view.facts, sentence(view, scene.good), pictures, channels)


def _filters(filters: Sequence[Array]) -> Picture:
    """Draw the filters (k, k, 3) on one sheet; between them the page's background shows."""
    k = filters[0].shape[0]
    times = max(2, FILTER // k)
    side = k * times
    across = min(len(filters), max(4, 1000 // (side + 4)))
    sheet = np.zeros((-(-len(filters) // across) * (side + 4), across * (side + 4), 4), np.uint8)
    for i, weights in enumerate(filters):
        top, left = i // across * (side + 4) + 2, i % across * (side + 4) + 2
        sheet[top : top + side, left : left + side, :3] = enlarged(weights, times)
        sheet[top : top + side, left : left + side, 3] = 255
    return png("", f"{len(filters)} filters of {k}x{k} px, strongest first; grey is weight 0", sheet)


def _grid(facts: LookLayer) -> str:
    return f"{facts['grid'][0]}x{facts['grid'][1]}"


def _badge(facts: LookLayer) -> Badge | None:
    verdict = facts["verdict"]
    if verdict is None:
        return None
    value = "" if facts["contrast_sd"] is None else f" ({round(facts['contrast_sd'], 1) + 0.0:.1f} sd)"
    return Badge("right" if verdict == "visible" else "wrong" if verdict == "lost" else "faint", f"{verdict}{value}")


def _contrast_map(scene: Scene, view: LayerView) -> Array:
    share = np.clip(view.map / BRIGHT, 0, 1)
    return _outlined(scene, view, HEAT_COLOURS[np.round(255 * share).astype(np.uint8)])


def _grey(values: Array) -> Array:
    low, high = float(values.min()), float(values.max())
    unit = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return np.repeat(np.round(255 * unit).astype(np.uint8)[..., None], 3, axis=2)  # (h, w, 3)


def _cells_on_image(scene: Scene, view: LayerView) -> Array:
    size = _picture_size(scene, view)
    base = thumbnail(scene.canvas, size)
    if view.touched is not None:
        base = tint(base, nearest(view.touched, size), PREDICTED)
    h, w = view.map.shape
    canvas = Image.fromarray(base)
    pen = ImageDraw.Draw(canvas)
    if size[0] >= LINES * h and size[1] >= LINES * w:
        for i in range(1, h):
            pen.line((0, i * size[0] / h, size[1], i * size[0] / h), fill=(128, 128, 128))
        for i in range(1, w):
            pen.line((i * size[1] / w, 0, i * size[1] / w, size[0]), fill=(128, 128, 128))
    return _marked(scene, np.asarray(canvas))


def _outlined(scene: Scene, view: LayerView, cells: Array) -> Array:
    """Draw cells (h, w, 3), each a square of its true size, with the defect's outline."""
    return _marked(scene, nearest(cells, _picture_size(scene, view)))


def _marked(scene: Scene, picture: Array) -> Array:
    """Outline the defect; a small one gets a frame, because a contour would hide the cell itself."""
    if scene.outline is None:
        return picture
    size = (picture.shape[0], picture.shape[1])
    enlarging = size[0] >= scene.outline.shape[0] and size[1] >= scene.outline.shape[1]
    inside = nearest(scene.outline, size) if enlarging else shrink_max(scene.outline, size)
    rows, columns = np.nonzero(inside)
    top, left, bottom, right = int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())
    if max(bottom - top, right - left) >= SMALL:
        return draw_contours(picture, truth=inside)
    framed = np.zeros_like(inside)
    across = (SMALL - (bottom - top)) // 2, (SMALL - (right - left)) // 2
    framed[max(1, top - across[0]) : bottom + across[0], max(1, left - across[1]) : right + across[1]] = True
    for mask in (framed, grow(framed), grow(grow(framed))):  # three pixels wide: a page shows the picture smaller
        picture = draw_contours(picture, truth=mask)
    return picture


def _picture_size(scene: Scene, view: LayerView) -> tuple[int, int]:
    """Return the size (h, w) of a layer's pictures: the canvas' aspect, no cell lost."""
    height, width = scene.canvas.shape[:2]
    side = max(SIDE, *view.map.shape)
    scale = side / max(height, width)
    return max(1, round(height * scale), view.map.shape[0]), max(1, round(width * scale), view.map.shape[1])
