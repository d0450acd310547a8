"""Parity with a peer: its bank injected into our PatchCore must give its image scores.

python -m bench.parity MODEL.safetensors BANK.npy DATA PEER.npz prints the largest relative difference of the image
scores, with the paper's reweighting over 9 neighbours, which the peer applies.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import pickglass as pg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "bank", "data", "peer"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    detector = pg.load(given.model)
    if not isinstance(detector, pg.PatchCore):
        raise SystemExit(f"{given.model} holds {type(detector).__name__}: parity is that of PatchCore's bank")
    detector.bank = torch.from_numpy(np.load(given.bank))[None]  # (1, M, C)
    detector.reweight = 9
    found = detector.predict(pg.load_dataset(given.data).test)
    with np.load(given.peer, allow_pickle=False) as stored:
        saved = dict(stored)
    theirs = {Path(p).parts[-2:]: s for p, s in zip(saved["paths"].tolist(), saved["scores"], strict=True)}
    expected = np.array([theirs[Path(row.path).parts[-2:]] for row in found.rows])
    difference = np.abs(found.scores - expected) / np.abs(expected)
    print(
        json.dumps(
            {
                "n": len(found),
                "worst_relative": float(difference.max()),
                "median_relative": float(np.median(difference)),
            }
        )
    )


if __name__ == "__main__":
    main()
