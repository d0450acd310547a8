"""The pictures of the documentation, each from generated cloth and trays: no image of a data set is shown.

    python -m bench.pictures [NAME...] [--folder docs/pictures] [--chromium /usr/bin/chromium]

Without names all are made. ``scaling`` draws committed records. ``report`` photographs the page that ``pickglass test``
writes, in a browser; it needs playwright and Chromium. ``coreset``, ``aupro`` and ``scaling`` need matplotlib.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import pickglass as pg
from bench.harness.records import RESULTS, read
from pickglass.app.pages.images import colour_range, display, draw_contours, enlarged, heat
from pickglass.app.testing.test import test
from pickglass.data import Painted, paint
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.trays import Tray, fill
from pickglass.nn.search.coreset import greedy_coreset

Array = np.ndarray[Any, Any]

PIECE = 128  # px
GAP = 8  # px between two panels


def pieces(seed: int = 0) -> list[Array]:
    """Thirty pieces of a twill."""
    roll = weave(Cloth("twill"), (5 * PIECE, 6 * PIECE), seed)
    return [roll[y : y + PIECE, x : x + PIECE] for y in range(0, 5 * PIECE, PIECE) for x in range(0, 6 * PIECE, PIECE)]


def side_by_side(panels: list[Array]) -> Image.Image:
    """Panels of one height, with a white gap between them."""
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    return Image.fromarray(np.hstack([part for panel in panels for part in (panel, gap)][:-1]))


def judged(detector: pg.Detector, painted: Painted, times: int) -> list[Array]:
    """The image, the heat over it, and the outlines: found in orange, painted in blue."""
    found = detector.predict([painted.image])
    image, values = display(painted.image), found.map(0)
    scale = colour_range(None, [values])  # of its own, so that a faint peak can be seen
    outlined = draw_contours(enlarged(image, times), enlarged(painted.mask, times), enlarged(found.mask(0), times))
    return [enlarged(image, times), enlarged(heat(image, values, scale), times), outlined]


def first(target: Path) -> None:
    """A hole in a twill: image, heat, outline."""
    good = pieces()
    detector = pg.PatchCore().fit(good[:22])
    side_by_side(judged(detector, paint(good[23], "hole", 20, np.random.default_rng(3)), 2)).save(target, quality=88)


def tiny(target: Path) -> None:
    """A slub of 8 px: the piece, then the heat of PatchCore on single stages of the default backbone, at 256 px."""
    good = pieces()
    painted = paint(good[24], "slub", 8, np.random.default_rng(3))
    panels = [draw_contours(enlarged(display(painted.image), 2), enlarged(painted.mask, 2))]
    for layer in ("stage2", "stage3", "stage5", "stage7"):
        detector = pg.PatchCore(layers=layer, size=256).fit(good[:22])
        panels.append(judged(detector, painted, 2)[1])
    side_by_side(panels).save(target, quality=88)


def tray(target: Path) -> None:
    """A washer is missing: image, heat, outline."""
    kind = Tray("washer", part_px=36, pitch_px=60)
    good = [fill(kind, (192, 192), seed) for seed in range(24)]
    detector = pg.PatchCore(size=192).fit(good)
    painted = paint(fill(kind, (192, 192), 200), "missing_part", 41, np.random.default_rng(0))
    side_by_side(judged(detector, painted, 2)).save(target, quality=88)


def coreset(target: Path) -> None:
    """The greedy choice on points in a plane: 12 of 2,000, at random and by the greedy."""
    pyplot = plotting()
    rng = np.random.default_rng(0)
    points = np.vstack([rng.normal(0, 1, (1900, 2)), rng.normal((4, 2.5), 0.35, (100, 2))]).astype(np.float32)
    chosen = greedy_coreset(torch.from_numpy(points), 12).indices.numpy()
    drawn = rng.choice(len(points), 12, replace=False)
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.6), sharex=True, sharey=True)
    for axis, picked, title in zip(axes, (drawn, chosen), ("12 at random", "12 by the greedy"), strict=True):
        far = np.sqrt(((points[:, None] - points[picked][None]) ** 2).sum(-1).min(1).max())
        axis.scatter(*points.T, s=2, color="#9aa4ae")
        axis.scatter(*points[picked].T, s=28, color="#c44a00")
        axis.set_title(f"{title}: the farthest point is {far:.1f} away", fontsize=10)
        axis.set_aspect("equal")
    figure.tight_layout()
    figure.savefig(target, dpi=110, bbox_inches="tight")


def aupro(target: Path) -> None:
    """A large and a small defect, maps that find one of them, and what pixel AUROC and AUPRO say."""
    pyplot = plotting()
    from pickglass.metrics import aupro as area
    from pickglass.metrics import pixel_auroc

    truth = np.zeros((96, 96), bool)
    truth[10:60, 10:60], truth[78:84, 78:84] = True, True
    rng = np.random.default_rng(0)
    noise = rng.random((96, 96)).astype(np.float32)
    large, both = noise.copy(), noise.copy()
    large[10:60, 10:60] += 2
    both[truth] += 2
    figure, axes = pyplot.subplots(1, 3, figsize=(9, 3.3))
    axes[0].imshow(truth, cmap="gray")
    axes[0].set_title("two defects", fontsize=10)
    for axis, values, title in zip(axes[1:], (large, both), ("finds the large one", "finds both"), strict=True):
        axis.imshow(values, cmap="inferno")
        pixel = pixel_auroc([values], [truth])
        region = area([values], [truth], limit=0.3)
        axis.set_title(f"{title}\npixel AUROC {pixel:.2f}, AUPRO@0.3 {region:.2f}", fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(target, dpi=110, bbox_inches="tight")


def scaling(target: Path) -> None:
    """How seconds and memory grow: bench/results/scaling.jsonl; a dashed line grows as fast as what varies."""
    from bench.scaling import COURSES, Curve, curves

    pyplot = plotting()
    from matplotlib.ticker import LogLocator, NullFormatter

    found = curves(read(RESULTS / "scaling.jsonl"))
    panels: dict[tuple[str, str], list[Curve]] = {}
    for curve in found:
        name = "fit" if curve.part == "fit" else "predict" if curve.part == "predict" else "others"
        panels.setdefault((curve.course, "others" if len(COURSES[curve.course].methods) == 1 else name), []).append(
            curve
        )
    across = 4
    rows = -(-len(panels) // across)
    figure, axes = pyplot.subplots(2 * rows, across, figsize=(3.1 * across, 5.2 * rows), squeeze=False)
    for number, ((course, part), own) in enumerate(panels.items()):
        row, column = 2 * (number // across), number % across
        first = max(own, key=lambda curve: len(curve.steps))
        pair = axes[row, column], axes[row + 1, column]
        for axis, figure_name, unit in zip(pair, ("cpu_s", "peak_mb"), ("CPU seconds", "peak, MB"), strict=True):
            for curve in own:
                label = curve.method if part in ("fit", "predict") else f"{curve.method}: {curve.part}"
                axis.plot(curve.steps, curve.figures[figure_name], marker="o", markersize=3, label=label)
            axis.set_xscale("log")
            axis.set_xticks(first.steps, [f"{step:,}" for step in first.steps], fontsize=7)
            axis.set_ylabel(unit, fontsize=8)
            axis.grid(alpha=0.3)
        top = max(curve.figures["cpu_s"][-1] for curve in own)
        line = [top * step / first.steps[-1] for step in first.steps]
        pair[0].plot(first.steps, line, linestyle="--", color="#9aa4ae", linewidth=1)
        pair[0].set_yscale("log")
        pair[0].set_ylim(bottom=min(min(curve.figures["cpu_s"]) for curve in own) / 1.6)
        pair[1].set_ylim(0, 1.1 * max(max(curve.figures["peak_mb"]) for curve in own))
        pair[0].set_title(course if part == "others" else f"{course}: {part}", fontsize=9)
        pair[0].legend(fontsize=6)
        pair[1].set_xlabel(COURSES[course].axis, fontsize=7)
        for axis in pair:
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(labelsize=7)
        pair[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        pair[0].yaxis.set_major_formatter("{x:g}")
        pair[0].yaxis.set_minor_formatter(NullFormatter())
    for place in range(len(panels), rows * across):
        for row in (0, 1):
            axes[2 * (place // across) + row, place % across].set_axis_off()
    figure.tight_layout()
    figure.savefig(target, dpi=90, bbox_inches="tight")


def fields(target: Path) -> None:
    """What the middle cell of four stages looks at: the gradient at each pixel of a twill."""
    network = pg.FeatureExtractor("efficientnet_lite0", layers=("stage2", "stage3", "stage5", "stage7"))
    picture = np.asarray(Image.fromarray(weave(Cloth("twill"), (256, 256))).convert("RGB"), np.float32) / 255
    panels = [enlarged(display((picture * 255).astype(np.uint8)), 1)]
    for level in range(4):
        image = torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()).requires_grad_()
        cells = network(image)[level]
        cells[0, :, cells.shape[2] // 2, cells.shape[3] // 2].mean().backward()
        reached = image.grad.abs().sum(1)[0].numpy()  # type: ignore[union-attr]
        panels.append(heat(panels[0] // 2, np.sqrt(reached / reached.max()), (0.05, 1.0)))
    side_by_side(panels).save(target, quality=88)


def plotting() -> Any:
    """Pyplot, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def report(target: Path, chromium: str) -> None:
    """The head of a report on cloth with defects of 8 px, 1000 px wide."""
    from playwright.sync_api import sync_playwright

    target, home = target.absolute(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the report quotes commands with paths as they were given
        try:
            write(Path("cloth"), kinds=("knot", "slub"), size=8)
            model = pg.PatchCore(layers="stage2+stage3", size=256).fit(pg.load_dataset("cloth").train)
            model.save("cloth.safetensors")
            test("cloth.safetensors", "cloth", "report.html")
        finally:
            os.chdir(home)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1000, "height": 900}, color_scheme="light")
            page.goto((Path(folder) / "report.html").as_uri())
            page.screenshot(path=target, type="jpeg", quality=85)
            browser.close()


