"""What other tools take: data frames, COCO files, notebooks, figures, scikit-learn's signs, and trackers."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import pickglass as pg
from pickglass.app.judgements import IMAGES
from pickglass.data.annotations.coco import read
from pickglass.errors import DataError, Failure, InputError, MissingExtra
from pickglass.result import Found, Named, Prediction, record
from pickglass.testing import textures

BOTH = pg.Calibration("fixed", 0.5, 0.5)


def prediction() -> Prediction:
    """A good image, one with two defects of which the last in reading order is the higher, and a broken file."""
    good, bad = np.zeros((6, 9), np.float32), np.zeros((6, 9), np.float32)
    bad[0, 1:3], bad[1, 3], bad[4:6, 7:9] = 0.75, 0.75, 1.0
    pixels = textures(2, 32)
    found = (
        Found(pg.Row("<b>a.png", label=0, pixels=pixels[0]), 0.25, good, (6, 9)),
        Found(pg.Row("b.png", label=1, pixels=pixels[1]), 0.75, bad, (6, 9), named=Named("hole", 0.9)),
    )
    return Prediction(found, (Failure("c.png", "it is empty"),), BOTH)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_table_has_the_columns_of_results_csv() -> None:
    about = ("model_id", "model_version", "time")
    assert tuple(name for name in IMAGES if name not in about) == tuple(record(Failure("a", "b"), None))
    assert record(prediction().found[1], BOTH) == {
        "path": "b.png",
        "score": 0.75,
        "threshold": 0.5,
        "unsure_threshold": None,
        "verdict": "bad",
        "p_value": None,
        "type": "hole",
        "error": None,
    }


def test_a_prediction_as_a_data_frame() -> None:
    pytest.importorskip("pandas", reason='needs pandas (pip install "pickglass[pandas]")')
    frame = prediction().to_pandas()
    assert frame["path"].tolist() == ["<b>a.png", "b.png", "c.png"]
    assert frame["verdict"].tolist() == ["good", "bad", None]
    assert frame["error"].tolist() == [None, None, "it is empty"]
    assert frame["score"].dtype == np.float64
    assert np.isnan(frame["score"][2])
    assert list(Prediction(()).to_pandas()) == list(frame)


def test_metrics_as_a_data_frame() -> None:
    pytest.importorskip("pandas", reason='needs pandas (pip install "pickglass[pandas]")')
    found = Prediction.from_arrays([0.1, 0.2, 0.9, 0.15], labels=[0, 0, 1, 1], defects=[None, None, "cut", "hole"])
    frame = pg.evaluate(found).to_pandas()
    assert frame["defect"].tolist() == [None, "cut", "hole"]
    assert frame["n"].tolist() == [4, 3, 3]
    assert frame["image_auroc"].tolist() == [0.75, 1.0, 0.5]
    assert frame["aupro_30"].isna().all()
    wide = pg.evaluate(found, repeats=20).to_pandas()
    at = list(wide).index("image_auroc")
    assert list(wide)[at : at + 3] == ["image_auroc", "image_auroc_low", "image_auroc_high"]
    assert (wide["image_auroc_low"] <= wide["image_auroc"]).all()


def test_without_pandas_or_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("pandas", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    evaluation = pg.evaluate(Prediction.from_arrays([0.1, 0.9], labels=[0, 1]))
    for call in (prediction().to_pandas, evaluation.to_pandas):
        with pytest.raises(MissingExtra, match=r"pip install \"pickglass\[pandas\]\""):
            call()
    with pytest.raises(MissingExtra, match=r"pip install \"pickglass\[plot\]\""):
        evaluation.curves().plot(tmp_path / "a.svg")


# -- COCO --------------------------------------------------------------------------------------------------------------


def test_a_coco_file_reads_back_as_the_masks(tmp_path: Path) -> None:
    found = prediction()
    path = found.to_coco(tmp_path / "found.json")
    document = json.loads(path.read_text())
    assert [(image["file_name"], image["height"], image["width"]) for image in document["images"]] == [
        ("<b>a.png", 6, 9),
        ("b.png", 6, 9),
    ]
    assert document["info"]["failed"] == [{"path": "c.png", "error": "it is empty"}]
    assert [(a["bbox"], a["area"], a["score"]) for a in document["annotations"]] == [
        tuple(defect) for defect in found.defects(1)
    ]
    kinds = {category["id"]: category["name"] for category in document["categories"]}
    assert [kinds[a["category_id"]] for a in document["annotations"]] == ["hole", "defect"]
    annotations = read("found.json", path.read_bytes(), ())
    assert annotations["<b>a.png"].status == "good"
    for annotation, single in zip(document["annotations"], found.defects(1), strict=True):
        x, y, width, height = single.box
        mask = np.zeros((6, 9), bool)
        mask[y : y + height, x : x + width] = found.mask(1)[y : y + height, x : x + width]
        counts = annotation["segmentation"]["counts"]
        drawn = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(9, 6).T
        assert (drawn == mask).all()


def test_a_random_map_survives_the_way_through_coco(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((3, 23, 17), np.float32)
    maps[2] = 1  # all of it
    found = Prediction.from_arrays([0.1, 0.2, 0.3], maps)
    path = found.to_coco(tmp_path / "found.json", threshold=0.6)
    annotations = read("found.json", path.read_bytes(), ())
    for i, annotation in enumerate(annotations.values()):
        mask = np.zeros((23, 17), bool)
        for shape in annotation.shapes:
            shape.draw(mask)
        assert (mask == found.mask(i, 0.6)).all()


def test_a_coco_file_needs_a_threshold_and_a_fitting_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pixel threshold"):
        Prediction.from_arrays([0.1], [np.zeros((2, 2))]).to_coco(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"ends in \.json"):
        prediction().to_coco(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


# -- notebooks ---------------------------------------------------------------------------------------------------------


def test_an_image_shows_itself_and_its_map() -> None:
    picture = Image.open(io.BytesIO(prediction().found[1]._repr_png_()))
    assert picture.size == (18, 6)  # side by side
    pixels = np.asarray(picture)
    assert pixels[5, 17].tolist() != pixels[5, 8].tolist()
    wide = Found(pg.Row("a.png", pixels=textures(1, 32)[0]), 0.1, np.eye(4, dtype=np.float32), (10, 50))
    assert Image.open(io.BytesIO(wide._repr_png_())).size == (50, 20)  # one above the other
    (alone,) = Prediction.from_arrays([0.1], [np.eye(6)])
    assert Image.open(io.BytesIO(alone._repr_png_())).size == (6, 6)  # there is no image


def test_a_prediction_shows_itself_as_a_table() -> None:
    page = prediction()._repr_html_()
    assert "3 images: 1 bad, 1 good, 1 could not be read" in page
    assert "&lt;b&gt;a.png" in page
    assert "<b>" not in page
    assert len(re.findall(r'<img alt="" src="data:image/png;base64,[\w+/=]+">', page)) == 2
    many = Prediction.from_arrays(np.zeros(30))._repr_html_()
    assert many.count("<tr>") == 21
    assert "20 of them" in many
    assert "<p>0 images</p>" in Prediction(())._repr_html_()
    odd = Prediction.from_arrays([0.1], paths=["caf\udce9.png"])._repr_html_()
    assert "caf\\udce9.png" in odd.encode().decode()


# -- figures -----------------------------------------------------------------------------------------------------------


def test_curves_as_arrays_and_as_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='needs matplotlib (pip install "pickglass[plot]")')
    mask = np.eye(8) > 0
    found = Prediction.from_arrays([0.1, 0.9], [np.zeros((8, 8)), mask], [0, 1], [None, mask])
    curves = pg.evaluate(found).curves()
    assert curves.roc_tpr.tolist() == [0.0, 1.0, 1.0]
    assert curves.pro[-1] == 1
    begins = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    for kind, begin in begins.items():
        assert curves.plot(tmp_path / f"curves.{kind}").read_bytes().startswith(begin)
    with pytest.raises(InputError, match=r"ends in \.svg, \.pdf or \.png"):
        curves.plot(tmp_path / "curves.doc")
    with pytest.raises(InputError, match="no curve to draw: ROC needs good and bad"):
        pg.evaluate(Prediction.from_arrays([0.1], labels=[0])).curves().plot(tmp_path / "none.svg")
    assert len(list(tmp_path.iterdir())) == 3


# -- scikit-learn ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> pg.PatchCore:
    return pg.PatchCore(size=64, ratio=0.05).fit(textures(12, 64), engine="torch")


def test_scores_have_the_signs_of_scikit_learn(detector: pg.PatchCore, tmp_path: Path) -> None:
    images = textures(6, 64, seed=4).copy()
    images[3:, 20:40, 20:40] = 255
    labels = [0, 0, 0, 1, 1, 1]
    found = detector.predict(images, engine="torch")
    assert roc_auc_score(labels, found.scores) == pg.metrics.auroc(labels, found.scores)
    assert average_precision_score(labels, found.scores) == pytest.approx(
        pg.metrics.average_precision(labels, found.scores)
    )
    normal = detector.score_samples(images, engine="torch")
    assert normal.dtype == np.float64
    assert (normal == -found.scores.astype(np.float64)).all()
    limit = float(np.sort(found.scores)[3])  # the least of the bad ones stands exactly on it
    before = detector.calibration
    try:
        detector.set_thresholds(image=limit)
        decisions = detector.decision_function(images, engine="torch")
        verdicts = detector.predict(images, engine="torch")
        assert [verdicts.verdict(i) == "bad" for i in range(6)] == (decisions < 0).tolist()
        assert (decisions == 0).sum() == 1
        detector.calibration = None
        with pytest.raises(InputError, match="the model has no threshold"):
            detector.decision_function(images, engine="torch")
    finally:
        detector.calibration = before


def test_an_image_that_cannot_be_read_has_no_score(detector: pg.PatchCore, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    for call in (detector.score_samples, detector.decision_function):
        with pytest.raises(DataError, match="1 images cannot be read: use predict") as failed:
            call([textures(1, 64)[0], tmp_path / "b.png"], engine="torch")
        assert len(failed.value.failures) == 1


def test_exported_models_have_them_too() -> None:
    for name in ("score_samples", "decision_function"):
        assert getattr(pg.ExportedModel, name) is getattr(pg.Detector, name)


# -- the page of the documentation -------------------------------------------------------------------------------------


PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "tracking.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
TRACKERS = {"mlflow": "import mlflow", "tensorboard": "from torch.utils.tensorboard", "wandb": "import wandb"}


def run(blocks: list[str], space: dict[str, Any]) -> None:
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a data set, and what a notebook holds after the first block."""
    folder = tmp_path_factory.mktemp("tracking")
    images = textures(16, 64).copy()
    images[14:, 20:40, 20:40] = 255
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    places = ["train/good"] * 12 + ["test/good"] * 2 + ["test/cut"] * 2
    for i, (place, image) in enumerate(zip(places, images, strict=True)):
        (folder / "datasets" / "bottle" / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "datasets" / "bottle" / place / f"{i:03d}.png")
    truth = folder / "datasets" / "bottle" / "ground_truth" / "cut"
    truth.mkdir(parents=True)
    for i in (14, 15):
        Image.fromarray(mask).save(truth / f"{i:03d}_mask.png")
    space: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(BLOCKS[:1], space)
        space["metrics"] = pg.evaluate(space["found"])
    for bar in space["bars"].values():
        bar.close()
    return folder, space


@pytest.mark.slow
def test_progress_bars_reach_their_end(notebook: tuple[Path, dict[str, Any]]) -> None:
    bars = notebook[1]["bars"]
    assert {"judging images"} < set(bars)
    assert all(bar.n == bar.total for bar in bars.values())


@pytest.mark.slow
def test_the_page_runs(
    notebook: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, extra in (("pandas", "pandas"), ("matplotlib", "plot")):
        pytest.importorskip(module, reason=f'needs {module} (pip install "pickglass[{extra}]")')
    folder, space = notebook
    monkeypatch.chdir(folder)
    run([block for block in BLOCKS[1:] if not block.startswith(tuple(TRACKERS.values()))], space)
    assert capsys.readouterr().out.splitlines()[-1] == "1.0"  # the AUROC
    assert (folder / "bottle.pdf").is_file()
    assert (folder / "found.json").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the trackers
@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_examples_for_trackers_run(
    tracker: str, notebook: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(tracker, reason=f"the example for {tracker} needs it; no extra of pickglass brings it")
    folder, space = notebook
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (folder / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    space = dict(space)
    if tracker == "mlflow":  # with losses to show
        fitted = pg.EfficientAD(backbone="pdn_tiny", size=64, steps=3).fit(textures(12, 64), engine="torch")
        space["detector"] = fitted
    (block,) = (block for block in BLOCKS if block.startswith(TRACKERS[tracker]))
    run([block], space)
    if tracker == "mlflow":
        from mlflow.tracking import MlflowClient

        (kept,) = MlflowClient().search_runs(["0"])
        assert kept.data.params["steps"] == "3"
        assert kept.data.metrics["image_auroc"] == space["metrics"]["image_auroc"]
        assert kept.data.metrics["loss student and autoencoder"] > 0
        assert [file.path for file in MlflowClient().list_artifacts(kept.info.run_id)] == ["bottle.safetensors"]
    else:
        assert list((folder / {"tensorboard": "runs/bottle", "wandb": "wandb"}[tracker]).iterdir())
