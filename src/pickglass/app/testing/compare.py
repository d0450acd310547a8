"""Compare several models on the same test images: their metrics, and the same images side by side."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pickglass.app.page import PLAIN_TAIL, as_text, head
from pickglass.app.pictures import (
    Array,
    colour_range,
    display,
    draw_contours,
    heat,
    picture_size,
    shrink_max,
)
from pickglass.app.results import CompareResult, ModelMetrics
from pickglass.app.testing.evaluate import evaluate
from pickglass.app.testing.sampling import choose_images
from pickglass.data import DataSource, Row, Table, read_image, read_mask
from pickglass.data.files import output_path, written_whole
from pickglass.detectors.compute import ComputeOptions, Progress
from pickglass.errors import DataError, Failure, InputError
from pickglass.methods import Detector, load
from pickglass.result import Prediction

__all__ = ["compare"]

_COLUMNS = {
    "image_auroc": "image AUROC",
    "aupro_30": "AUPRO@0.30",
    "aupro_05": "AUPRO@0.05",
    "pixel_auroc": "pixel AUROC",
    "aupimo": "AUPIMO",
    "false_alarm_rate": "false alarms",
    "miss_rate": "misses",
    "images_per_s": "images/s",
}
_STYLE = """
.side td,.side th{vertical-align:top;padding:4px;border:0;text-align:left}
.side img{display:block;width:190px;height:auto}
.side small{display:block}.side thead th{position:sticky;top:0;background:var(--page)}td.best{font-weight:700}
"""
_SIDE = 256  # px, longest side of a picture


def compare(
    models: Sequence[str | Path],
    data: DataSource | str | Path,
    report: str | Path | None = None,
    *,
    images: int = 10,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> CompareResult:
    """Judge several models on the test images of one folder.

    Args:
        models: model files, in the order of the columns.
        data: folder in any layout that :func:`pickglass.load_dataset` knows, or how to read it.
        report: HTML file to write: a table of metrics, and the same images side by side.
        images: how many images the page shows; see
            :func:`pickglass.app.testing.sampling.choose_images`.
        compute: where to compute.
        progress: called with (stage, done, total).

    An image that one model cannot take is left out for all.

    Raises:
        InputError: a model is named twice.
        DataError: no test image that all models can take.
    """
    paths = [Path(model) for model in models]
    if len(set(paths)) < len(paths):
        raise InputError(f"models {[str(path) for path in paths]} name one twice: name each once")
    page = None if report is None else output_path(report, ".html")
    source, run = DataSource.of(data), compute or ComputeOptions()
    dataset = source.load()
    test = source.placed(dataset.test)
    predictions: list[Prediction] = []
    names: list[str] = []
    speeds: list[float] = []
    for path in paths:
        detector = load(path)
        names.append(_name(detector, path, names))
        detector.predict(test[:1], **run.arguments())  # sets the engine up, which images_per_s does not count
        began = time.perf_counter()
        predictions.append(detector.predict(test, progress=progress, **run.arguments()))
        speeds.append(len(predictions[-1]) / (time.perf_counter() - began))
    failures = {f.path: f for prediction in predictions for f in prediction.failed}
    predictions = [_without(prediction, failures) for prediction in predictions]
    if not len(predictions[0]):
        raise DataError(f"{source.path}: there is no test image that all models can take:", list(failures.values()))
    judged: list[ModelMetrics] = [
        {"model": str(path), "name": name, "images_per_s": speed, **evaluate(prediction).overall}
        for path, name, speed, prediction in zip(paths, names, speeds, predictions, strict=True)
    ]
    result: CompareResult = {
        "models": judged,
        "report": None if page is None else str(page),
        "failed": [{"path": f.path, "error": f.error} for f in failures.values()],
    }
    if page is not None:
        chosen = choose_images(Table(predictions[0].rows), images)
        text = "\n".join(
            [
                head(f"{dataset.name}: {len(paths)} models", _STYLE),
                f"<p>{len(predictions[0])} test images. The best of a column is bold; differences within a few points "
                "may be chance. Each model's colours run over its own range of values.</p>",
                _table(judged),
                _gallery(predictions, names, chosen, run.max_pixels),
                PLAIN_TAIL,
            ]
        )
        with written_whole(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return result


def _name(detector: Detector, path: Path, taken: Sequence[str]) -> str:
    name = detector.method
    return name if name not in taken else f"{name} ({path.stem})"


def _without(prediction: Prediction, failures: dict[str, Failure]) -> Prediction:
    found = tuple(f for f in prediction.found if f.row.path not in failures)
    return Prediction(found, prediction.failed, prediction.calibration)


def _table(judged: Sequence[ModelMetrics]) -> str:
    best = {}
    for key in _COLUMNS:
        values = [m[key] for m in judged if m[key] is not None]  # type: ignore[literal-required]
        best[key] = (min if key in ("false_alarm_rate", "miss_rate") else max)(values, default=None)
    rows = ""
    for metrics in judged:
        cells = ""
        for key in _COLUMNS:
            value = metrics[key]  # type: ignore[literal-required]
            shown = "–" if value is None else f"{value:.1f}" if key == "images_per_s" else f"{value:.3f}"
            cells += f"<td{' class=best' if value is not None and value == best[key] else ''}>{shown}</td>"
        rows += f'<tr><th scope="row">{as_text(metrics["name"])}</th>{cells}</tr>'
    heads = "".join(f'<th scope="col">{title}</th>' for title in _COLUMNS.values())
    return f'<section class="scroll"><table><thead><tr><th></th>{heads}</tr></thead>{rows}</table></section>'


def _gallery(predictions: Sequence[Prediction], names: Sequence[str], chosen: Sequence[int], max_pixels: int) -> str:
    scales = [colour_range(p.calibration.pixel_threshold if p.calibration else None, p.maps) for p in predictions]
    heads = "".join(f'<th scope="col">{as_text(name)}</th>' for name in names)
    rows = ""
    for i in chosen:
        first = predictions[0].found[i]
        row = first.row
        image = display(read_image(row.path if row.pixels is None else row.pixels, max_pixels))
        size = picture_size(*image.shape[:2])
        small = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))  # (h, w, 3)
        mask = None if row.mask is None else read_mask(row.mask, first.size)
        truth = None if mask is None else shrink_max(mask, size)
        cells = f"<td>{_picture(draw_contours(small, truth=truth), 'original')}<small>{_what(row)}</small></td>"
        for prediction, name, scale in zip(predictions, names, scales, strict=True):
            found = prediction.found[i]
            coloured = draw_contours(heat(small, shrink_max(found.full_map(), size), scale), truth=truth)
            verdict = prediction.verdict(i)
            said = f"{found.score:.4g}" + (f", {verdict}" if verdict else "")
            cells += f"<td>{_picture(coloured, name)}<small>{said}</small></td>"
        rows += f"<tr>{cells}</tr>"
    return (
        '<section class="scroll"><h2>The same images, side by side</h2><p>Contours: the ground truth. Below each map: '
        f'the score and, where the model has a threshold, its verdict.</p><table class="side"><thead><tr>'
        f'<th scope="col">image</th>{heads}</tr></thead>{rows}</table></section>'
    )


def _what(row: Row) -> str:
    kind = "good" if row.label == 0 else row.defect or ("defective" if row.label else "unknown")
    return f"{as_text(Path(row.path).name)}<br>{as_text(kind)}"


def _picture(pixels: Array, alt: str) -> str:
    height, width = pixels.shape[:2]
    factor = min(1.0, _SIDE / max(height, width)) if max(height, width) < 3 * min(height, width) else 1.0
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{as_text(alt)}" loading="lazy" src="data:image/jpeg;base64,{data}">'