def write(root: Path, kinds: tuple[Any, ...], size: float) -> None:
    """A data set of cloth in MVTec AD's layout: 22 pieces to learn from, 8 good ones and 8 of each kind to judge."""

    def save(name: str, pixels: Array) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)

    rng = np.random.default_rng(0)
    for i, piece in enumerate(pieces()):
        save(f"{'train' if i < 22 else 'test'}/good/{i:02d}.png", piece)
        for kind in kinds if i >= 22 else ():
            painted = paint(piece, kind, size, rng)
            save(f"test/{kind}/{i:02d}.png", painted.image)
            save(f"ground_truth/{kind}/{i:02d}_mask.png", painted.mask.astype(np.uint8) * 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    known: dict[str, tuple[str, Callable[[Path], None]]] = {
        "first": ("first.jpg", first),
        "tiny": ("tiny.jpg", tiny),
        "tray": ("tray.jpg", tray),
        "coreset": ("coreset.png", coreset),
        "aupro": ("aupro.png", aupro),
        "fields": ("fields.jpg", fields),
        "scaling": ("scaling.png", scaling),
        "report": ("report.jpg", lambda target: report(target, given.chromium)),
    }
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.names or known:
        file, draw = known[name]
        draw(given.folder / file)
        print(given.folder / file)


if __name__ == "__main__":
    main()
