"""Draw the picture of the README from what ``pickglass demo`` left: one defect, squeezed and as advised.

``python -m bench.first_picture pickglass-demo docs/found.jpg --kind knot`` takes the first piece that only the advised
model calls bad, of the kind that ``--kind`` names.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pickglass.app.models import load
from pickglass.app.pages.images import Array, close_up, colour_range, display, draw_contours, enlarged, heat
from pickglass.data import load_dataset
from pickglass.result import Prediction

SIDE = 240  # px, of a panel
NEAR = 60  # px of the piece, in the close-up
TEXT = 44  # px, below a panel
GAP = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder that 'pickglass demo' wrote")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--kind", default="", help="kind of the defect; by default any")
    chosen = parser.parse_args()
    test = load_dataset(chosen.demo / "pieces").test
    defective = test.where(lambda row: row.label == 1 and (row.defect or "").startswith(chosen.kind))
    models = [load(chosen.demo / f"{name}.safetensors") for name in ("squeezed", "advised")]
    squeezed, advised = (model.predict(defective) for model in models)
    verdicts = [(squeezed.verdict(i), advised.verdict(i)) for i in range(len(defective))]
    place = verdicts.index(("good", "bad"))
    panels = _panels(squeezed, advised, place, models[1].configuration())
    width = len(panels) * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, SIDE + TEXT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (pixels, caption) in enumerate(panels):
        left = i * (SIDE + GAP)
        sheet.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, 0))
        pen.multiline_text((left, SIDE + 6), caption, fill="#1b1f24", font=font, spacing=3)
    sheet.save(chosen.picture, quality=85, subsampling=0)


def _panels(
    squeezed: Prediction, advised: Prediction, place: int, settings: Mapping[str, Any]
) -> list[tuple[Array, str]]:
    """Return the panels with their captions: the piece, both heat maps, and the outline close up."""
    row, size = advised.found[place].row, advised.found[place].size
    truth = row.truth(size)
    base = display(row.image())
    assert truth is not None
    assert advised.calibration is not None
    rows, columns = np.nonzero(truth)
    extent = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    panels = [
        (base, f"a piece of {size[1]} x {size[0]} px with a\ndefect of {extent} px: {row.defect}".replace("_", " "))
    ]
    size_read = settings["size"]
    side_text = str(size_read) if isinstance(size_read, int) else " x ".join(map(str, size_read))
    reads = f"{'+'.join(settings['layers'])} at {side_text} px"
    for prediction, name in ((squeezed, "squeezed to 256 px"), (advised, reads)):
        calibration = prediction.calibration
        assert calibration is not None
        scale = colour_range(calibration.pixel_threshold, prediction.maps)
        score = prediction.found[place].score
        side = "below" if score <= (calibration.image_threshold or 0.0) else "above"
        caption = f"{name}: {prediction.verdict(place)}\nscore {score:.3g}, {side} {calibration.image_threshold:.3g}"
        panels.append((heat(base, prediction.found[place].full_map(), scale), caption))
    full = advised.found[place].full_map()
    part = close_up((int(rows.mean()), int(columns.mean())), NEAR, size)
    times = SIDE // NEAR
    outlined = draw_contours(
        enlarged(base[part], times),
        truth=enlarged(truth[part], times),
        predicted=enlarged((full > (advised.calibration.pixel_threshold or np.inf))[part], times),
    )
    panels.append((outlined, "close up: the defect (blue) and\nwhat is outlined as one (yellow)"))
    return panels


if __name__ == "__main__":
    main()
