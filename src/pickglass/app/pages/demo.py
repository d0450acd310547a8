"""The page of the demo: what was missed and found, why, the promise, and the same pieces side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pickglass.app.pages.build import write_page
from pickglass.app.pages.compare import same_images
from pickglass.app.pages.images import Array, Picture, close_up, display, draw_contours, jpeg, nearest, ramp
from pickglass.app.pages.look import BRIGHT, LayerView, Scene, at_a_glance
from pickglass.app.results import DemoModel, DemoResult
from pickglass.metrics.catalogue import METRICS
from pickglass.result import Prediction

__all__ = ["own_folder", "reads", "summary", "title_of", "write_demo"]

TITLES = {"default": "default of 'fit'", "advised": "as advised"}
SIDE = 80  # px of the piece, side of a close-up
PICTURE = 320  # px, side of its picture


class _Look(NamedTuple):
    """One defect as one model's network meets it: a heading, a close-up, and what stands out in each layer."""

    heading: str
    pictures: Sequence[Picture]


def write_demo(
    target: Path,
    result: DemoResult,
    looks: Sequence[tuple[Scene, Sequence[LayerView]]],
    predictions: Sequence[Prediction],
    chosen: Sequence[int],
    max_pixels: int,
) -> Path:
    """Write the page and return its path.

    Args:
        target: HTML file.
        result: what the demo says.
        looks: one defect in the layers of the squeezed network, and in those of the advised one.
        predictions: what each model predicts for the same pieces.
        chosen: which pieces are shown, by their place in the predictions.
        max_pixels: images with more are refused.
    """
    models = result["models"]
    squeezed, advised = models[0], models[-1]
    values = {
        "title": f"Defects of {result['defect_px']:g} px in pieces of {result['piece_px']} x {result['piece_px']} px",
        "result": result,
        "summary": summary(result),
        "rows": [(title_of(model), reads(model), model) for model in models],
        "aupro": METRICS["aupro_05"],
        "looks": [
            _look("Squeezed", squeezed, *looks[0]),
            _look("As advised", advised, *looks[1]),
        ],
        "ramp": ramp(),
        "bright": BRIGHT,
        "promise": advised["threshold"]["sentence"],
        "own": own_folder(),
        "images": same_images(predictions, [title_of(model) for model in models], chosen, max_pixels),
        "many": True,
    }
    return write_page(target, "demo.html.j2", values)


def title_of(model: DemoModel) -> str:
    """Return what a model is called on the page and on the terminal."""
    height, width = model["fit"]["canvas"]
    return TITLES.get(model["name"], f"squeezed to {height} x {width} px")


def reads(model: DemoModel) -> str:
    """Return which layers a model reads, and at which size."""
    fitted = model["fit"]
    return f"{'+'.join(fitted['layers'])} at {fitted['canvas'][0]} x {fitted['canvas'][1]} px"


def summary(result: DemoResult) -> list[str]:
    """Return what the demo shows, in two sentences."""
    squeezed, default, advised = result["models"]
    bound = advised["threshold"]["false_alarm_bound"] or 0.0
    confidence = advised["threshold"]["confidence"] or 0.0
    return [
        f"Of {squeezed['n_defective']} tiny defects, {squeezed['missed']} are missed where each piece is squeezed to "
        f"{squeezed['fit']['canvas'][0]} x {squeezed['fit']['canvas'][1]} px, {default['missed']} by the default of "
        f"'fit', and {advised['missed']} by the model that the advisor found on good pieces alone.",
        f"Promised: at most {bound:.0%} of good pieces are flagged, with {confidence:.0%} confidence. Of "
        f"{advised['n_good']} fresh good pieces the three flag {squeezed['flagged']}, {default['flagged']} and "
        f"{advised['flagged']}.",
    ]


def own_folder() -> list[tuple[str, str]]:
    """Return the three commands that do the same with a folder of one's own, each with what it does."""
    return [
        (
            "pickglass advise FOLDER --defect-px 8 -o advice.html",
            "what can see your smallest defect, why, and how to fit it",
        ),
        ("pickglass fit FOLDER -o model.safetensors ...", "the line that advise printed"),
        ("pickglass test model.safetensors FOLDER -o report.html", "what it misses and flags, image by image"),
    ]


def _look(name: str, model: DemoModel, scene: Scene, views: Sequence[LayerView]) -> _Look:
    near = jpeg("", "what the network reads, close up", _near(scene))
    return _Look(f"{name}: {reads(model)}", [near, *(at_a_glance(scene, view) for view in views)])


def _near(scene: Scene) -> Array:
    """Draw the same part of the piece, whatever the size of the canvas: the defect outlined, each pixel a square."""
    canvas = display(scene.canvas)
    outline = scene.outline if scene.outline is not None else np.zeros(canvas.shape[:2], np.bool_)
    rows, columns = np.nonzero(outline)
    side = max(8, round(SIDE * canvas.shape[0] / scene.pixels.shape[0]))
    middle = (0, 0) if not len(rows) else (int(rows.min() + rows.max()) // 2, int(columns.min() + columns.max()) // 2)
    part = close_up(middle, side, canvas.shape)
    size = (PICTURE, PICTURE)
    return draw_contours(nearest(canvas[part], size), truth=nearest(outline[part], size))
