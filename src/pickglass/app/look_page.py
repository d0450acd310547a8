"""The page of ``pickglass look``: an image, and what is left of it in each layer, cell by cell."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pickglass.app.page import PLAIN_TAIL, as_text, head
from pickglass.app.pictures import (
    PREDICTED,
    Array,
    display,
    draw_contours,
    heat_colours,
    picture_size,
    shrink_max,
    tint,
)
from pickglass.app.results import LookLayer, LookResult
from pickglass.data.files import written_whole
from pickglass.features.anatomy.visibility import FAINT, VISIBLE, touched_cells

__all__ = ["Channel", "LayerView", "Scene", "sentence", "summary", "write_page"]

_SIDE = 256  # px, longest side of a layer's picture; more where the grid is finer
_LINES = 6  # px: smaller cells get no lines between them
_SMALL = 20  # px: smaller defects get a frame of this side
_HEAT = 8.0  # sd at the bright end of the contrast maps
_CLOSE_UP = 6  # times the defect's extent, and at least:
_LEAST_CLOSE_UP = 48  # px
_FILTER = 56  # px, side of a filter's picture
_STYLE = """
.row{align-items:flex-start}.map{width:256px}.glance .map{width:calc((100% - 96px)/7);min-width:110px}
.channel{width:128px}.wide .row .map,.wide .channel{width:auto}
.map img,.channel img{width:100%;height:auto;display:block}
img{image-rendering:pixelated}.photo img{image-rendering:auto;max-width:100%;height:auto;display:block}
article{margin:14px 0}article p{margin:2px 0 8px}.badge.faint{color:var(--soft)}.ramp{display:inline-block;width:140px;
height:12px;vertical-align:middle;margin:0 6px}
"""


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
        map: (h, w) how much each cell stands out, in sd.
        colours: (h, w, 3) uint8, principal components.
        channels: strongest first.
        touched: (h, w) bool, the defect's cells; None without a defect.
        places: other places compared with.
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
    """The image.

    Attributes:
        name: of the file.
        pixels: as read, (H, W) or (H, W, 3).
        canvas: what the network reads, (H, W, 3) uint8.
        defect: bool, of the size of ``pixels``; None if none was named.
        window: top, left, bottom, right of the image on the canvas, as shares.
        good: how many good images were compared with.
    """

    name: str
    pixels: Array
    canvas: Array
    defect: NDArray[np.bool_] | None
    window: tuple[float, float, float, float]
    good: int


def write_page(
    path: Path, result: LookResult, scene: Scene, views: Sequence[LayerView], filters: Sequence[Array]
) -> None:
    """Write the page, whole or not at all."""
    height, width = result["size"]
    title = f"{scene.name} in {result['backbone']}"
    sub = f"weights: {result['weights']}; the network reads {height}x{width} px"
    parts = [
        head(title, _STYLE),
        f'<p class="sub">{as_text(sub)}</p>',
        "" if scene.defect is None else f"<p><strong>{as_text(summary(scene, views))}</strong></p>",
        _image(scene),
        _glance(scene, views),
        f"<h2>Layer by layer</h2>{''.join(_layer(scene, view) for view in views)}",
        _filters(filters),
        PLAIN_TAIL,
    ]
    with written_whole(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def sentence(view: LayerView, good: int = 0) -> str:
    """The verdict on a layer in words; empty without a defect."""
    facts = view.facts
    if facts["verdict"] is None:
        return ""
    where = f"places in {good // 2} good images" if good else "other places of this image"
    if facts["contrast_sd"] is None or view.beaten is None:
        grid = "x".join(str(n) for n in facts["grid"])
        return f"unclear: a grid of {grid} has {view.places} {where} to compare with, too few"
    say = f"{facts['verdict']} ({round(facts['contrast_sd'], 1) + 0.0:.1f} sd): "
    more = round((1 - view.beaten) * view.places)
    if more == 0:
        return f"{say}none of {view.places} {where} stands out as much"
    return f"{say}{more} of {view.places} {where} stand{'s' if more == 1 else ''} out as much"


def summary(scene: Scene, views: Sequence[LayerView]) -> str:
    """What happens to the defect on its way through the layers."""
    if scene.defect is None:
        return ""
    rows, columns = np.nonzero(scene.defect)
    height, width = (int(np.ptp(part)) + 1 for part in (rows, columns))
    by = {
        verdict: [view.facts["layer"] for view in views if view.facts["verdict"] == verdict]
        for verdict in ("visible", "faint", "lost", "unclear")
    }
    said = "; ".join(f"{verdict} in {', '.join(names)}" for verdict, names in by.items() if names)
    return f"The defect, {width}x{height} px of {scene.pixels.shape[1]}x{scene.pixels.shape[0]}, is {said}."


def _image(scene: Scene) -> str:
    base = display(scene.pixels)
    size = picture_size(*base.shape[:2])
    small = np.asarray(Image.fromarray(np.ascontiguousarray(base)).resize(size[::-1], Image.Resampling.LANCZOS))
    if scene.defect is None:
        return f'<section class="photo">{_figure(small, "the image")}</section>'
    figures = _figure(draw_contours(small, truth=shrink_max(scene.defect, size)), "the image; outlined: the defect")
    rows, columns = np.nonzero(scene.defect)
    extent = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    side = max(_LEAST_CLOSE_UP, _CLOSE_UP * extent)
    if side < max(base.shape[:2]) / 1.5:
        middle = (int(rows.min() + rows.max()) // 2, int(columns.min() + columns.max()) // 2)
        part = tuple(
            slice(max(0, min(at - side // 2, n - side)), max(0, min(at - side // 2, n - side)) + side)
            for at, n in zip(middle, base.shape[:2], strict=True)
        )
        times = max(1, round(320 / side))
        near = draw_contours(_enlarged(base[part], times), truth=_enlarged(scene.defect[part], times))
        figures += _figure(near, f"close-up, {times} times" if times > 1 else "close-up")
    return f'<section class="photo row">{figures}</section>'


def _glance(scene: Scene, views: Sequence[LayerView]) -> str:
    figures = ""
    for view in views:
        facts = view.facts
        said = "" if facts["verdict"] is None else f"<br>{_badge(facts)}"
        label = f"<strong>{as_text(facts['layer'])}</strong>, {_grid(facts)}"
        figures += _figure(_contrast_map(scene, view), f"{label}{said}", "map", f"contrast in {facts['layer']}")
    versus = f"{scene.good} good images" if scene.good else "the rest of the image"
    ramp = ",".join(f"rgb({r},{g},{b})" for r, g, b in heat_colours()[::32].tolist())
    rule = (
        ""
        if scene.defect is None
        else f" The verdict compares the strangest cell of the defect with what its outline finds at other places, in "
        f"standard deviations (sd) of these: visible from {VISIBLE:g} sd; faint from {FAINT:g}, or where fewer than "
        f"1 in 100 stand out as much; else lost."
        + ("" if scene.good else " The edges of a part stand out too: compare parts with good images (--good).")
    )
    return (
        f"<section><h2>What stands out in each layer</h2><p>Each square is one cell of the layer. Its colour: how far "
        f"its features are from those of {versus}, in standard deviations of all such distances, at the rim apart: 0"
        f'<span class="ramp" style="background:linear-gradient(90deg,{ramp})"></span>{_HEAT:g} or more.{rule}</p>'
        f'<div class="row glance">{figures}</div></section>'
    )


def _layer(scene: Scene, view: LayerView) -> str:
    facts = view.facts
    said = sentence(view, scene.good)
    figures = _figure(_cells_on_image(scene, view), "its cells on what the network reads", "map")
    figures += _figure(_outlined(scene, view, view.colours), "principal components as red, green, blue", "map")
    figures += _figure(_contrast_map(scene, view), "what stands out", "map")
    channels = ""
    for channel in view.channels:
        label = f"channel {channel.place}" + ("" if channel.strength is None else f": {channel.strength:.1f} sd")
        channels += _figure(_outlined(scene, view, _grey(channel.values)), label, "channel")
    how = "that respond most to the defect" if scene.defect is not None else "of the highest variance"
    return (
        f"<article><h3>{as_text(facts['layer'])}: {_grid(facts)}, a cell every {facts['stride']} px, "
        f"{facts['channels']} channels</h3><p>{as_text(said)}</p>"
        f'<div class="row">{figures}</div><p class="sub">channels {how}, each from its lowest (black) to its highest '
        f'value (white)</p><div class="row">{channels}</div></article>'
    )


def _filters(filters: Sequence[Array]) -> str:
    if not filters:
        return ""
    times = max(2, _FILTER // filters[0].shape[0])
    side = filters[0].shape[0] * times
    across = min(len(filters), max(4, 1000 // (side + 4)))
    sheet = np.full((-(-len(filters) // across) * (side + 4), across * (side + 4), 3), 255, np.uint8)
    for i, weights in enumerate(filters):
        top, left = i // across * (side + 4) + 2, i % across * (side + 4) + 2
        sheet[top : top + side, left : left + side] = _enlarged(weights, times)
    label = (
        f"{len(filters)} filters of {filters[0].shape[0]}x{filters[0].shape[1]} px, strongest first; grey is weight 0"
    )
    return f'<section><h2>First layer</h2><div class="photo">{_figure(sheet, label)}</div></section>'


def _grid(facts: LookLayer) -> str:
    return f"{facts['grid'][0]}x{facts['grid'][1]}"


def _badge(facts: LookLayer) -> str:
    verdict = str(facts["verdict"])
    kind = {"visible": "badge", "lost": "badge wrong"}.get(verdict, "badge faint")
    value = "" if facts["contrast_sd"] is None else f" ({round(facts['contrast_sd'], 1) + 0.0:.1f} sd)"
    return f'<span class="{kind}">{verdict}{value}</span>'


def _contrast_map(scene: Scene, view: LayerView) -> Array:
    share = np.clip(view.map / _HEAT, 0, 1)
    return _outlined(scene, view, heat_colours()[np.round(255 * share).astype(np.uint8)])


def _grey(values: Array) -> Array:
    low, high = float(values.min()), float(values.max())
    unit = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return np.repeat(np.round(255 * unit).astype(np.uint8)[..., None], 3, axis=2)  # (h, w, 3)


def _cells_on_image(scene: Scene, view: LayerView) -> Array:
    size = _picture(scene, view)
    base = np.asarray(Image.fromarray(scene.canvas).resize(size[::-1], Image.Resampling.LANCZOS))
    if view.touched is not None:
        base = tint(base, _nearest(view.touched, size), PREDICTED)
    h, w = view.map.shape
    canvas = Image.fromarray(base)
    pen = ImageDraw.Draw(canvas)
    if size[0] >= _LINES * h and size[1] >= _LINES * w:
        for i in range(1, h):
            pen.line((0, i * size[0] / h, size[1], i * size[0] / h), fill=(128, 128, 128))
        for i in range(1, w):
            pen.line((i * size[1] / w, 0, i * size[1] / w, size[0]), fill=(128, 128, 128))
    return _marked(scene, np.asarray(canvas))


def _outlined(scene: Scene, view: LayerView, cells: Array) -> Array:
    """Cells (h, w, 3), each a square of its true size, with the defect's outline."""
    return _marked(scene, _nearest(cells, _picture(scene, view)))


