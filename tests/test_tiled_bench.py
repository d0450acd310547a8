"""bench/tiled_ensemble.py runs the source's protocol, on a miniature tree with tiny tiles, and resumes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import tiled_ensemble
from bench.harness import suite


@pytest.mark.slow
def test_the_protocol_of_the_source(small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(tiled_ensemble.SOURCE) == {"padim", "patchcore", "fastflow", "reverse_distillation", "stfpm"}
    assert tiled_ensemble.WAYS["ensemble 512/256/128"] == (
        512,
        {"size": 512, "tile": 256, "stride": 128, "join": "seams", "image_score": "mean"},
    )
    tiles = {**(tiled_ensemble.WAYS["ensemble 512/256/128"][1] or {}), "size": 96, "tile": 64, "stride": 32}
    monkeypatch.setattr(tiled_ensemble, "WAYS", {"single 256": (64, None), "ensemble 512/256/128": (96, tiles)})
    root = small_dataset.parent
    words = ["source", str(root), "--weights", "random", "--epochs", "1", "--methods", "patchcore"]
    words += ["-o", str(tmp_path / "cells.jsonl")]
    cells = suite.run("tiled_ensemble", words)
    assert [(cell["data"], cell["category"], cell["method"], cell["way"]) for cell in cells] == [
        (root.name, "tile", "patchcore", way) for way in ("single 256", "ensemble 512/256/128")
    ]
    assert all(0 <= cell["figures"]["aupro_30"] <= 1 for cell in cells)
    table = suite.table("tiled_ensemble", "source", cells)
    assert f"| {root.name} | patchcore | single 256 | 1 | " in table
    monkeypatch.setattr(tiled_ensemble, "build", None)  # nothing is fitted again
    assert suite.table("tiled_ensemble", "source", suite.run("tiled_ensemble", words)) == table
