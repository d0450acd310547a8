"""The page of a study: all combinations in a table, what is missing and how to get it, the same images side by side."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from PIL import Image

from pickglass.app.page import PLAIN_TAIL, as_text, head
from pickglass.app.pictures import Array, display, draw_contours, heat, picture_size, shrink_max
from pickglass.app.study import heckler2023
from pickglass.app.study.cells import Cell, Plan, command_of
from pickglass.app.study.run import stored_map
from pickglass.app.study.store import Picture, StudyStore
from pickglass.data import MAX_PIXELS, read_image, read_mask
from pickglass.data.files import written_whole
from pickglass.errors import PickglassError

__all__ = ["write_study"]

_COLUMNS = {
    "image_auroc": "image AUROC",
    "aupro_30": "AUPRO@0.30",
    "aupro_05": "AUPRO@0.05",
    "pixel_auroc": "pixel AUROC",
    "aupimo": "AUPIMO",
    "fit_s": "fit s",
    "predict_s": "test s",
    "peak_mb": "peak MB",
}
_METRICS = ("image_auroc", "aupro_30", "aupro_05", "pixel_auroc", "aupimo")
_STYLE = """
th.text,td.text{text-align:left}td.best{font-weight:700}td.n{white-space:nowrap}
tr.failed td,tr.missing td{color:var(--soft)}h3{margin:18px 0 4px}
pre{background:var(--card);border-radius:8px;padding:10px 12px;white-space:pre-wrap;overflow-wrap:anywhere;margin:6px 0}
.side td,.side th{vertical-align:top;padding:4px;border:0;text-align:left}.side small{display:block}
.side th small{max-width:190px;white-space:normal}
.side img{display:block;width:190px;height:auto}
.side .none{width:190px;min-height:120px;padding:6px}
"""
_FEW = 3  # layers, from which on a table of them says something
_SIDE = 256  # px, longest side of a picture

Rows = Sequence[Mapping[str, Any]]


def write_study(
    target: Path, store: StudyStore, keys: Collection[str], plan: Plan, preset: str | None, max_pixels: int | None
) -> None:
    """Write the page of these cells, whole or not at all.

    Args:
        target: ``.html``.
        store: the study's file.
        keys: of the cells.
        plan: what was to be done.
        preset: its name, for its figures; None: none.
        max_pixels: images with more are not shown; None: the library's limit.
    """
    rows = store.rows(keys)
    done = [row for row in rows if row["state"] == "done"]
    sets = sorted({(row["dataset"]) for row in rows})
    said = f"{len(done)} of {len(rows)} cells are done, on {len(sets)} data sets: {', '.join(sets)}."
    text = [
        head("Study", _STYLE + heckler2023.STYLE),
        f"<p>{as_text(said)} Values are means over data sets and seeds, ± the standard deviation over seeds. The best "
        "of a column is bold. Choosing by these numbers is choosing on test images: the chosen one's value is "
        "optimistic.</p>",
        _layers(rows),
        _table(rows),
        heckler2023.draw_figures(store, rows) if preset == "heckler2023" else "",
        _open(rows, plan, store.path),
        _galleries(store, rows, max_pixels or MAX_PIXELS),
        PLAIN_TAIL,
    ]
    with written_whole(target) as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")


def _layers(rows: Rows) -> str:
    """Of each data set and backbone, AUPRO@0.05 by layer: where a defect is seen, and where no more."""
    blocks: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row["place"])):
        blocks.setdefault((row["dataset"], row["backbone"]), []).append(row)
    tables = ""
    for (dataset, backbone), own in blocks.items():
        layers = list(dict.fromkeys(row["layers"] for row in own))
        if len(layers) < _FEW:
            continue
        lines: dict[tuple[str, ...], dict[str, list[Mapping[str, Any]]]] = {}
        for row in own:
            of = lines.setdefault((row["method"], row["weights"], row["size"]), {})
            of.setdefault(row["layers"], []).append(row)
        body = ""
        for (method, weights, size), of in lines.items():
            found = {layer: _mean(of.get(layer, []), "aupro_05") for layer in layers}
            best = max((value[0] for value in found.values() if value is not None), default=0.0)
            name = f"{method}, {size}" + ("" if weights == "default" else f", {weights}")
            body += f'<tr><th scope="row" class=text>{as_text(name)}</th>' + "".join(map(_shade, found.values()))
            body += (
                f"<td>{as_text(next((n for n, v in found.items() if v is not None and v[0] == best), '–'))}</td></tr>"
            )
        heads = "".join(f'<th scope="col">{as_text(layer)}</th>' for layer in (*layers, "best"))
        tables += (
            f'<h3>{as_text(dataset)}, {as_text(backbone)}</h3><div class="scroll"><table class="layers"><thead><tr><th '
            f'scope="col" class=text>method, size</th>{heads}</tr></thead>{body}</table></div>'
        )
    if not tables:
        return ""
    return f"<section><h2>AUPRO@0.05 by layer</h2>{tables}</section><h2>All combinations</h2>"


def _shade(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "<td>–</td>"
    strength = round(70 * min(max(found[0], 0.0), 1.0))
    return f'<td style="background:color-mix(in srgb,var(--accent) {strength}%,transparent)">{found[0]:.2f}</td>'


def _table(rows: Rows) -> str:
    names = ("method", "backbone", "weights", "size", "layers")
    kinds: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["method"], row["backbone"], row["weights"], int(row["place"]))):
        kinds.setdefault(tuple(str(row[name]) for name in names), []).append(row)
    shown = {kind: {name: _mean(own, name) for name in _COLUMNS} for kind, own in kinds.items()}
    best = {
        name: max((values[name][0] for values in shown.values() if values[name] is not None), default=None)  # type: ignore[index]
        for name in _METRICS
    }
    body = ""
    for kind, own in kinds.items():
        states = [row["state"] for row in own]
        note = ", ".join(f"{states.count(s)} {s}" for s in ("failed", "missing", "waiting", "claimed") if s in states)
        cells = "".join(f"<td class=text>{as_text(value)}</td>" for value in kind[1:])
        for name in _COLUMNS:
            found = shown[kind][name]
            chosen = " class=best" if found is not None and found[0] == best.get(name) else ""
            cells += f"<td{chosen}>{_shown(name, found)}</td>"
        n = f"{states.count('done')} of {len(states)}{': ' + note if note else ''}"
        state = next((s for s in ("failed", "missing") if s in states), "")
        body += (
            f'<tr class="{state}"><th scope="row" class=text>{as_text(kind[0])}</th>{cells}<td class=n>{n}</td></tr>'
        )
    heads = "".join(f'<th scope="col" class=text>{name}</th>' for name in names)
    heads += "".join(f'<th scope="col">{title}</th>' for title in (*_COLUMNS.values(), "cells done"))
    return f'<section class="scroll"><table><thead><tr>{heads}</tr></thead>{body}</table></section>'


def _mean(rows: Rows, name: str) -> tuple[float, float | None] | None:
    """Mean over all cells, and the standard deviation over the seeds of the mean over the data sets."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if row["state"] == "done" and row[name] is not None:
            by_seed.setdefault(row["seed"], []).append(row[name])
    if not by_seed:
        return None
    whole = len({len(values) for values in by_seed.values()}) == 1  # else seeds differ by the data sets they cover
    spread = stdev([fmean(v) for v in by_seed.values()]) if len(by_seed) > 1 and whole else None
    return fmean(value for values in by_seed.values() for value in values), spread


