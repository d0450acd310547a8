"""Parity with a peer: its bank injected into our PatchCore must give its image scores.

    python -m bench run parity MODEL.safetensors BANK.npy DATA PEER.npz

The largest relative difference of the image scores, with the paper's reweighting over 9 neighbours, which the peer
applies. Its side writes BANK and PEER with ``--bank`` and ``--save`` (bench/peer/run_anomalib.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import pickglass as pg
from bench.harness import Case, Suite


def measured(given: argparse.Namespace) -> dict[str, float]:
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
    worst, median = float(difference.max()), float(np.median(difference))
    return {"n": len(found), "worst_relative": worst, "median_relative": median}


def arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("model", "bank", "data", "peer"):
        parser.add_argument(name, type=Path)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    yield Case({"data": given.data.name, "bank": given.bank.name}, lambda: measured(given))


SUITE = Suite(cases, arguments)
