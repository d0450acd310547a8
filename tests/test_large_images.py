"""Images of very many tiles under one head are judged a few tiles at a time, with the same result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pickglass as pg
from pickglass.detectors import loading
from pickglass.features.batch import Batch
from pickglass.testing import textures

RESNET: dict[str, Any] = {"backbone": "resnet18", "layers": ("layer1",), "weights": "random"}


@pytest.mark.parametrize("settings", [{"edges": "pad", "stride": 24}, {"stride": 32}], ids=["padded", "shifted"])
def test_parts_of_an_image_say_what_all_tiles_at_once_do(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, asked = textures(4, 96), list(textures(2, 96, seed=1))
    detector = pg.PatchCore(size=96, ratio=0.05, **RESNET).tiled(tile=32, heads=1, **settings)
    detector.fit(good, calibrate=0, engine="torch")
    at_once = detector.predict(asked, engine="torch")
    seen: list[int] = []
    score = pg.PatchCore.score

    def spied(self: pg.PatchCore, batch: Batch) -> Any:
        seen.append(batch.levels[0].shape[0])
        return score(self, batch)

    monkeypatch.setattr(pg.PatchCore, "score", spied)
    monkeypatch.setattr(loading, "_TILES_AT_ONCE", 4)
    assert detector.tiles is not None
    n = detector.tiles.n
    in_parts = detector.predict(asked, engine="torch")
    assert seen == 2 * ([4] * (n // 4) + [n % 4] * (n % 4 > 0))  # never more than four tiles
    np.testing.assert_allclose(in_parts.scores, at_once.scores, rtol=1e-6)
    for a, b in zip(in_parts.maps, at_once.maps, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_broken_image_among_parts_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = pg.PaDiM(size=64, **RESNET).tiled(tile=32, heads=1)
    detector.fit(textures(4, 64), calibrate=0, engine="torch")
    (tmp_path / "broken.png").write_bytes(b"no image")
    monkeypatch.setattr(loading, "_TILES_AT_ONCE", 2)
    found = detector.predict([textures(1, 64)[0], tmp_path / "broken.png", textures(1, 64)[0]], engine="torch")
    assert len(found.found) == 2
    assert len(found.failed) == 1
