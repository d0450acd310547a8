"""MVTec LOCO end to end: regions with saturation areas from their files to AU-sPRO in the metrics and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from page_reader import PageReader
from pickglass.app.fit import FitRequest, fit
from pickglass.app.testing.test import test as run_test
from pickglass.cli.test import show_test
from pickglass.data import paint, read_regions
from pickglass.errors import ImageError
from pickglass.result import Found, Prediction
from pickglass.testing import textures

CONFIG = [
    {"defect_name": "missing", "pixel_value": 200, "saturation_threshold": 30, "relative_saturation": False},
    {"defect_name": "dirt", "pixel_value": 201, "saturation_threshold": 0.5, "relative_saturation": True},
]
SATURATION = {200: lambda area: min(30, area), 201: lambda area: int(0.5 * area)}
SIZE = (64, 80)
LOGICAL, STRUCTURAL = "logical_anomalies", "structural_anomalies"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def loco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 + 2 good images, 3 good ones to test, 2 with two overlapping missing parts, 2 with dirt."""
    root = tmp_path_factory.mktemp("loco") / "screw_bag"
    images = [np.ascontiguousarray(image[: SIZE[0]]) for image in textures(19, SIZE[1])]
    folders = ["train/good"] * 10 + ["validation/good"] * 2 + ["test/good"] * 3
    for i, folder in enumerate(folders):
        save(root / folder / f"{i:03d}.png", images[i])
    rng = np.random.default_rng(0)
    for i in range(15, 19):
        kind, masks = (LOGICAL, {}) if i < 17 else (STRUCTURAL, {})
        image = images[i].copy()
        if kind == LOGICAL:
            for value, columns in enumerate((slice(8, 24), slice(20, 40))):
                masks[f"{value:03d}"] = mask = np.zeros(SIZE, np.uint8)
                mask[16:40, columns] = 200
                image[20:30, columns] = 128
        else:
            painted = paint(image, "hole", 16, rng, contrast=2.0)
            image, masks["000"] = painted.image, np.where(painted.mask, 201, 0).astype(np.uint8)
        save(root / "test" / kind / f"{i:03d}.png", image)
        for name, mask in masks.items():
            save(root / "ground_truth" / kind / f"{i:03d}" / f"{name}.png", mask)
    (root / "defects_config.json").write_text(json.dumps(CONFIG))
    return root


def predicted(root: Path) -> Prediction:
    """Made-up maps, in which defects stand out here and there."""
    rng, found = np.random.default_rng(1), []
    for row in pg.load_dataset(root).test:
        map_ = rng.random((8, 10)).astype(np.float32)
        map_[2:5, 1:5] += 0.4 * (row.label or 0)
        found.append(Found(row, float(map_.max()), map_, SIZE))
    return Prediction(tuple(found))


def literal_au_spro(prediction: Prediction, kinds: set[str | None]) -> float:
    """The definition, threshold by threshold, from the files."""
    ok, defects = [], []
    for i, row in enumerate(prediction.rows):
        if row.defect not in kinds:
            continue
        full, free = prediction.map(i), np.ones(SIZE, bool)
        for file in row.masks:
            mask = np.asarray(Image.open(file))
            inside = mask > 0
            defects.append((full[inside], SATURATION[int(mask.max())](int(inside.sum()))))
            free &= ~inside
        ok.append(full[free])
    good = np.concatenate(ok)
    fpr, spro = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([good, *(scores for scores, _ in defects)]))[::-1]:
        fpr.append(float((good >= threshold).mean()))
        spro.append(float(np.mean([min((scores >= threshold).sum() / area, 1) for scores, area in defects])))
    x, y = np.array(fpr), np.array(spro)
    at = float(np.interp(0.05, x, y))
    x, y = np.append(x[x < 0.05], 0.05), np.append(y[x < 0.05], at)
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1])).sum() / 2 / 0.05)


