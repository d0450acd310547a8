"""The main job on real images. Skipped, and counted, where they are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pickglass as pg
from pickglass.data import read_mask
from pickglass.detectors import fitting
from pickglass.nn.search.coreset import greedy_coreset, random_projection

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hazelnut(real_data: Path) -> pg.Dataset:
    return pg.load_dataset(real_data / "mvtec_hazelnut_reduced")


@pytest.fixture(scope="module")
def detector(hazelnut: pg.Dataset) -> pg.PatchCore:
    # no test here asks for a verdict, and all 50 images take three times as long
    return pg.PatchCore(ratio=0.02).fit(hazelnut.train[:16], calibrate=0)


def test_the_heat_lies_on_the_defects(hazelnut: pg.Dataset, detector: pg.PatchCore) -> None:
    found = detector.predict(hazelnut.test)
    assert (pg.evaluate(found)["image_auroc"] or 0) > 0.9  # of 16 pairs
    hits = 0
    for i, row in enumerate(found.rows):
        if row.mask is not None:
            full = found.map(i)
            mask = read_mask(row.mask, full.shape)
            hits += bool(mask[np.unravel_index(full.argmax(), full.shape)])
            assert full[mask].mean() > 1.3 * full[~mask].mean(), row.path
    assert hits >= 6  # of 8: the highest value lies inside the defect


def test_real_sizes_and_aspects_come_back(real_data: Path) -> None:
    tiles = pg.load_dataset(real_data / "magnetic_tile")
    detector = pg.PatchCore(size=128, ratio=0.01).fit(tiles.train[:10], calibrate=0)
    found = detector.predict(tiles.test[:6])
    assert {found.map(i).shape for i in range(6)} == set(found.sizes)
    assert len(set(found.sizes)) > 1
    strips = pg.load_dataset(real_data / "aitex_fabric04")
    detector = pg.PatchCore(size=(64, 1024), ratio=0.02, layers=("stage2", "stage3")).fit(strips.train[:8], calibrate=0)
    found = detector.predict(strips.test[:2])
    assert found.maps[0].shape == (16, 256)
    assert found.map(0).shape == (256, 4096)


def test_groups_stay_together(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_MOST_LEFT_OUT", 100)  # fewer than there are
    detector = pg.PatchCore(size=64, ratio=0.01).fit(pg.load_dataset(real_data / "magnetic_tile"))
    assert detector.provenance.n_fit == 245
    assert detector.calibration is not None
    groups = set(detector.calibration.groups)  # as many images as are judged as if left out, in whole groups
    assert 100 <= len(detector.calibration.scores) < 130
    train = pg.load_dataset(real_data / "magnetic_tile").train
    assert sum(row.group in groups for row in train) == len(detector.calibration.scores)


def test_the_blocked_greedy_on_real_features(detector: pg.PatchCore) -> None:
    """Index for index the greedy in float64, up to the first pick that float32 cannot tell from its runner-up."""
    assert detector.bank is not None
    points = random_projection(detector.bank[0], 128, 0)
    found = greedy_coreset(points, 200)
    x = points.double().numpy()
    chosen = [int(found.indices[0])]
    distance = ((x - x[chosen[0]]) ** 2).sum(1)
    for pick in found.indices[1:].tolist():
        best = int(distance.argmax())
        # the pick is the farthest point, to within what float32 resolves
        assert distance[pick] >= distance[best] * (1 - 1e-5)
        distance = np.minimum(distance, ((x - x[pick]) ** 2).sum(1))
