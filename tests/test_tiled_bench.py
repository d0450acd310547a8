"""bench/tiled_ensemble.py runs the source's protocol, on a miniature tree with tiny tiles, and resumes it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


def bench() -> ModuleType:
    file = Path(__file__).parents[1] / "bench" / "tiled_ensemble.py"
    spec = importlib.util.spec_from_file_location("tiled_ensemble", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_protocol_of_the_source(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = bench()
    assert set(script.SOURCE) == {"padim", "patchcore", "fastflow", "reverse_distillation", "stfpm"}
    assert script.WAYS["ensemble 512/256/128"] == (
        512,
        {"size": 512, "tile": 256, "stride": 128, "join": "seams", "image_score": "mean"},
    )
    tiles = {**script.WAYS["ensemble 512/256/128"][1], "size": 96, "tile": 64, "stride": 32}
    monkeypatch.setattr(script, "WAYS", {"single 256": (64, None), "ensemble 512/256/128": (96, tiles)})
    out = tmp_path / "cells.jsonl"
    command = ["tiled_ensemble.py", "--mvtec", str(small_dataset.parent), "--weights", "random", "--out", str(out)]
    command += ["--epochs", "1", "--methods", "patchcore"]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    cells, means = lines[:2], lines[2:]
    assert {(cell["data"], cell["method"], cell["way"]) for cell in cells} == {
        (f"{small_dataset.parent.name}/tile", method, way)
        for method in ("patchcore",)
        for way in ("single 256", "ensemble 512/256/128")
    }
    assert [mean["categories"] for mean in means] == [1] * 2
    assert all(0 <= cell["figures"]["aupro_30"] <= 1 for cell in cells)
    monkeypatch.setattr(script, "build", None)  # nothing is fitted again
    script.main()
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == means
