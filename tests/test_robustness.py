"""Robustness: what is reported is what evaluation says of disturbed images, and the page shows all of it."""

from __future__ import annotations

import json
import shutil
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from pickglass.app.fit import FitRequest, fit
from pickglass.app.results import RobustnessResult
from pickglass.app.testing.robustness import robustness
from pickglass.cli.main import main
from pickglass.data import read_image, read_mask
from pickglass.data.painting.disturbances import DISTURBANCES, UNITS, disturb, disturb_mask
from pickglass.detectors.detector import Detector
from pickglass.errors import DataError, InputError
from pickglass.methods import load
from pickglass.metrics.catalogue import METRICS

NUMBERS = ("image_auroc", "aupro_30", "aupro_05", "false_alarm_rate", "miss_rate")


@pytest.fixture(scope="module")
def model(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model") / "m.safetensors"
    fit(small_dataset, target, FitRequest(settings={"size": 64, "ratio": 0.05}))
    return target


@pytest.fixture(scope="module")
def judged(small_dataset: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> RobustnessResult:
    return robustness(model, small_dataset, tmp_path_factory.mktemp("page") / "r.html", seed=5)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two disturbances are enough for what all have in common."""
    for module in ("testing", "pages"):
        monkeypatch.setattr(
            f"pickglass.app.{module}.robustness.DISTURBANCES", {"blur": (1.0, 2.0), "shift": (0.05, 0.1)}
        )


def literal(dataset: Path, model: Path, folder: Path, kind: str, strength: float) -> pg.Evaluation:
    """Disturbed images and masks written to files and judged by the ordinary way."""
    rows = []
    for i, row in enumerate(pg.load_dataset(dataset).test):
        image, generator = read_image(row.path), [5, i, *kind.encode()]
        path, mask = folder / f"{i}.png", None
        Image.fromarray(disturb(image, kind, strength, np.random.default_rng(generator))).save(path)
        if row.mask is not None:
            truth = read_mask(row.mask, image.shape[:2])
            mask = str(folder / f"{i}_mask.png")
            Image.fromarray(disturb_mask(truth, kind, strength, np.random.default_rng(generator))).save(mask)
        rows.append(replace(row, path=str(path), mask=mask))
    return pg.evaluate(load(model).predict(pg.Table(rows)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), [("shift", 3), ("rotation", 2), ("noise", 1)])
def test_figures_are_those_of_disturbed_images_and_masks(
    small_dataset: Path, model: Path, judged: RobustnessResult, tmp_path: Path, kind: str, step: int
) -> None:
    found = [one for one in judged["disturbed"] if one["kind"] == kind][step]
    expected = literal(small_dataset, model, tmp_path, kind, DISTURBANCES[kind][step])
    values: dict[str, Any] = dict(found)
    for name in NUMBERS:
        assert values[name] == pytest.approx(expected[name], abs=1e-3), name
    assert values["aupro_05"] != pytest.approx(judged["undisturbed"]["aupro_05"], abs=2e-3)


@pytest.mark.slow
def test_undisturbed_is_the_plain_test(small_dataset: Path, model: Path, judged: RobustnessResult) -> None:
    plain = pg.evaluate(load(model).predict(pg.load_dataset(small_dataset).test))
    values: dict[str, Any] = dict(judged["undisturbed"])
    assert {name: values[name] for name in NUMBERS} == pytest.approx({name: plain[name] for name in NUMBERS}, abs=1e-3)
    assert (values["kind"], values["strength"], values["unit"]) == ("none", 0, "")


@pytest.mark.slow
def test_every_kind_and_strength_is_there(judged: RobustnessResult) -> None:
    expected = [(kind, strength, UNITS[kind]) for kind, strengths in DISTURBANCES.items() for strength in strengths]
    assert [(one["kind"], one["strength"], one["unit"]) for one in judged["disturbed"]] == expected
    assert (judged["n"], judged["seed"], judged["failed"]) == (8, 5, [])


def test_the_page_shows_plots_table_and_samples(judged: RobustnessResult) -> None:
    text = Path(judged["page"] or "").read_text()
    assert text.count('role="img"') == 5
    for i in range(len(DISTURBANCES)):  # each line once, and its sample in the legend in the same style
        assert text.count(f'<path class="line series{i}"') == 2 * 5
    assert text.count("data:image/jpeg;base64,") == len(DISTURBANCES) * 5  # as it is, and four strengths
    for one in (judged["undisturbed"], *judged["disturbed"]):
        cells = [f">{escape(METRICS[name].cell(one) or '')}</td>" for name in NUMBERS]
        assert all(cell in text for cell in cells)
    assert "://" not in text
    assert "Failed images" not in text


@pytest.mark.slow
def test_few_images_are_held_at_once(
    small_dataset: Path, model: Path, judged: RobustnessResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    alive: list[int] = []
    pixels: list[weakref.ref[Any]] = []
    plain = Detector.stream

    def stream(self: Detector, data: Any, **options: Any) -> Iterator[Any]:
        sizes.append(len(data))
        pixels.extend(weakref.ref(row.pixels) for row in data)
        alive.append(sum(image() is not None for image in pixels))
        return plain(self, data, **options)

    monkeypatch.setattr(Detector, "stream", stream)
    again = robustness(model, pg.load_dataset(small_dataset), seed=5)
    assert again == {**judged, "page": None}  # and without a page nothing else differs
    assert max(sizes) <= 8
    assert max(alive) <= 24  # a batch, the one before, and images decoded ahead
    assert sum(sizes) == 8 * (1 + sum(map(len, DISTURBANCES.values())))


@pytest.mark.usefixtures("few")
@pytest.mark.slow
def test_broken_images_are_named_and_the_rest_is_judged(small_dataset: Path, model: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(small_dataset, tmp_path / "copy"))
    broken = data / "test" / "good" / "00.png"
    broken.write_text("not an image")
    result = robustness(model, data, tmp_path / "r.html")
    assert [item["path"] for item in result["failed"]] == [str(broken)]
    assert result["undisturbed"]["false_alarm_rate"] is not None
    assert "Failed images: 1" in (tmp_path / "r.html").read_text()
    for path in (data / "test").rglob("*.png"):
        path.write_text("not an image")
    with pytest.raises(DataError, match=r"(?s)none of the test images can be judged.*00\.png"):
        robustness(model, data)


@pytest.mark.usefixtures("few")
@pytest.mark.slow
def test_without_masks_threshold_or_labels(small_dataset: Path, tmp_path: Path) -> None:
    dataset = pg.load_dataset(small_dataset)
    detector = pg.PatchCore(size=64, ratio=0.05).fit(dataset.train, calibrate=0)
    bare = [replace(row, mask=None) for row in dataset.test]
    result = robustness(detector, replace(dataset, table=pg.Table(bare)), tmp_path / "r.html")
    values: dict[str, Any] = dict(result["disturbed"][0])
    assert [values[name] is None for name in NUMBERS] == [False, True, True, True, True]
    text = (tmp_path / "r.html").read_text()
    assert "The model has no threshold" in text
    assert text.count('role="img"') == 1
    assert "no curve: needs ground truth masks" in text
    with pytest.raises(DataError, match="no test image is known to be good or defective"):
        robustness(detector, replace(dataset, table=pg.Table([replace(row, label=None) for row in bare])))
    with pytest.raises(InputError, match=r"ends in \.html"):
        robustness(detector, dataset, tmp_path / "r.txt")


@pytest.mark.usefixtures("few")
@pytest.mark.slow
def test_deep_images_are_disturbed_at_their_depth(
    small_dataset: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(small_dataset, tmp_path / "copy"))
    for path in (data / "test").rglob("*.png"):
        image = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16  # a 12-bit camera
        Image.fromarray(image).save(path)
    seen: set[Any] = set()
    plain = Detector.stream

    def stream(self: Detector, data: Any, **options: Any) -> Iterator[Any]:
        seen.update(row.pixels.dtype for row in data)
        return plain(self, data, **options)

    monkeypatch.setattr(Detector, "stream", stream)
    robustness(model, data, tmp_path / "r.html")
    assert seen == {np.dtype(np.uint16)}


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_the_command(
    small_dataset: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["pickglass", "test", str(model), str(small_dataset), "--robustness", str(tmp_path / "r.html")]
    for more in (["--json"], []):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        out = capsys.readouterr().out
        if more:
            found = json.loads(out)["robustness"]
            assert found["page"] == str(tmp_path / "r.html")
            assert len(found["disturbed"]) == 4
        else:
            assert "share of the shorter side" in out
            assert f"robustness: {tmp_path / 'r.html'}" in out
