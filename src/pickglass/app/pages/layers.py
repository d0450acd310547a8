"""The receptive fields drawn: each layer's gradient in ink, and the nested fields over an image.

The first is figure 1 of the supplementary material of Heckler, König and Bergmann (CVPR workshops 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pickglass.app.pages.build import write_page
from pickglass.app.pages.images import Array, close_up, display, enlarged, jpeg, png, shrink_max
from pickglass.app.results import LayerResult, LayersResult
from pickglass.data.files import written_whole

__all__ = ["Gradient", "draw_gradient", "draw_nested", "write_fields"]

SIDE = 320  # px of a gradient's picture
LONGEST = 960  # px of the picture with the nested fields
ROOM = 1.5  # times the largest field: what the pictures of the gradients show
BOX = (224, 112, 32, 255)  # an orange that shows on white and on black
COLOURS = ("#ffb000", "#33bbee", "#ee3377", "#44bb66", "#aa77ff", "#ff7744", "#bbbbbb")


@dataclass(frozen=True)
class Gradient:
    """The gradient of a layer's centre cell.

    Attributes:
        values: ``(S, S)`` as a share of its maximum.
        box: x, y, width, height of the pixels that count.
        image: what it was measured on, ``"zero"`` or ``"noise"``.
    """

    values: Array
    box: tuple[int, int, int, int]
    image: str


class _Layer(NamedTuple):
    """A row of the table: the layer, its field and its cost in words."""

    facts: LayerResult
    field: str
    cost: str


def write_fields(path: Path, result: LayersResult, gradients: Sequence[Gradient], image: Array | None) -> Path:
    """Write a page (.html) or a picture (.png), whole or not at all, and return its path.

    Args:
        path: what to write.
        result: the layers.
        gradients: one a layer.
        image: the original pixels of an image to draw the fields on; None without one.
    """
    shown = _common_side(gradients)
    drawn = [draw_gradient(gradient, shown) for gradient in gradients]
    nested = None if image is None else draw_nested(image, result["nodes"], result["size"])
    if path.suffix == ".png":
        with written_whole(path) as temporary:
            Image.fromarray(_sheet(drawn, result["nodes"], nested)).save(temporary, "PNG")
        return path
    pictures = [
        png("", f"{node['name']}: {_pixels(node)}, on a {gradient.image} image", pixels)
        for pixels, node, gradient in zip(drawn, result["nodes"], gradients, strict=True)
    ]
    effective = any(node["rf_effective"] is not None for node in result["nodes"])
    caption = "thick: by gradient" + ("; thin: effective, on these images" if effective else "")
    values = {
        "title": f"{result['backbone']}: layers",
        "result": result,
        "layers": [_Layer(node, _pixels(node), _cost(node["macs"])) for node in result["nodes"]],
        "effective": effective,
        "gradients": pictures,
        "cropped": shown if shown < len(gradients[0].values) else None,
        "nested": None if nested is None else jpeg("", caption, nested),
    }
    return write_page(path, "layers.html.j2", values)


def draw_gradient(gradient: Gradient, shown: int) -> Array:
    """Draw a gradient in black ink on nothing, ``(h, w, 4)`` uint8, its box outlined.

    The square root is drawn, for most of a gradient is faint; small fields keep their darkest pixel.

    Args:
        gradient: gradient of the layer.
        shown: px of its middle that are drawn.
    """
    n = len(gradient.values)
    part = close_up((n // 2, n // 2), shown, (n, n))
    share = np.sqrt(gradient.values[part])  # (shown, shown)
    side = min(SIDE, shown)
    times = max(1, SIDE // shown)
    ink = enlarged(np.round(255 * shrink_max(share, (side, side))).astype(np.uint8), times)  # (h, w)
    canvas = Image.fromarray(np.stack([np.zeros_like(ink)] * 3 + [ink], axis=2), "RGBA")
    scale = side * times / shown
    x, y = ((start - cut.start) * scale for start, cut in zip(gradient.box[:2], part[::-1], strict=True))
    width, height = (extent * scale for extent in gradient.box[2:])
    ImageDraw.Draw(canvas).rectangle((x - 2, y - 2, x + width + 1, y + height + 1), outline=BOX, width=2)
    return np.asarray(canvas)


def draw_nested(image: Array, nodes: Sequence[LayerResult], size: Sequence[int]) -> Array:
    """Draw each layer's field around the middle of an image, ``(h, w, 3)`` uint8.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``, the original pixels.
        nodes: the layers; the measured effective field is drawn with a thin line where there is one.
        size: [H, W] of the network's input, to which images are squeezed.
    """
    base = Image.fromarray(np.ascontiguousarray(display(image)))
    scale = LONGEST / max(base.size)
    base = base.resize((max(1, round(base.width * scale)), max(1, round(base.height * scale))))
    pen, font = ImageDraw.Draw(base), ImageFont.load_default(16)
    for i, node in reversed(list(enumerate(nodes))):  # the smallest last, on top
        colour = COLOURS[i % len(COLOURS)]
        for field, width in ((node["rf_gradient"], 3), (node["rf_effective"], 1)):
            if field is not None:
                box = _box(field, base.size, size)
                pen.rectangle(box, outline=colour, width=width)
        place = (8, 8 + 20 * i)
        text = f"{node['name']}: {_pixels(node)}"
        pen.rectangle(pen.textbbox(place, text, font), fill="black")
        pen.text(place, text, colour, font)
    return np.asarray(base)


def _common_side(gradients: Sequence[Gradient]) -> int:
    """Return how many pixels all pictures show: the largest field with some room, so that fields can be compared."""
    n = len(gradients[0].values)
    return min(n, max(16, round(ROOM * max(max(gradient.box[2:]) for gradient in gradients))))


def _box(field: int, picture: tuple[int, int], size: Sequence[int]) -> tuple[float, float, float, float]:
    """Return the corners of a field around the middle, inside the picture, so that a large one has four sides."""
    half_w, half_h = field / size[1] * picture[0] / 2, field / size[0] * picture[1] / 2
    left, top = max(0.0, picture[0] / 2 - half_w), max(0.0, picture[1] / 2 - half_h)
    return left, top, min(picture[0] - 1.0, picture[0] / 2 + half_w), min(picture[1] - 1.0, picture[1] / 2 + half_h)


def _pixels(node: LayerResult) -> str:
    return f"{'>= ' if node['rf_at_least'] else ''}{node['rf_gradient']} px"


def _cost(macs: int) -> str:
    return f"{macs / 1e9:.2f} G" if macs >= 1e9 else f"{macs / 1e6:.1f} M"


def _sheet(gradients: Sequence[Array], nodes: Sequence[LayerResult], nested: Array | None) -> Array:
    gap, head = 12, 28
    width = gap + sum(g.shape[1] + gap for g in gradients)
    height = head + gradients[0].shape[0] + gap
    if nested is not None:
        width, height = max(width, nested.shape[1] + 2 * gap), height + nested.shape[0] + gap
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(14), gap
    for gradient, node in zip(gradients, nodes, strict=True):
        pen.text((x, 6), f"{node['name']}: {_pixels(node)}", "black", font)
        drawn = Image.fromarray(gradient, "RGBA")
        sheet.paste(drawn, (x, head), drawn)
        pen.rectangle((x - 1, head - 1, x + gradient.shape[1], head + gradient.shape[0]), outline="#999999")
        x += gradient.shape[1] + gap
    if nested is not None:
        sheet.paste(Image.fromarray(nested), (gap, head + gradients[0].shape[0] + gap))
    return np.asarray(sheet)