def _shown(name: str, found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "–"
    digits = 3 if name in _METRICS else 0 if name == "peak_mb" else 1
    value, spread = found
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None and name in _METRICS else "")


def _open(rows: Rows, plan: Plan, file: Path) -> str:
    """What failed and what lacks its weights, with the command that does it."""
    parts = []
    for state, title in (("missing", "Weights that were not found"), ("failed", "Cells that failed")):
        causes: dict[tuple[str, str, str], list[Cell]] = {}
        for row in rows:
            if row["state"] == state:
                cause = (str(row["error"]), row["backbone"], row["weights"])
                causes.setdefault(cause, []).append(Cell.from_json(json.loads(row["cell"])))
        if not causes:
            continue
        parts.append(f"<section><h2>{title}</h2>")
        for (why, _, _), cells in causes.items():
            named = ", ".join(dict.fromkeys(cell.method for cell in cells))
            which = f"{cells[0].backbone}, {cells[0].weights}: {named}"
            parts.append(
                f"<p>{len(cells)} cells of {as_text(which)}</p><pre>{as_text(why.strip())}</pre>"
                f"<p>then:</p><pre>{as_text(command_of(cells, file))}</pre>"
            )
        parts.append("</section>")
    if plan.left_out:
        lines = "".join(f"<li>{as_text(line)}</li>" for line in plan.left_out)
        parts.append(f"<section><h2>Left out: there are no such weights</h2><ul>{lines}</ul></section>")
    return "\n".join(parts)


