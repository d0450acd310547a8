"""Probe the layers of a backbone on labelled images; see :mod:`pickglass.features.anatomy.probe`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pickglass.app.results import LayerProbe
from pickglass.data import Preprocess, Row, Table, decode_all
from pickglass.data.images.decoder import Array
from pickglass.errors import DataError
from pickglass.features.anatomy.probe import Labelled, probe_layers
from pickglass.features.extractor import FeatureExtractor
from pickglass.nn.pooling import canvas_shares

__all__ = ["probe", "summary"]

_BATCH = 8

Progress = Callable[[str, int, int], None]


def probe(
    extractor: FeatureExtractor, table: Table, prepare: Preprocess, seed: int = 0, progress: Progress | None = None
) -> list[LayerProbe]:
    """Measure how well each layer tells defect types apart, and defects from good surface.

    A defect without a mask counts with its whole image. On good images the masks of the defects are laid in turn.

    Raises:
        DataError: no defect of a known type, or images or masks that cannot be read, all listed.
    """
    rows = _probed(table)
    n_good = sum(row.label == 0 for row in rows)
    probes = probe_layers(extractor, _batches(rows, prepare, progress), n_good, seed)
    return [
        {
            "types": _known(layer.types[0]),
            "types_interval": _ends(layer.types),
            "defect": _known(layer.defect[0]),
            "defect_interval": _ends(layer.defect),
            "dimension": _known(layer.dimension),
        }
        for layer in probes
    ]


def summary(table: Table) -> dict[str, Any]:
    """Count the good images and the images of each type."""
    types = Counter(row.defect for row in _probed(table) if row.label != 0)
    return {"good": sum(row.label == 0 for row in table), "types": dict(sorted(types.items()))}


def _probed(table: Table) -> Table:
    """List the defects of known types first, then the good images."""
    bad = table.where(lambda row: row.label != 0 and row.defect is not None)
    if not bad:
        raise DataError(
            "no image is a defect of a known type: expected a data set with folders of defects to probe with"
        )
    return bad + table.where(lambda row: row.label == 0)


def _batches(rows: Table, prepare: Preprocess, progress: Progress | None) -> Iterator[Labelled]:
    def prepared(image: Array, row: Row) -> tuple[np.ndarray, np.ndarray | None]:
        mask = row.truth((image.shape[0], image.shape[1])) if row.label != 0 else None
        return prepare(image), None if mask is None or not mask.any() else canvas_shares(mask, prepare)

    whole = np.ones(prepare.size, np.float32)
    borrowed: list[np.ndarray] = []
    waiting: list[tuple[Row, np.ndarray, np.ndarray]] = []
    decoded = decode_all(rows, prepared, progress=progress, stage="probing the layers")
    for done, (row, (image, shares)) in enumerate(decoded, start=1):
        if row.label != 0:
            borrowed.append(whole if shares is None else shares)
            waiting.append((row, image, borrowed[-1]))
        else:  # without any sound defect, an error is on its way
            waiting.append((row, image, borrowed[done % len(borrowed)] if borrowed else whole))
        if len(waiting) == _BATCH or done == len(rows):
            yield Labelled(
                torch.from_numpy(np.stack([image for _, image, _ in waiting])),
                torch.from_numpy(np.stack([shares for _, _, shares in waiting])),
                [row.defect if row.label != 0 else None for row, _, _ in waiting],
                [row.unit for row, _, _ in waiting],
            )
            waiting = []


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _ends(values: tuple[float, float, float]) -> list[float] | None:
    return None if math.isnan(values[1]) else [values[1], values[2]]
