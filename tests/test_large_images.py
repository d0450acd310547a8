"""Images of very many tiles under one head are judged a few tiles at a time, with the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.app.label import label, read_regions
from pickglass.data import Row, Table, paint
from pickglass.detectors import loading
from pickglass.detectors.drift_sample import DriftSample, describe
from pickglass.detectors.fitting import FitPlan, prepare
from pickglass.features.batch import Batch
from pickglass.nn.maps import _mostly_kept, kept_cells
from pickglass.runtime.compute import ComputeOptions
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


def test_a_combination_says_of_parts_what_it_says_of_all_tiles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ["padim", {"method": "patchcore", "scale": 0.5}]
    detector = pg.Combined(parts, size=96, **RESNET).tiled(tile=32, stride=32, heads=1)
    detector.fit(list(textures(8, 96)), calibrate=0.5, engine="torch")
    asked = list(textures(2, 96, seed=1))
    at_once = detector.predict(asked, engine="torch")
    monkeypatch.setattr(loading, "_TILES_AT_ONCE", 4)
    batches: list[Any] = []
    scores = pg.PatchCore.score
    monkeypatch.setattr(pg.PatchCore, "score", lambda own, batch: batches.append(batch) or scores(own, batch))
    in_parts = detector.predict(asked, engine="torch")
    assert {batch.levels[0].shape[0] for batch in batches} == {4, 1}  # of nine tiles
    np.testing.assert_allclose(in_parts.scores, at_once.scores, rtol=1e-3)
    for a, b in zip(in_parts.maps, at_once.maps, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(np.abs(b).max()))


def test_defects_of_parts_are_named_as_those_of_all_tiles_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    examples = []
    for i, image in enumerate(textures(14, 96, seed=5)):
        kind = "hole" if i % 2 else "scratch"
        painted = paint(np.ascontiguousarray(image), kind, 28, rng, contrast=2.5)
        examples.append(Row(f"{i}.png", label=1, defect=kind, pixels=painted.image, mask=painted.mask, group=str(i)))
    detector = pg.PatchCore(size=96, ratio=0.05, **RESNET).tiled(tile=32, stride=32, heads=1)
    compute = ComputeOptions(engine="torch")
    path = detector.fit(textures(8, 96), calibrate=0, engine="torch").save(tmp_path / "model.safetensors")
    label(path, Table(examples), compute=compute)
    detector = pg.load(path)
    assert isinstance(detector, pg.Detector)
    detector.set_thresholds(image=0.0)  # all are bad

    def read() -> tuple[Any, list[Any]]:
        regions = read_regions(detector, Table(examples), "bilinear", [0], 0, compute)
        return regions, [one.named for one in detector.predict(Table(examples[:4]), engine="torch")]

    regions, names = read()
    monkeypatch.setattr(loading, "_TILES_AT_ONCE", 2)
    asked: list[int] = []
    of_tiles = loading._batch_of_tiles
    monkeypatch.setattr(
        loading, "_batch_of_tiles", lambda cut, *given: asked.append(cut.shape[1]) or of_tiles(cut, *given)
    )
    again, found = read()
    assert max(asked) == 2
    for own, other in ((again.marked, regions.marked), (again.seen, regions.seen)):
        np.testing.assert_allclose(own.numpy(), other.numpy(), rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    assert again.found == regions.found
    assert None not in (*names, *found)
    assert [one.probability for one in found] == pytest.approx([one.probability for one in names], abs=1e-2)


def test_a_broken_image_among_parts_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = pg.PaDiM(size=64, **RESNET).tiled(tile=32, heads=1)
    detector.fit(textures(4, 64), calibrate=0, engine="torch")
    (tmp_path / "broken.png").write_bytes(b"no image")
    monkeypatch.setattr(loading, "_TILES_AT_ONCE", 2)
    found = detector.predict([textures(1, 64)[0], tmp_path / "broken.png", textures(1, 64)[0]], engine="torch")
    assert len(found.found) == 2
    assert len(found.failed) == 1


@pytest.mark.parametrize("method", [pg.PatchCore(size=96, ratio=0.05, **RESNET), pg.PaDiM(size=96, **RESNET)])
def test_thresholds_and_drift_are_those_of_all_tiles_at_once(
    method: pg.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = list(textures(8, 96))

    def fitted() -> pg.Detector:
        detector = method.clone().tiled(tile=32, stride=32, heads=1)
        return detector.fit(good, calibrate=0.5, engine="torch", observers=[DriftSample()])

    whole = fitted()
    seen: list[int] = []
    score = type(method).score

    def spied(self: Any, batch: Batch) -> Any:
        seen.append(batch.levels[0].shape[0])
        return score(self, batch)

    monkeypatch.setattr(type(method), "score", spied)
    monkeypatch.setattr(loading, "_TILES_AT_ONCE", 4)
    parts = fitted()
    assert max(seen) == 4
    assert whole.calibration is not None
    assert parts.calibration is not None
    # PaDiM's inverse magnifies what another number of tiles at once rounds in the features
    np.testing.assert_allclose(parts.calibration.scores, whole.calibration.scores, rtol=1e-3)
    assert whole.reference is not None
    assert parts.reference is not None
    np.testing.assert_allclose(parts.reference.features, whole.reference.features, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(parts.reference.facts, whole.reference.facts)
    seen.clear()
    asked, _ = describe(parts, list(textures(2, 96, seed=1)), engine="torch")
    assert max(seen) == 4
    monkeypatch.undo()
    expected, _ = describe(parts, list(textures(2, 96, seed=1)), engine="torch")
    np.testing.assert_allclose(asked.features, expected.features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(asked.scores, expected.scores, rtol=1e-3)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("turn", "brightness"), [(0, 1.0), (1, 1.3)])
def test_parts_show_the_pixels_of_the_image(
    bits: int, turn: int, brightness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.arange(96 * 96 * 3).reshape(96, 96, 3).astype(np.uint8)  # each of the 256 values
    if bits == 16:
        image = image.astype(np.uint16) * 257
    detector = pg.EfficientAD(backbone="pdn_tiny", size=96).tiled(tile=64, stride=40, heads=1, edges="pad")
    detector.roi = None
    detector.extractor = None
    good = list(textures(3, 96))
    prepare(detector, good, FitPlan(0.0, 0.0, 0, 1.0), ComputeOptions(engine="torch"))
    monkeypatch.setattr(loading, "_TILES_AT_ONCE", 2)
    loader = detector.loader(ComputeOptions(engine="torch")).changed(turn, brightness)
    loader.reads = ("images",)
    (lazy,) = loader.batches([Row("array:0", pixels=image)], features=False)
    (whole,) = loader.batches([Row("array:0", pixels=image)])
    (value,) = lazy.values
    assert value.image.dtype == (np.uint8 if bits == 8 else np.float32)
    shown = torch.cat([part.images for part in loader.parts_of(value) if part.images is not None])
    assert whole.batch is not None
    assert whole.batch.images is not None
    assert torch.equal(shown, whole.batch.images)
    expected = torch.from_numpy(detector.preprocess(image))[None]
    expected = (expected * brightness).clamp(max=1).rot90(turn, (2, 3))
    assert torch.equal(shown[0], expected[:, :, :64, :64])


def test_cells_of_whole_and_cut_tiles_are_those_of_each_tile_alone() -> None:
    keep = torch.ones(4, 1, 12, 10, dtype=torch.bool)
    keep[1, :, 7:], keep[2, :, :, 3:], keep[3] = False, False, False
    cells = kept_cells(keep, (4, 3))
    assert cells is not None
    assert torch.equal(cells, torch.cat([_mostly_kept(one, (4, 3))[None] for one in keep]))
    assert bool(cells[0].all())
    assert not bool(cells[3].any())
