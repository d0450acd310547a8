"""Teach a model to name defects, from a few labelled examples of each type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pickglass.app.results import LabelResult
from pickglass.calibration import Change
from pickglass.data import (
    MAX_PIXELS,
    Dataset,
    DataSource,
    Table,
    image_digest,
)
from pickglass.data.files import alone, output_path
from pickglass.data.tables.layouts.classes import class_rows, classes
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.names import MASK_FOLDERS, split_of
from pickglass.data.tables.layouts.tables import grouped
from pickglass.data.tables.layouts.tree import walk
from pickglass.detectors.detector import Detector
from pickglass.detectors.fitting import judged_batch
from pickglass.detectors.loading import FeatureLoader, LoadedBatch
from pickglass.detectors.naming import Namer, OnTiles, fit_namer, on_tiles, pooled, projections
from pickglass.errors import DataError, Failure, ImageError, InputError, UnknownName
from pickglass.methods import load
from pickglass.nn.pooling import Pooling, canvas_shares
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["LabelRequest", "Regions", "label", "labelled", "read_regions"]


@dataclass(frozen=True)
class LabelRequest:
    """The way in which defects are to be named.

    Attributes:
        pooling: ``"average"`` over a region's features, or ``"bilinear"``, the products of pairs of channels.
        layers: some of the detector's layers; None: all of them.
        sure: share of the names that should be right, in (0, 1); the others become "unknown".
        seed: decides the folds of the cross-validation.
    """

    pooling: Pooling = "average"
    layers: Sequence[str] | None = None
    sure: float = 0.8
    seed: int = 0


def label(
    model: str | Path,
    data: DataSource | Dataset | Table | str | Path,
    output: str | Path | None = None,
    request: LabelRequest | None = None,
    *,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> LabelResult:
    """Learn the types of defects and write them into the model; ``predict`` then names the defects that it finds.

    The detector itself stays as it is: scores, maps and thresholds do not change. All images of ``data`` whose type is
    named are learned from, whatever their role, so none of them may be used to judge the names afterwards. Learned
    from are the region that the mask marks and the one that the detector finds, which are the same without a mask.

    Args:
        model: model file.
        data: examples, at least five a type and of two parts each: a folder with one folder a type (masks in
            ``masks/TYPE`` or ``ground_truth/TYPE``, if any), any layout that :func:`pickglass.load_dataset` knows, or
            rows. Good images are passed over.
        output: file to write; None: the model's own, replaced whole or not at all.
        request: how to name; None: as it comes.
        compute: where to compute.
        progress: called with (stage, done, total).

    Raises:
        DataError: no example, or broken ones, all listed.
        InputError: too few examples, or they do not tell the types apart; the model stays as it was.
        MissingExtra: scikit-learn is not installed.
    """
    target = output_path(output or model, ".safetensors")
    with alone(target):
        detector = load(model)
        wish = request or LabelRequest()
        levels = _levels(detector, wish.layers)
        table = labelled(data)
        run = compute or ComputeOptions()
        regions = read_regions(detector, table, wish.pooling, levels, wish.seed, run, progress)
        namer = fit_namer(
            regions.marked,
            regions.seen,
            [row.defect or "" for row in table],
            [row.unit for row in table],
            layers=[detector.level_names()[i] for i in levels],
            levels=levels,
            pooling=wish.pooling,
            signs=regions.signs,
            sure=wish.sure,
            seed=wish.seed,
            about={"found": regions.found, "images": [image_digest(row)[:16] for row in table]},
        )
        detector.namer = namer
        detector.history += (Change.between("label", detector.calibration, detector.calibration),)
        written = detector.save(target)
        return _result(namer, str(written))


def labelled(data: DataSource | Dataset | Table | str | Path) -> Table:
    """List the rows whose type of defect is named.

    Args:
        data: as in :func:`label`.

    Raises:
        DataError: there is none.
    """
    table = data.table if isinstance(data, Dataset) else data
    if not isinstance(table, Table):
        table = _read(DataSource.of(table))
    examples = table.where(lambda row: row.label != 0 and row.defect is not None)
    if not examples:
        raise DataError(
            f"none of the {len(table)} images is an example of a defect: expected a folder with one folder of images a "
            "type, or a table with the column 'defect'"
        )
    return examples


def _read(source: DataSource) -> Table:
    path = Path(source.path)
    root = walk(path) if path.is_dir() and source.layout is None else None
    ask = Ask(source.group_by, source.good)
    kinds = [] if root is None else classes(root, ask)
    if root is not None and kinds and not any(one.good or split_of(one.name) for one in kinds):
        try:
            sets = source.load_all()
        except DataError:  # folders of examples, one a type
            found, places = Found(), root.find_all(*MASK_FOLDERS)
            rows = [
                row
                for one in kinds
                for row in class_rows(one, "test", [m for place in places for m in place.find_all(one.name)], found)
            ]
            return grouped(root, rows, ask, found)
    else:
        sets = source.load_all()
    if len(sets) > 1:
        raise DataError(f"{path} holds {len(sets)} data sets, expected one: {', '.join(sets)}")
    (dataset,) = sets.values()
    return dataset.table


def _levels(detector: Detector, layers: Sequence[str] | None) -> list[int]:
    if "features" not in detector.reads:
        raise InputError(f"{detector.method} reads images, not features of a backbone: there is nothing to name by")
    known = list(detector.level_names())
    for name in layers or []:
        if name not in known:
            raise UnknownName("layer of the model", name, known)
    return [known.index(name) for name in layers] if layers else list(range(len(known)))


# -- features of the examples ------------------------------------------------------------------------------------------


class Regions(NamedTuple):
    """The pooled features of n examples.

    Attributes:
        marked: (n, D), features of the regions that the masks mark, or that the detector finds where there is no mask.
        seen: (n, D), features of the regions that the detector finds.
        signs: signs of the random projection of each level; None: not projected.
        found: number of regions that the detector finds and that touch the mask, or have no mask.
    """

    marked: Tensor
    seen: Tensor
    signs: list[Tensor | None]
    found: int


def read_regions(
    detector: Detector,
    table: Table,
    pooling: Pooling,
    levels: Sequence[int],
    seed: int,
    running: ComputeOptions,
    progress: Progress | None = None,
) -> Regions:
    """Read the features of labelled images, on their masks and where the detector sees the defect.

    Raises:
        DataError: an image or a mask cannot be read.
    """
    loader = detector.loader(running)
    table = detector.provenance.within_regions(table)
    channels = [detector.level_shapes()[i][0] for i in levels]
    signs = projections(channels, pooling, seed)
    marked: list[Tensor] = []
    seen: list[Tensor] = []
    broken: list[Failure] = []
    found = done = 0
    for loaded in loader.batches(table, features=not loader.in_parts):
        broken += loaded.failures
        if loaded.sound:
            with torch.no_grad():
                _, (_, maps, _) = judged_batch(detector, loader, loaded)
            regions = detector.regions(maps.cpu().numpy())
            truth, failures = _marked(loaded, detector, regions, running.max_pixels)
            broken += failures
            found += int((truth * regions).flatten(1).any(1).sum())
            for shares, kept in ((truth, marked), (regions, seen)):
                for parts in _regions_of(loaded, loader, detector, shares):
                    read = (([own[i] for i in levels], share) for own, share in parts)
                    kept.append(pooled(read, pooling, signs))
        done += len(loaded.items)
        if progress is not None:
            progress("reading examples", done, len(table))
    if broken:
        raise DataError(f"{len(broken)} of {len(table)} examples cannot be used:", broken)
    return Regions(torch.cat(marked), torch.cat(seen), signs, found)


def _marked(
    loaded: LoadedBatch, detector: Detector, regions: Tensor, max_pixels: int = MAX_PIXELS
) -> tuple[Tensor, list[Failure]]:
    """Return the regions (B, H, W) that the masks mark, or that the detector finds where there is no mask."""
    marked, broken = regions.float(), []
    for i, item in enumerate(loaded.sound):
        try:
            mask = item.row.truth(item.size, max_pixels)
            if mask is None:
                continue
            shares = canvas_shares(mask, detector.preprocess)
        except ImageError as error:
            broken.append(Failure(error.path, error.reason))
            continue
        if shares.any():
            marked[i] = torch.from_numpy(np.ascontiguousarray(shares))
        else:
            broken.append(Failure(item.row.path, "its mask marks nothing, but it is an example of a defect"))
    return marked, broken


def _regions_of(
    loaded: LoadedBatch, loader: FeatureLoader, detector: Detector, shares: Tensor
) -> Iterator[Iterable[OnTiles]]:
    """Yield what is pooled together: all images of a batch, or each of those that are read in parts by itself."""
    if loaded.batch is not None:
        yield [on_tiles(loaded.batch, detector.tiles, range(len(shares)), shares)]
    else:
        yield from map(loader.region_parts, loaded.values, shares)


def _result(namer: Namer, model: str) -> LabelResult:
    settings, about = namer.settings, namer.settings.about
    n = sum(about["examples"].values())
    return {
        "model": model,
        "types": about["examples"],
        "groups": about["groups"],
        "layers": list(settings.layers),
        "pooling": settings.pooling,
        "accuracy": about["accuracy"],
        "named": about["named"],
        "right": about["right"],
        "confusion": about["confusion"],
        "threshold": settings.threshold,
        "found": about["found"],
        "sentence": (
            f"in cross-validation by group {about['named']:.0%} of the {n} examples got a name, and "
            f"{about['right']:.0%} of these names were right; below a probability of {settings.threshold:.2f}, or "
            "further from all examples than they are from each other, the type is unknown. The images used here must "
            "not judge the names: they would flatter them."
        ),
    }
