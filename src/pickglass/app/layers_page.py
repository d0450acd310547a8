"""The receptive fields drawn: each layer's gradient in shades of black, and the nested fields over an image.

The first is figure 1 of the supplementary material of Heckler, König and Bergmann (CVPR workshops 2023).
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pickglass.app.page import DARK, LIGHT, STYLE
from pickglass.app.pictures import display, shrink_max
from pickglass.app.results import LayerResult, LayersResult
from pickglass.data.files import written_whole
from pickglass.features.anatomy.gradient_field import GradientField

__all__ = ["draw_gradient", "draw_nested", "write_fields"]

SIDE = 320  # px of a gradient's picture
LONGEST = 960  # px of the picture with the nested fields
COLOURS = ("#ffb000", "#33bbee", "#ee3377", "#44bb66", "#aa77ff", "#ff7744", "#bbbbbb")

Array = np.ndarray[Any, Any]


def draw_gradient(field: GradientField) -> Array:
    """Picture (h, w, 3) of a gradient: white where there is none, black at its maximum, the box outlined.

    The square root is drawn, for most of a gradient is faint; small fields keep their darkest pixel.
    """
    share = np.sqrt(field.gradient.numpy())  # (S, S)
    side = min(SIDE, len(share))
    grey = np.round(255 * (1 - shrink_max(share, (side, side)))).astype(np.uint8)  # (h, w)
    canvas = Image.fromarray(grey).convert("RGB")
    x, y, width, height = (value * side / len(share) for value in field.box)
    ImageDraw.Draw(canvas).rectangle((x - 2, y - 2, x + width + 1, y + height + 1), outline="#c44a00")
    return np.asarray(canvas)


def draw_nested(image: Array, nodes: Sequence[LayerResult], size: Sequence[int]) -> Array:
    """Picture (h, w, 3) of an image with each layer's field around its middle.

    Args:
        image: (H, W) or (H, W, 3), the original pixels.
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


def write_fields(path: Path, result: LayersResult, fields: Sequence[GradientField], image: Array | None) -> None:
    """Write a page (.html) or a picture (.png), whole or not at all."""
    gradients = [draw_gradient(field) for field in fields]
    nested = None if image is None else draw_nested(image, result["nodes"], result["size"])
    with written_whole(path) as temporary:
        if path.suffix == ".png":
            Image.fromarray(_sheet(gradients, result["nodes"], nested)).save(temporary, "PNG")
        else:
            temporary.write_text(_page(result, fields, gradients, nested), encoding="utf-8")


def _box(field: int, picture: tuple[int, int], size: Sequence[int]) -> tuple[float, float, float, float]:
    """Corners of a field around the middle; kept inside, so that a field larger than the image has four sides."""
    half_w, half_h = field / size[1] * picture[0] / 2, field / size[0] * picture[1] / 2
    left, top = max(0.0, picture[0] / 2 - half_w), max(0.0, picture[1] / 2 - half_h)
    return left, top, min(picture[0] - 1.0, picture[0] / 2 + half_w), min(picture[1] - 1.0, picture[1] / 2 + half_h)


def _pixels(node: LayerResult) -> str:
    return f"{'>= ' if node['rf_at_least'] else ''}{node['rf_gradient']} px"


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
        sheet.paste(Image.fromarray(gradient), (x, head))
        pen.rectangle((x - 1, head - 1, x + gradient.shape[1], head + gradient.shape[0]), outline="#999999")
        x += gradient.shape[1] + gap
    if nested is not None:
        sheet.paste(Image.fromarray(nested), (gap, head + gradients[0].shape[0] + gap))
    return np.asarray(sheet)


def _page(
    result: LayersResult, fields: Sequence[GradientField], gradients: Sequence[Array], nested: Array | None
) -> str:
    name, used = html.escape(result["backbone"]), html.escape(result["weights"])
    height, width = result["size"]
    rows = "".join(_table_row(node) for node in result["nodes"])
    figures = "".join(
        f'<figure><img src="{_source(picture)}" alt="gradient of {html.escape(node["name"])}">'
        f"<figcaption>{html.escape(node['name'])}: {_pixels(node)}, on a {field.image} image of "
        f"{len(field.gradient)} px</figcaption></figure>"
        for picture, node, field in zip(gradients, result["nodes"], fields, strict=True)
    )
    over = ""
    if nested is not None:
        over = (
            f'<section><h2>On the image</h2><figure><img src="{_source(nested)}" alt="nested receptive fields" '
            f'style="max-width:100%"><figcaption>thick: by gradient; thin: effective, on these images</figcaption>'
            f"</figure></section>"
        )
    style = f":root{{{LIGHT}}}" + STYLE.replace("DARK", DARK)
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: layers</title>
<meta name="viewport" content="width=device-width"><style>{style}</style></head><body><h1>{name}</h1>
<p class="sub">weights: {used}; input {height}x{width} px</p><section class="scroll"><table><thead><tr><th>layer<th>grid
<th>stride<th>channels<th>field by gradient<th>theoretical<th>effective<th>RRF<th>multiply-adds</tr></thead>
<tbody>{rows}</tbody></table></section>
<section><h2>Gradient of the centre cell</h2><div class="row">{figures}</div></section>{over}</body></html>
"""


def _table_row(node: LayerResult) -> str:
    cells = (
        html.escape(node["name"]),
        f"{node['grid'][0]}x{node['grid'][1]}",
        str(node["stride"]),
        str(node["channels"]),
        _pixels(node).replace(">", "&gt;"),
        "?" if node["rf_theoretical"] is None else str(node["rf_theoretical"]),
        "–" if node["rf_effective"] is None else str(node["rf_effective"]),
        f"{node['rrf']:.3f}",
        f"{node['macs'] / 1e9:.3f} G",
    )
    return f"<tr><th>{cells[0]}</th>{''.join(f'<td>{cell}</td>' for cell in cells[1:])}</tr>"


def _source(pixels: Array) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
