"""Images come in, verdicts go out: what is answered, what is refused, and what happens under load."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import pickglass as pg
from pickglass.app.predict import predict


@pytest.fixture(scope="session")
def image(small_dataset: Path) -> Path:
    return sorted((small_dataset / "test").glob("*/*.png"))[0]


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def test_an_image_is_judged_as_predict_does(client: TestClient, exported_model: Path, image: Path) -> None:
    (expected,) = predict(exported_model, [image])["results"]
    asked = {"params": {"name": "part.png"}, "content": image.read_bytes(), "headers": {"content-type": "image/png"}}
    got = client.post("/inspect", **asked).json()
    model = pg.load(exported_model)
    assert (got["name"], got["path"], got["model"], got["map"]) == ("part.png", "part.png", "tile", None)
    assert (got["model_id"], got["model_version"]) == (model.model_id(), model.model_version)
    assert got["score"] == pytest.approx(expected["score"], rel=1e-4)
    assert got["verdict"] == expected["verdict"]
    assert [defect["box"] for defect in got["defects"]] == [defect["box"] for defect in expected["defects"]]
    form = client.post("/inspect", files={"image": ("C:\\parts\\part.png", image.read_bytes(), "image/png")}).json()
    assert {**form, "time": got["time"], "score": got["score"]} == {**got, "score": got["score"]}


def test_the_map_is_a_picture(client: TestClient, exported_model: Path, image: Path) -> None:
    found = pg.load(exported_model).predict(image)
    got = client.post(
        "/inspect", params={"map": "png"}, content=image.read_bytes(), headers={"content-type": "image/png"}
    ).json()
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(got["map"]["png"]))))
    assert [*picture.shape] == got["size"] == [*found.sizes[0]]
    low, high, limit = got["map"]["low"], got["map"]["high"], got["map"]["threshold"]
    expected = np.clip((found.map(0) - low) / (high - low), 0, 1) * 255
    assert np.abs(picture - expected).max() <= 0.51
    assert low + limit / 255 * (high - low) == pytest.approx(got["pixel_threshold"])


def test_models_are_described(client: TestClient, exported_model: Path) -> None:
    (about,) = client.get("/models").json()
    model = pg.load(exported_model)
    assert about["id"] == model.model_id()
    assert about["threshold"] == model.calibration.image_threshold
    assert about["promise"] == model.calibration.sentence
    assert sum(about["calibration"]["counts"]) == len(model.calibration.scores)
    assert about["certificate"] is True


def test_pictures_of_deep_images(client: TestClient) -> None:
    deep = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    answer = client.post("/api/picture", content=encoded(deep, "TIFF"), headers={"content-type": "image/tiff"})
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert shown.dtype == np.uint8
    assert shown.shape == (48, 64, 3)
    assert shown.max() == 255