# -- the gallery -------------------------------------------------------------------------------------------------------


def _galleries(store: StudyStore, rows: Rows, max_pixels: int) -> str:
    sets: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        cell = Cell.from_json(json.loads(row["cell"]))
        sets.setdefault((cell.root, cell.dataset), []).append(row)
    return "\n".join(_gallery(store, name, own, max_pixels) for (_, name), own in sets.items())


def _gallery(store: StudyStore, name: str, rows: Rows, max_pixels: int) -> str:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    chosen = {method: _best([row for row in rows if row["method"] == method]) for method in methods}
    kept = {
        method: {picture.path: picture for picture in store.pictures(row["key"])} if row["state"] == "done" else {}
        for method, row in chosen.items()
    }
    paths = list(dict.fromkeys(path for pictures in kept.values() for path in pictures))
    heads = "".join(
        f'<th scope="col">{as_text(method)}<small>{_how(row)}</small></th>' for method, row in chosen.items()
    )
    body = ""
    for path in paths:
        first = next(pictures[path] for pictures in kept.values() if path in pictures)
        about = json.loads(first.about)
        kind = "good" if about["label"] == 0 else about["defect"] or ("defective" if about["label"] else "unknown")
        try:
            small, truth = _image(first, max_pixels)
        except PickglassError as error:
            body += f"<tr><td colspan={len(methods) + 1}>{as_text(error)}</td></tr>"
            continue
        cells = f"<td>{_picture(draw_contours(small, truth=truth), 'original')}"
        cells += f"<small>{as_text(Path(path).name)}<br>{as_text(kind)}</small></td>"
        for method in methods:
            cells += f"<td>{_judged(kept[method].get(path), small, truth, method)}</td>"
        body += f"<tr>{cells}</tr>"
    return (
        f'<section class="scroll"><h2>{as_text(name)}: the same images, side by side</h2><p>Of each method the cell '
        "with the best AUPRO@0.30 (image AUROC where there are no masks). Contours: the ground truth. Missed and false "
        "alarm: at the threshold of that cell's best F1 on these very images, so optimistic. Each column's colours "
        'run over its own range.</p><table class="side"><thead><tr><th scope="col">image</th>'
        f"{heads}</tr></thead>{body}</table></section>"
    )


def _best(rows: Rows) -> Mapping[str, Any]:
    """The cell of a method to look at: the best that is done, else any."""

    def worth(row: Mapping[str, Any]) -> tuple[bool, float, float]:
        return row["state"] == "done", row["aupro_30"] or 0.0, row["image_auroc"] or 0.0

    return max(rows, key=worth)


def _how(row: Mapping[str, Any]) -> str:
    if row["state"] != "done":
        why = {"missing": "weights missing", "failed": str(row["error"]).strip().splitlines()[-1]}
        return as_text(why.get(row["state"], row["state"]))
    return as_text(f"{row['backbone']}, {row['layers']}, {row['weights']}, {row['size']} px, seed {row['seed']}")


def _image(picture: Picture, max_pixels: int) -> tuple[Array, Array | None]:
    about = json.loads(picture.about)
    image = display(read_image(picture.path, max_pixels))
    size = picture_size(*image.shape[:2])
    small = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))  # (h, w, 3)
    masks = [read_mask(mask, tuple(about["size"])) for mask in about["masks"]]
    return small, shrink_max(np.any(masks, axis=0), size) if masks else None


def _judged(picture: Picture | None, small: Array, truth: Array | None, method: str) -> str:
    if picture is None:
        return '<div class="none">nothing to show</div>'
    about = json.loads(picture.about)
    coloured = heat(small, shrink_max(stored_map(picture), (small.shape[0], small.shape[1])), (0.0, 1.0))
    said = f"{about['score']:.4g}"
    if about["threshold"] is not None and about["label"] is not None:
        flagged = about["score"] >= about["threshold"]
        if flagged != bool(about["label"]):
            said += f' <span class="badge wrong">{"false alarm" if flagged else "missed"}</span>'
    return f"{_picture(draw_contours(coloured, truth=truth), method)}<small>{said}</small>"


def _picture(pixels: Array, alt: str) -> str:
    factor = min(1.0, _SIDE / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{as_text(alt)}" loading="lazy" src="data:image/jpeg;base64,{data}">'
