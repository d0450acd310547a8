"""The page of an advice: the answer, what was painted and what was found, the ranking, and what was ruled out."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pickglass.app.advise.painted import Judged, PaintedSet
from pickglass.app.advise.scoring import window_map
from pickglass.app.page import PLAIN_TAIL, as_text, head
from pickglass.app.pictures import display, draw_contours, heat
from pickglass.app.results import Advised, AdviseResult
from pickglass.data.files import written_whole

__all__ = ["Shown", "write_advice"]

Array = NDArray[Any]

_STYLE = """
.answer code{display:block;background:var(--card);padding:10px 12px;border-radius:8px;white-space:pre-wrap;
overflow-wrap:anywhere}
td.left,th.left{text-align:left!important}td.bar{min-width:150px}.chosen{font-weight:600}.slow{color:var(--soft)}
.span{position:relative;display:block;height:12px;background:var(--card);border-radius:3px;min-width:140px}
.span b{position:absolute;top:4px;height:4px;background:var(--accent);opacity:.45}
.span u{position:absolute;top:0;width:3px;height:12px;background:var(--accent)}
.painted .cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,620px),1fr));gap:18px}
.painted figure{width:140px}.painted img{width:100%;image-rendering:pixelated;border-radius:4px}
.painted .row{align-items:flex-start;flex-wrap:nowrap;overflow-x:auto}.nowrap{white-space:nowrap}
"""
_ROWS = 25  # of the ranking
_SHOWN = 10  # painted images
_SIDE = 96  # px, least side of a close-up


@dataclass(frozen=True)
class Shown:
    """A candidate whose maps are shown: its name, and one (h, w) map a judged image."""

    name: str
    maps: Sequence[NDArray[np.float32]]


def write_advice(path: Path, name: str, result: AdviseResult, data: PaintedSet, shown: Sequence[Shown]) -> None:
    """Write the page, whole or not at all."""
    height, width = result["image"]
    extent = f"{result['defect_px']:g} px" + ("" if result["defect_mm"] is None else f" ({result['defect_mm']:.3g} mm)")
    parts = [
        head(f"{name}: what sees a defect of {extent}?", _STYLE),
        f'<p class="sub">images of {height}x{width} px; {result["n_fit"]} good images taught, on {result["n_held"]} '
        f"others {result['n_painted']} defects were painted; {result['seconds']:.0f} s</p>",
        _answer(result),
        _ranking(result["ranking"], result["command"]),
        _painted(data, shown),
        _ruled_out(result),
        PLAIN_TAIL,
    ]
    with written_whole(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _answer(result: AdviseResult) -> str:
    limits = "".join(f"<li>{as_text(limit)}</li>" for limit in result["limits"])
    note = f'<div class="note"><strong>Limits</strong><ul>{limits}</ul></div>'
    if result["command"] is None:
        return f"<section>{note}</section>"
    return (
        f'<section class="answer"><h2>Use this</h2><code>{as_text(result["command"])}</code>'
        f"<p>Chosen as {as_text(result['why'])}.</p></section>"
        f"<section>{note}</section>"
    )


def _ranking(ranking: Sequence[Advised], command: str | None) -> str:
    if not ranking:
        return ""
    contrasts = list(ranking[0]["by_contrast"])
    heads = "".join(f"<th>at contrast {c}</th>" for c in contrasts)
    rows = ""
    for one in ranking[:_ROWS]:
        css = " ".join((["chosen"] if one["command"] == command else []) + (["slow"] if one["too_slow"] else []))
        low, high = one["aupro_05_interval"]
        size = "x".join(map(str, one["size"])) + ("" if one["tile"] is None else f", tiles {one['tile'][0]}")
        model = "–" if one["model_mb"] is None else f"{one['model_mb']:.0f}"
        about = "" if one["measured"] else "about "
        slow = ", too slow" if one["too_slow"] else ""
        rows += (
            f'<tr class="{css}"><td class="left">{as_text(one["method"])}</td><td class="left">'
            f'{as_text(one["backbone"])}</td><td class="left">{as_text("+".join(one["layers"]))}</td>'
            f'<td class="nowrap">{size}</td>'
            f'<td>{one["aupro_05"]:.3f}</td><td class="bar">{_span(one["aupro_05"], low, high)}</td>'
            + "".join(f"<td>{one['by_contrast'][c]:.2f}</td>" for c in contrasts)
            + f'<td>{one["image_auroc"]:.3f}</td><td class="nowrap">{about}{one["latency_ms"]:.1f}{slow}</td>'
            f"<td>{model}</td></tr>"
        )
    more = len(ranking) - _ROWS
    rest = f'<p class="sub">and {more} more, see --json</p>' if more > 0 else ""
    return (
        "<section><h2>Ranking</h2><p>By AUPRO@0.05 of the painted defects, the choice in bold; the line is "
        "its 95 % interval (bootstrap by group). "
        "Image AUROC compares an image with itself: a defect that changes nothing scores 0.5.</p>"
        '<div class="scroll"><table><thead><tr><th>method</th><th class="left">backbone</th>'
        '<th class="left">layers</th><th>input</th><th>AUPRO@0.05</th><th class="left">0 to 1</th>'
        f"{heads}<th>image AUROC</th><th>ms an image</th><th>model MB</th></tr></thead><tbody>{rows}</tbody></table>"
        f"</div>{rest}</section>"
    )


def _span(value: float, low: float, high: float) -> str:
    left, width, at = (100 * v for v in (low, max(high - low, 0.01), min(value, 0.98)))
    return (
        f'<span class="span" title="{low:.3f} to {high:.3f}"><b style="left:{left:.0f}%;width:{width:.0f}%"></b>'
        f'<u style="left:{at:.0f}%"></u></span>'
    )


def _painted(data: PaintedSet, shown: Sequence[Shown]) -> str:
    """Painted defects close up, and the maps of the best two over them."""
    if not shown:
        return ""
    good = [i for i, one in enumerate(data.judged) if one.mask is None]
    scales = []
    for best in shown:
        ground = np.concatenate([window_map(best.maps[i], data.judged[i]).ravel()[::7] for i in good])
        scales.append((float(np.quantile(ground, 0.8)), 1.5 * float(np.quantile(ground, 0.999))))
    cards = ""
    for i in _chosen(data):
        one = data.judged[i]
        part, times = _close_up(one)
        mask = None if one.mask is None else _enlarged(one.mask[part], times)
        base = display(_enlarged(one.pixels[part], times))
        figures = _figure(base, f"{one.kind}, contrast {one.contrast:g}")
        figures += _figure(draw_contours(base, truth=mask), "what was painted")
        for best, scale in zip(shown, scales, strict=True):
            values = _enlarged(window_map(best.maps[i], one)[part], times)
            figures += _figure(draw_contours(heat(base, values, scale), truth=mask), best.name)
        cards += f'<div class="row">{figures}</div>'
    return (
        '<section class="painted"><h2>What was painted and what was found</h2><p>Close-ups; outlined: the defect. '
        "Heat: from the 80th percentile of good ground to one and a half times its 99.9th; what does not glow was not "
        f'found.</p><div class="cards">{cards}</div></section>'
    )


def _chosen(data: PaintedSet) -> list[int]:
    """Painted images of as many kinds and contrasts as are shown."""
    found: dict[tuple[str | None, float | None], int] = {}
    for i, one in enumerate(data.judged):
        if one.mask is not None:
            found.setdefault((one.kind, one.contrast), i)
    return [found[key] for key in sorted(found, key=lambda key: (str(key[0]), -(key[1] or 0)))][:_SHOWN]


def _close_up(one: Judged) -> tuple[tuple[slice, slice], int]:
    rows, columns = np.nonzero(one.mask if one.mask is not None else np.ones((1, 1)))
    extent = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    side = max(_SIDE, 3 * extent)
    spans = []
    for values, n in ((rows, one.window[2]), (columns, one.window[3])):
        middle = (int(values.min()) + int(values.max())) // 2
        start = max(0, min(middle - side // 2, n - side))
        spans.append(slice(start, min(n, start + side)))
    return (spans[0], spans[1]), max(1, round(190 / side))


def _enlarged(values: Array, times: int) -> Array:
    return values.repeat(times, axis=0).repeat(times, axis=1)


def _figure(pixels: Array, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=85, subsampling=0)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{as_text(caption)}" src="data:image/jpeg;base64,{source}">'
        f"<figcaption>{as_text(caption)}</figcaption></figure>"
    )


def _ruled_out(result: AdviseResult) -> str:
    if not result["ruled_out"]:
        return ""
    rows = "".join(
        f'<tr><td class="left">{as_text(one["layers"] or "all layers")}</td>'
        f'<td class="nowrap">{"x".join(map(str, one["size"]))}</td><td class="left">{as_text(one["why"])}</td></tr>'
        for one in result["ruled_out"]
    )
    return (
        f"<details open><summary>Ruled out by geometry ({len(result['ruled_out'])})</summary><table><thead><tr>"
        '<th>layers</th><th>input</th><th class="left">because</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )
