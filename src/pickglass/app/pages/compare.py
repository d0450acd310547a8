"""The page that compares several models on the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pickglass.app.pages.build import write_page
from pickglass.app.pages.images import colour_range
from pickglass.app.pages.side_by_side import SameImage, Seen, draw_same, kind_of, wrong_verdict
from pickglass.app.results import Failed, ModelMetrics
from pickglass.metrics.catalogue import shown
from pickglass.result import Prediction

__all__ = ["same_images", "write_compare"]

COLUMNS = (
    "image_auroc",
    "aupro_30",
    "aupro_05",
    "pixel_auroc",
    "aupimo",
    "false_alarm_rate",
    "miss_rate",
    "unsure_good_rate",
    "unsure_defective_rate",
    "images_per_s",
)
FEW = 2  # models whose pictures leave room for two images beside one another


def write_compare(
    target: Path,
    title: str,
    models: Sequence[ModelMetrics],
    predictions: Sequence[Prediction],
    chosen: Sequence[int],
    failed: Sequence[Failed],
    notes: Sequence[str],
    max_pixels: int,
) -> Path:
    """Write the page and return its path.

    Args:
        target: HTML file.
        title: heading of the page.
        models: name and metrics of each model.
        predictions: what the models predict for the same images.
        chosen: which images are shown, by their place in the predictions.
        failed: images that one of the models cannot take.
        notes: sentences about the images that are not judged.
        max_pixels: images with more are refused.
    """
    columns = shown(COLUMNS, models)
    best: dict[str, float | None] = {}
    for metric in columns:
        known = [model[metric.key] for model in models]  # type: ignore[literal-required]
        best[metric.key] = metric.better(value for value in known if value is not None)
    names = [model["name"] for model in models]
    values = {
        "title": title,
        "n": len(predictions[0]),
        "columns": columns,
        "models": models,
        "notes": notes,
        "best": best,
        "failed": [(item["path"], item["error"]) for item in failed],
        "images": same_images(predictions, names, chosen, max_pixels),
        "many": len(models) > FEW,
    }
    return write_page(target, "compare.html.j2", values)


def same_images(
    predictions: Sequence[Prediction], names: Sequence[str], chosen: Sequence[int], max_pixels: int
) -> list[SameImage]:
    """Draw the chosen images as each model sees them; see :func:`write_compare`."""
    scales = [colour_range(p.calibration.pixel_threshold if p.calibration else None, p.maps) for p in predictions]
    images = []
    for i in chosen:
        row, size = predictions[0].found[i].row, predictions[0].found[i].size
        seen = []
        for prediction, name, scale in zip(predictions, names, scales, strict=True):
            found, verdict = prediction.found[i], prediction.verdict(i)
            caption = f"{name}: {found.score:.4g}" + (f", {verdict}" if verdict else "")
            wrong = wrong_verdict(row.label, {"bad": True, "good": False}.get(verdict or ""))
            seen.append(Seen(caption, found.full_map(), scale, wrong))
        kind = kind_of(row.label, row.defect)
        images.append(draw_same(row.path, kind, row.image(max_pixels), row.truth(size), seen))
    return images
