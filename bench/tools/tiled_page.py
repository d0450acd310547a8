"""A page of what the ways of bench/tiled_table.py see: the images that they disagree about most.

    python -m bench.tools.tiled_page OUT DATA PAGE.html [--methods patchcore,padim] [--images 8]

OUT is the folder of scores and maps that ``python -m bench run tiled_table OUT DATA`` wrote. Shown are the defects that
the ways disagree about most and the good images with the highest values, the maps of all ways side by side, each in
units of the highest value of its own good test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from bench.tiled_table import WAYS, named
from pickglass.app.pages.build import PAGE_ERRORS, environment
from pickglass.app.pages.side_by_side import SameImage, Seen, draw_same, kind_of
from pickglass.data import Row, load_dataset, read_mask
from pickglass.data.files import written_whole
from pickglass.result import Found


class Saved:
    """The maps of a cell at the original size, in units of the highest value of its good images."""

    def __init__(self, file: Path, good: set[str]) -> None:
        self.stored = np.load(file)
        paths = self.stored["paths"].tolist()
        self.at = {Path(path).parts[-2:]: i for i, path in enumerate(paths)}  # the data set may have moved
        self.highest = 1.0
        self.highest = max(float(self.map(path).max()) for path in good)

    def map(self, path: str) -> np.ndarray[Any, Any]:
        i = self.at[Path(path).parts[-2:]]
        size, window = (tuple(self.stored[name][i].tolist()) for name in ("sizes", "windows"))
        return Found(Row(path), 0.0, self.stored[f"map{i}"], size, window).full_map() / self.highest

    def peak(self, row: Row) -> float:
        """The highest value of the map on the defect, or on the whole of a good image."""
        full = self.map(row.path)
        mask = None if row.mask is None else read_mask(row.mask, (full.shape[0], full.shape[1]))
        return float((full if mask is None or not mask.any() else full[mask]).max())


PAGE = """
{% extends "base.html.j2" %}
{% block content %}
<p>Colours run from half the highest value of the good test images to twice it; so do the numbers, which are the peak on
the defect, or of the good image. Above 1: told apart from every good image.</p>
{% for method, images in methods %}
<section><h2>{{ method }}</h2>
{% with many = true %}{% include "side_by_side.html.j2" %}{% endwith %}
</section>
{% endfor %}
{% endblock %}
"""


def page(given: argparse.Namespace) -> None:
    data, target = given.data, given.page
    rows = list(load_dataset(data).test)
    good = {row.path for row in rows if row.label == 0}
    methods = []
    for method in given.methods.split(","):
        files = {way: given.out / f"{data.name}-{method}-{named(way)}.npz" for way in given.ways or WAYS}
        saved = {way: Saved(file, good) for way, file in files.items() if file.is_file()}
        peaks = {row.path: {way: own.peak(row) for way, own in saved.items()} for row in rows}
        bad = [row for row in rows if row.label == 1 and row.mask is not None]
        bad.sort(key=lambda row: min(peaks[row.path].values()) - max(peaks[row.path].values()))
        noisy = sorted((row for row in rows if row.label == 0), key=lambda row: -max(peaks[row.path].values()))
        # those that the ways disagree about most and least, and the good images that alarm
        chosen = {row.path: row for row in [*bad[: given.images], *bad[-2:], *noisy[:2]]}
        methods.append((method, [drawn(row, saved, peaks[row.path]) for row in chosen.values()]))
    values = {"title": f"{data.name}: single models and tiles", "methods": methods}
    with written_whole(target) as temporary:
        temporary.write_text(environment().from_string(PAGE).render(values), encoding="utf-8", errors=PAGE_ERRORS)


def drawn(row: Row, saved: dict[str, Saved], peaks: dict[str, float]) -> SameImage:
    """An image and its maps in all ways."""
    image = row.image()
    mask = row.truth((image.shape[0], image.shape[1]))
    seen = [Seen(f"{way}: {peaks[way]:.2f}", own.map(row.path), (0.5, 2.0)) for way, own in saved.items()]
    return draw_same("/".join(Path(row.path).parts[-2:]), kind_of(row.label, row.defect), image, mask, seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--methods", default="patchcore,padim")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS))
    parser.add_argument("--images", type=int, default=8)
    page(parser.parse_args())


if __name__ == "__main__":
    main()
