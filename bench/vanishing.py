"""The vanishing defect: from which size on does a layer see a defect at all?

    python -m bench run vanishing --data DATA [--backbones ...] [--textures ...] [--sizes 128 192 256]
        [-o FILE.jsonl --plot docs/vanishing.svg]

Fits PatchCore and PaDiM on every single stage and on three fusions, for every texture and input size: a case is a
texture, backbone, input size, method and layers. A backbone whose published weights are not found is left out, and
said to be. ``--plot`` draws the cells of FILE that are there at the start: AUPRO@0.05 over the size of the defect, one
line a stage.

Pieces of 128 px, 24 good ones to learn from; judged are 24 other good ones and, for each size of 2, 4, 8, 16, 32 and
64 px of longest extent, the same 24 with a painted defect, of changing kind and of contrast 1, 0.6 and 0.3. Sizes are
in pixels of the piece; at input size S the network sees S / 128 times as many. Two pixels are painted as four on the
piece enlarged twice, and reduced again. A size is judged against the good pieces. Intervals are bootstraps over the
pieces, by the group they come from (tile, strip, part of the photograph), a piece with and without its defect together.

Textures: plain, twill and satin are woven (``pickglass.data.painting.cloth``); brick, gravel and grass are photographs
that come with pickglass; magnetic_tile and aitex_fabric04 are good images below DATA. Maps are smoothed by half the
finest stride for both methods, so that no fixed blur hides a defect. The bank is 1 % of the patches but at least
1,000: a hundredth of an 8 x 8 grid would say more about the bank than about the layer. PaDiM keeps 100 channels. The
fusions, named by stride: 4 + 8 (layer1 + layer2), 8 + 16, 4 + 32 (block1 + block4).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.harness import Case, Suite, add_data, markdown, records
from bench.harness.textures import DEFECTS, PIECE, TEXTURES, Image8, Judged, judged, pieces
from pickglass.app.see.layers import layers as layer_table
from pickglass.app.see.request import BackboneRequest
from pickglass.data import Preprocess, resize_map
from pickglass.detectors.loading import silent
from pickglass.detectors.method import FitContext
from pickglass.errors import WeightsMissing
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.batch import Batch
from pickglass.features.extractor import FeatureExtractor
from pickglass.methods import METHODS
from pickglass.metrics import OK_LEVELS, CountTables, PixelCurves, auroc, bootstrap, resampled

BANK = 1000  # patches at least
SEEN = 0.5  # AUPRO@0.05 from which a defect is said to be seen, at its size and all larger ones
BATCH = 8
TITLES = {"aupro_05": "AUPRO@0.05", "image_auroc": "image AUROC"}


# -- cells -------------------------------------------------------------------------------------------------------------


def fusions(backbone: str) -> list[tuple[str, ...]]:
    """Every stage alone, then the deepest of strides 4 + 8, 8 + 16 and 4 + 32."""
    levels = find_backbone(backbone).levels
    deepest = {level.stride: level.name for level in levels}
    pairs = [(deepest[a], deepest[b]) for a, b in ((4, 8), (8, 16), (4, 32)) if a in deepest and b in deepest]
    return [*((level.name,) for level in levels), *pairs]


def features(extractor: FeatureExtractor, images: list[Image8], size: int) -> list[torch.Tensor]:
    """Per stage (N, C, h, w)."""
    prepare = Preprocess((size, size), extractor.interpolation)
    batches: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            batch = np.stack([prepare(image) for image in images[start : start + BATCH]])  # (B, 3, S, S)
            batches.append(extractor(torch.from_numpy(batch)))
    return [torch.cat(level) for level in zip(*batches, strict=True)]


def _batches(levels: list[torch.Tensor]) -> Iterator[Batch]:
    for start in range(0, len(levels[0]), BATCH):
        yield Batch(tuple(level[start : start + BATCH, None] for level in levels))  # (B, 1, C, h, w)


def fit_and_judge(
    method: str, setting: dict[str, Any], good: list[torch.Tensor], test: list[torch.Tensor]
) -> tuple[npt.NDArray[np.float64], list[npt.NDArray[np.float32]]]:
    """Scores (N,) and N maps of the size of the pieces."""
    shapes = [(level.shape[1], level.shape[2], level.shape[3]) for level in good]
    n = len(good[0])
    if method == "patchcore":
        setting = {**setting, "ratio": min(1.0, max(0.01, BANK / (n * shapes[0][1] * shapes[0][2])))}
    head = METHODS[method].configured(setting)
    head.build(shapes, 1, 0)
    head.begin_fit(FitContext(n, shapes, 1, 0, 4.0, silent))
    with torch.no_grad():
        for reading in _batches(good):
            head.observe(reading)
        head.end_fit()
        head.eval()
        scores, maps = zip(*(head.score(reading) for reading in _batches(test)), strict=True)
    grids = torch.cat(maps)[:, 0].numpy()  # (N, h, w)
    return torch.cat(scores)[:, 0].double().numpy(), [resize_map(grid, (PIECE, PIECE)) for grid in grids]


def figures(
    scores: npt.NDArray[np.float64], maps: list[npt.NDArray[np.float32]], images: list[Judged], repeats: int
) -> dict[str, Any]:
    """By size: AUPRO@0.05, AUPRO@0.3 and image AUROC, each as [value, low, high]."""
    curves = PixelCurves()
    for map_, item in zip(maps, images, strict=True):
        curves.update(map_, item.mask, tag=f"{item.size} px" if item.size else "good")
    tables = CountTables(curves.ok_quantiles(OK_LEVELS))
    for map_, item in zip(maps, images, strict=True):
        tables.update(map_, item.mask)
    sizes, labels = np.array([item.size for item in images]), np.array([int(item.size > 0) for item in images])
    auroc_of = resampled(auroc, labels, scores)
    chosen = {size: (sizes == size) | (sizes == 0) for size in DEFECTS}

    def every(weight: npt.NDArray[np.int64]) -> list[float]:
        own = [weight * chosen[size] for size in DEFECTS]
        return [f(w) for w in own for f in (lambda w: tables.aupro(w, 0.05), lambda w: tables.aupro(w, 0.3), auroc_of)]

    found = bootstrap(every, [item.group for item in images], repeats=repeats)
    result: dict[str, Any] = {}
    rows = np.stack([found.value, found.low, found.high], axis=1).reshape(len(DEFECTS), 3, 3)
    for size, row in zip(DEFECTS, rows, strict=True):
        exact = curves.compute([0.05, 0.3], tags={f"{size} px", "good"}).aupro
        row[0, 0], row[1, 0] = exact[0.05], exact[0.3]
        names = ("aupro_05", "aupro_30", "image_auroc")
        result[str(size)] = {name: np.round(triple, 4).tolist() for name, triple in zip(names, row, strict=True)}
    return result


def vanishing_cases(given: argparse.Namespace) -> Iterator[Case]:
    torch.set_num_threads(1)
    if given.plot is not None:
        if given.output is None or not given.output.exists():
            raise SystemExit("--plot draws the cells of --output FILE, which holds none yet")
        plot(records.read(given.output), given.plot)
        return
    for backbone in given.backbones:
        stages = [level.name for level in find_backbone(backbone).levels]
        try:
            extractor = FeatureExtractor(backbone, stages, given.weights)
        except WeightsMissing as error:
            print(f"{backbone} is left out: {error}", file=sys.stderr, flush=True)
            continue
        nodes = layer_table(BackboneRequest(backbone, stages, given.weights))["nodes"]
        facts = {node["name"]: (node["stride"], node["rf_gradient"], node["channels"]) for node in nodes}
        for texture, size in itertools.product(given.textures, given.sizes):
            shared = cache(partial(prepared, extractor, texture, size, given))
            for method, names in itertools.product(given.methods, fusions(backbone)):
                key = {"texture": texture, "backbone": backbone, "weights": given.weights, "input": size}
                key |= {"method": method, "layers": list(names)}
                about = {
                    "stride": facts[names[0]][0],
                    "field": max(facts[name][1] for name in names),
                    "channels": sum(facts[name][2] for name in names),
                    "n": given.n,
                }
                yield Case(key, partial(one_cell, key, about, stages, shared, given.repeats))


Shared = tuple[list[torch.Tensor], list[torch.Tensor], list[Judged]]


def prepared(extractor: FeatureExtractor, texture: str, size: int, given: argparse.Namespace) -> Shared:
    """Features of the good pieces and of those to judge, which the cells of a texture and size share."""
    train, held_out = pieces(texture, None if given.data is None else Path(given.data), given.n)
    images = judged(texture, held_out)
    good = features(extractor, [piece.image for piece in train], size)
    return good, features(extractor, [item.image for item in images], size), images


def one_cell(
    key: dict[str, Any], about: dict[str, Any], stages: list[str], shared: Callable[[], Shared], repeats: int
) -> dict[str, Any]:
    good, test, images = shared()
    at = [stages.index(name) for name in key["layers"]]
    setting = {"backbone": key["backbone"], "layers": tuple(key["layers"]), "size": key["input"], "smoothing": None}
    scores, maps = fit_and_judge(key["method"], setting, [good[i] for i in at], [test[i] for i in at])
    return {**about, "by_size": figures(scores, maps, images, repeats)}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["texture"], row["backbone"], row["weights"], row["input"], row["method"], tuple(row["layers"])


# -- tables and plot ---------------------------------------------------------------------------------------------------

Means = dict[tuple[Any, ...], tuple[dict[str, Any], list[tuple[float, float]]]]


def means(rows: list[dict[str, Any]], metric: str) -> Means:
    """The mean of a metric over the textures, for each network, input, method and layers.

    Returns:
        (backbone, weights, input, method, layers) -> one of its rows, and for each size of defect the mean and half its
        interval; the textures' intervals are taken as independent.
    """
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(_key(row)[1:], []).append(row)
    out: Means = {}
    for key, same in kinds.items():
        triples = np.array(
            [[row["by_size"][str(size)][metric] for row in same] for size in DEFECTS]
        )  # (D, textures, 3)
        half = np.sqrt((((triples[..., 2] - triples[..., 1]) / 2) ** 2).sum(axis=1)) / len(same)
        out[key] = same[0], list(zip(triples[..., 0].mean(axis=1), half, strict=True))
    return out


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """A table a backbone, weights, input and method."""
    textures = Counter(_key(row)[1:] for row in rows)
    found = means(rows, metric)
    seen_too = metric == "aupro_05"
    heads = ["layers", "stride", "field", "channels", "textures", *(f"{px} px" for px in DEFECTS)]
    tables = []
    for group in dict.fromkeys(key[:-1] for key in found):
        backbone, weights, size, method = group
        lines = []
        for key, (row, values) in found.items():
            if key[:-1] != group:
                continue
            below = sum(1 for i in range(len(DEFECTS)) if min(value for value, _ in values[i:]) < SEEN)
            seen = [f"{px} px" for px in DEFECTS[below:]]
            cells = [f"`{'+'.join(row['layers'])}`", row["stride"], row["field"], row["channels"], textures[key]]
            cells += [f"{value:.2f} ± {half:.2f}" for value, half in values]
            lines.append([*cells, *([seen[0] if seen else "–"] if seen_too else [])])
        title = f"{TITLES[metric]}: {backbone} ({weights}), {method}, input {size} px"
        tables.append(f"### {title}\n\n{markdown([*heads, *(['seen from'] if seen_too else [])], lines)}")
    return "\n\n".join(tables)


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """A panel a backbone and method, at the input size of most cells, the larger if even; fusions dashed."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "vanishing"
    from matplotlib import pyplot

    inputs = [row["input"] for row in rows]
    size = max(sorted(set(inputs), reverse=True), key=inputs.count)
    found = {key: value for key, value in means(rows, "aupro_05").items() if key[2] == size}
    backbones, methods = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 3))
    shape = (len(backbones), len(methods))
    figure, axes = pyplot.subplots(*shape, figsize=(5.5 * shape[1], 3.8 * shape[0]), sharex=True, squeeze=False)
    for (i, backbone), (j, method) in itertools.product(enumerate(backbones), enumerate(methods)):
        own = [value for key, value in found.items() if (key[0], key[3]) == (backbone, method)]
        shades = iter(pyplot.get_cmap("viridis")(np.linspace(0, 0.9, sum(len(row["layers"]) == 1 for row, _ in own))))
        greys = iter(("0.0", "0.4", "0.65"))
        for row, values in own:
            single = len(row["layers"]) == 1
            colour, line = (next(shades), "-") if single else (next(greys), "--")
            label = f"{'+'.join(row['layers'])} ({row['stride']} px)"
            axes[i][j].plot(DEFECTS, [v for v, _ in values], line, color=colour, marker=".", label=label)
        axes[i][j].set_xscale("log", base=2)
        axes[i][j].set_xticks(DEFECTS, [str(px) for px in DEFECTS])
        axes[i][j].set_ylim(0, 1)
        axes[i][j].set_title(f"{backbone}, {method}, input {size} px", fontsize=10)
        axes[i][j].legend(fontsize=7, title="layers (stride)", title_fontsize=7)
        axes[i][j].set_xlabel("longest extent of the defect, px of the piece")
        axes[i][j].set_ylabel("AUPRO@0.05, mean over textures")
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument(
        "--backbones", nargs="+", default=["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
    )
    parser.add_argument("--weights", default="default")
    parser.add_argument("--textures", nargs="+", default=TEXTURES, choices=TEXTURES)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 256], help="side of the network's input, px")
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim"], choices=["patchcore", "padim"])
    parser.add_argument("--n", type=int, default=24, help="good pieces to learn from, and to judge, and of each size")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--plot", type=Path)


SUITE = Suite(
    vanishing_cases,
    arguments,
    {metric: partial(table, metric=metric) for metric in TITLES},
    weights=("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
)