@pytest.mark.slow
def test_au_spro_is_the_definition_overall_and_for_each_group(loco: Path) -> None:
    prediction = predicted(loco)
    found = pg.evaluate(prediction)
    assert set(found.by_type) == {LOGICAL, STRUCTURAL}
    assert found["au_spro_05"] == pytest.approx(literal_au_spro(prediction, {None, LOGICAL, STRUCTURAL}), abs=1e-6)
    for kind in (LOGICAL, STRUCTURAL):
        assert found.by_type[kind]["au_spro_05"] == pytest.approx(literal_au_spro(prediction, {None, kind}), abs=1e-6)
    assert 0.02 < found["au_spro_05"] < 0.98
    assert found["au_spro_05"] != pytest.approx(found["aupro_05"], abs=1e-3)
    assert found.saturated is not None
    assert found.saturated.n_regions == 6
    assert found.pixels is not None
    assert found.saturated.n_ok_pixels == found.pixels.n_ok_pixels  # both rates are measured on the same pixels


def test_other_metrics_do_not_depend_on_saturation(loco: Path) -> None:
    prediction = predicted(loco)
    bare = Prediction(tuple(f._replace(row=replace(f.row, saturation=())) for f in prediction))
    with_areas, without = pg.evaluate(prediction), pg.evaluate(bare)
    assert without["au_spro_05"] is None
    assert without.saturated is None
    assert {**with_areas, "au_spro_05": None} == dict(without)


def test_a_group_without_areas_has_no_au_spro(loco: Path) -> None:
    found = predicted(loco)
    rows = [replace(f.row, saturation=() if f.row.defect == STRUCTURAL else f.row.saturation) for f in found]
    result = pg.evaluate(Prediction(tuple(f._replace(row=row) for f, row in zip(found, rows, strict=True))))
    assert result.by_type[STRUCTURAL]["au_spro_05"] is None
    assert result.by_type[LOGICAL]["au_spro_05"] == pg.evaluate(found).by_type[LOGICAL]["au_spro_05"]
    assert result["au_spro_05"] is not None


def test_masks_of_grey_in_three_channels_are_read_as_grey(loco: Path, tmp_path: Path) -> None:
    for row in (row for row in pg.load_dataset(loco).test if row.masks):
        colours = tuple(str(tmp_path / Path(file).name) for file in row.masks)
        for file, colour in zip(row.masks, colours, strict=True):
            with Image.open(file) as mask:
                mask.convert("RGB").save(colour)
        for found, expected in zip(
            read_regions(replace(row, mask=colours), SIZE), read_regions(row, SIZE), strict=True
        ):
            assert np.array_equal(found.mask, expected.mask)
            assert found.saturation == expected.saturation


def test_values_without_a_meaning_are_named(loco: Path) -> None:
    prediction = predicted(loco)
    rows = [replace(f.row, saturation=f.row.saturation[:1]) for f in prediction]
    with pytest.raises(ImageError, match=r"000\.png: holds the value 201, but .* names only 200"):
        pg.evaluate(Prediction(tuple(f._replace(row=row) for f, row in zip(prediction, rows, strict=True))))


@pytest.mark.slow
def test_through_fit_and_test_to_the_report(loco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, report = tmp_path / "m.safetensors", tmp_path / "r.html"
    fit(loco, model, FitRequest(settings={"size": 64, "ratio": 0.05}))
    result = run_test(model, loco, report)
    assert result["au_spro_05"] is not None
    assert result["by_type"][LOGICAL]["au_spro_05"] is not None
    text = PageReader(report.read_text()).text()
    assert f"AU-sPRO@0.05 {result['au_spro_05']:.3f}" in text
    assert "sPRO of the defects" in text
    mean = np.mean([metrics["au_spro_05"] or 0 for metrics in result["by_type"].values()])
    assert "6 defects as the data set tells them apart" in text
    assert f"figures for {LOGICAL} and {STRUCTURAL}, as MVTec LOCO" in text
    assert f"is {mean:.3f}." in text
    show_test(result)
    assert f"AU-sPRO@0.05 as MVTec LOCO's tables give it, the mean of the types: {mean:.3f}" in capsys.readouterr().out


@pytest.mark.slow
def test_where_there_is_none_it_is_not_mentioned(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, report = tmp_path / "m.safetensors", tmp_path / "r.html"
    fit(small_dataset, model, FitRequest(settings={"size": 64, "ratio": 0.05}))
    result = run_test(model, small_dataset, report)
    assert result["au_spro_05"] is None
    show_test(result)
    assert "sPRO" not in report.read_text() + capsys.readouterr().out