def _marked(scene: Scene, picture: Array) -> Array:
    if scene.defect is None:
        return picture
    inside = touched_cells(scene.defect, (picture.shape[0], picture.shape[1]), scene.window).numpy()
    rows, columns = np.nonzero(inside)
    top, left, bottom, right = int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())
    if max(bottom - top, right - left) >= _SMALL:
        return draw_contours(picture, truth=inside)
    framed = np.zeros_like(inside)  # a contour would hide the cell itself
    across = (_SMALL - (bottom - top)) // 2, (_SMALL - (right - left)) // 2
    framed[max(1, top - across[0]) : bottom + across[0], max(1, left - across[1]) : right + across[1]] = True
    return draw_contours(picture, truth=framed)


def _picture(scene: Scene, view: LayerView) -> tuple[int, int]:
    """Size (h, w) of a layer's pictures: the canvas' aspect, no cell lost."""
    height, width = scene.canvas.shape[:2]
    side = max(_SIDE, *view.map.shape)
    scale = side / max(height, width)
    return max(1, round(height * scale), view.map.shape[0]), max(1, round(width * scale), view.map.shape[1])


def _nearest(cells: Array, size: tuple[int, int]) -> Array:
    rows = np.arange(size[0]) * cells.shape[0] // size[0]
    columns = np.arange(size[1]) * cells.shape[1] // size[1]
    return np.asarray(cells[rows][:, columns])


def _enlarged(pixels: Array, times: int) -> Array:
    return np.asarray(pixels.repeat(times, axis=0).repeat(times, axis=1))


def _figure(pixels: Array, caption: str, kind: str = "", alt: str | None = None) -> str:
    """A picture with its caption, which is HTML."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    alt = as_text(caption if alt is None else alt)
    return (
        f'<figure class="{kind}"><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
