"""FastFlow's map in the log domain, as pickglass has it, beside the usual one of exponentials: the same trained flows.

    python -m bench.fastflow_score DATA [--preset quick] [--seed 0]

Prints a Markdown table: image AUROC, AUPRO at 0.3 and 0.05, how many images share the highest score, and the share of
cells that are 0, the largest value that -exp(-0.5 mean z^2) can take; and one JSON line. DATA is a data set whose
images already have one size (bench/squeeze.py).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pickglass as pg
from pickglass.features.batch import Batch
from pickglass.nn.maps import highest, kept_cells, to_grid


class Saturating(pg.FastFlow):
    """FastFlow with the map of the re-implementations: the mean over the levels of -exp(-0.5 mean z^2)."""

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        grid = (batch.levels[0].shape[3], batch.levels[0].shape[4])
        parts = [to_grid(-(-0.5 * z.square().mean(2)).exp(), grid) for z, _ in self._flows()(*batch.levels)]
        maps = torch.stack(parts).mean(0)  # (B, P, h, w)
        keep = kept_cells(batch.keep, grid)
        return highest(maps, keep), maps


def figures(found: pg.Prediction) -> dict[str, Any]:
    metrics = pg.evaluate(found)
    scores = np.asarray(found.scores)
    cells = np.concatenate([np.asarray(m).ravel() for m in found.maps])
    return {
        **{key: metrics[key] for key in ("image_auroc", "aupro_30", "aupro_05")},
        "images_tied_at_most": int((scores == scores.max()).sum()),
        "cells_at_0": float((cells == 0).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = pg.load_dataset(given.data)
    detector = pg.FastFlow.from_preset(given.preset).fit(data, calibrate=0, seed=given.seed)
    result = {"log domain": figures(detector.predict(data.test))}
    detector.__class__ = Saturating  # the same flows under another score
    result["exponentials"] = figures(detector.predict(data.test))
    print(f"| map | {' | '.join(result['log domain'])} |\n|{'---|' * 6}")
    for name, own in result.items():
        print(f"| {name} | {' | '.join(f'{v:.4g}' for v in own.values())} |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
