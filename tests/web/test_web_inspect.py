"""Images come in, verdicts go out: what is answered, what is refused, and what happens under load."""

from __future__ import annotations

import base64
import io
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from serving import Settings, client_of

import pickglass as pg
from pickglass.app.predict import predict
from pickglass.errors import InputError
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.exported import ExportedModel
from pickglass.web.judging import Line
from pickglass.web.metrics import Metrics

PNG = {"content-type": "image/png"}


@pytest.fixture(scope="session")
def image(small_dataset: Path) -> Path:
    return sorted((small_dataset / "test").glob("*/*.png"))[0]


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def test_an_image_is_judged_as_predict_does(shared: TestClient, exported_model: Path, image: Path) -> None:
    (expected,) = predict(exported_model, [image])["results"]
    asked = {"params": {"name": "part.png"}, "content": image.read_bytes(), "headers": {"content-type": "image/png"}}
    got = shared.post("/inspect", **asked).json()
    model = pg.load(exported_model)
    assert (got["name"], got["path"], got["model"], got["map"]) == ("part.png", "part.png", "tile", None)
    assert (got["model_id"], got["model_version"]) == (model.model_id(), model.model_version)
    assert got["score"] == pytest.approx(expected["score"], rel=1e-4)
    assert got["verdict"] == expected["verdict"]
    assert [defect["box"] for defect in got["defects"]] == [defect["box"] for defect in expected["defects"]]
    form = shared.post("/inspect", files={"image": ("C:\\parts\\part.png", image.read_bytes(), "image/png")}).json()
    assert {**form, "time": got["time"], "score": got["score"]} == {**got, "score": got["score"]}


def test_the_map_is_a_picture(shared: TestClient, exported_model: Path, image: Path) -> None:
    found = pg.load(exported_model).predict(image)
    got = shared.post(
        "/inspect", params={"map": "png"}, content=image.read_bytes(), headers={"content-type": "image/png"}
    ).json()
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(got["map"]["png"]))))
    assert [*picture.shape] == got["size"] == [*found.sizes[0]]
    low, high, limit = got["map"]["low"], got["map"]["high"], got["map"]["threshold"]
    expected = np.clip((found.map(0) - low) / (high - low), 0, 1) * 255
    assert np.abs(picture - expected).max() <= 0.51
    assert low + limit / 255 * (high - low) == pytest.approx(got["pixel_threshold"])


def test_models_are_described(shared: TestClient, exported_model: Path) -> None:
    (about,) = shared.get("/models").json()
    model = pg.load(exported_model)
    assert about["id"] == model.model_id()
    assert about["threshold"] == model.calibration.image_threshold
    assert about["promise"] == model.calibration.sentence
    assert sum(about["calibration"]["counts"]) == len(model.calibration.scores)
    assert about["certificate"] is True


def test_pictures_of_deep_images(shared: TestClient) -> None:
    deep = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    answer = shared.post("/api/picture", content=encoded(deep, "TIFF"), headers={"content-type": "image/tiff"})
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert shown.dtype == np.uint8
    assert shown.shape == (48, 64, 3)
    assert shown.max() == 255


# -- what is refused ---------------------------------------------------------------------------------------------------


def bomb(height: int, width: int) -> bytes:
    """A PNG of a few bytes that says it has many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10_000))
        + chunk(b"IEND", b"")
    )


SOUND = encoded(np.zeros((16, 16, 3), np.uint8))
GIF = encoded(np.zeros((16, 16), np.uint8), "GIF")
FORM = {"content-type": "multipart/form-data; boundary=x"}
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no body": ({"headers": PNG}, 400, "no bytes"),
    "no type": ({"content": SOUND}, 415, "expected an image"),
    "another type": ({"content": b"{}", "headers": {"content-type": "application/json"}}, 415, "expected an image"),
    "a type of nonsense": ({"content": SOUND, "headers": {"content-type": b"\xff; ;="}}, 415, "expected an image"),
    "an SVG": ({"content": b"<svg/>", "headers": {"content-type": "image/svg+xml"}}, 415, "expected an image"),
    "a GIF": ({"content": GIF, "headers": PNG}, 400, "GIF"),
    "no image": ({"content": b"MZ" + bytes(500), "headers": PNG}, 400, "image"),
    "half an image": ({"content": encoded(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))[:2000],
                       "headers": PNG}, 400, "image"),
    "a bomb": ({"content": bomb(60_000, 60_000), "headers": PNG}, 400, "3,600,000,000 pixels"),
    "too long": ({"content": bytes(2**20 + 1), "headers": PNG}, 413, "longer than 1 MB"),
    "too long, in parts": ({"content": iter([bytes(2**19)] * 3), "headers": PNG}, 413, "longer than 1 MB"),
    "a form without image": ({"files": {"picture": ("a.png", SOUND)}}, 400, "named 'image'"),
    "a form of two": ({"files": [("image", ("a.png", SOUND)), ("image", ("b.png", SOUND))]}, 400, "one file"),
    "a form of fields": ({"data": {"image": "text"}, "files": {"x": b""}}, 400, "named 'image'"),
    "a form of fields, many": ({"data": {f"a{n}": "b" for n in range(99)}, "files": {"image": SOUND}}, 400, "than 16"),
    "a form cut short": ({"content": b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc',
                          "headers": FORM}, 400, "image"),
    "a form that is none": ({"content": SOUND, "headers": FORM}, 400, "form cannot be read"),
    "a form without a boundary": ({"content": SOUND, "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
    "no such model": ({"params": {"model": "../../etc"}, "content": SOUND, "headers": PNG}, 404, "unknown model"),
    "no such map": ({"params": {"map": "jpg"}, "content": SOUND, "headers": PNG}, 422, "map"),
    "a name too long": ({"params": {"name": "x" * 999}, "content": SOUND, "headers": PNG}, 422, "name"),
}  # fmt: skip


ASKED = [("/inspect", case) for case in BAD] + [
    ("/api/picture", case) for case in BAD if case not in ("no such model", "no such map")
]


@pytest.mark.parametrize(("path", "case"), ASKED)
def test_bad_requests_get_a_sentence(shared: TestClient, exported_model: Path, path: str, case: str) -> None:
    asked, status, reason = BAD[case]
    if case == "too long, in parts":
        asked = {**asked, "content": iter([bytes(2**19)] * 3)}  # an iterator is read once
    answer = shared.post(path, **asked)
    said = answer.json()["error"]
    assert (answer.status_code, reason in said) == (status, True), said
    assert len(said) < 500
    assert "\n" not in said
    assert str(exported_model.parent) not in said


def test_names_are_shown_as_names(shared: TestClient) -> None:
    for sent, shown in (("../../etc/a.png", "a.png"), ("a\nb\x1b[2J.png", "ab[2J.png"), ("..\\", "image")):
        got = shared.post("/inspect", params={"name": sent}, content=SOUND, headers=PNG).json()
        assert got["name"] == got["path"] == shown


# -- the line ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """Models judge only once the event is set; the list gets the size of each batch."""
    go, sizes = threading.Event(), []
    judge = ExportedModel.stream

    def waiting(self: ExportedModel, data: Any, **options: Any) -> Any:
        if len(data) and data[0].path.startswith("image:"):
            sizes.append(len(data))
            assert go.wait(20)
        return judge(self, data, **options)

    monkeypatch.setattr(ExportedModel, "stream", waiting)
    yield go, sizes
    go.set()


def post(client: TestClient) -> Any:
    return client.post("/inspect", content=SOUND, headers=PNG)


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_line_says_when_to_come_again(settings: Settings, held: tuple[threading.Event, list[int]]) -> None:
    go, sizes = held
    with client_of(settings(max_requests=6)) as client, ThreadPoolExecutor(6) as pool:
        state = client.app.app.state.pickglass  # type: ignore[attr-defined]
        answers = []
        for n in range(6):
            answers.append(pool.submit(post, client))
            until(lambda n=n: state.line.waiting == n + 1 and len(sizes) == min(n + 1, 2))
        refused = post(client)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        go.set()
        assert [answer.result().status_code for answer in answers] == [200] * 6
        assert sum(sizes) == 6
        assert max(sizes) > 1, "what gathered was not judged together"
        assert post(client).status_code == 200
        text = client.get("/metrics").text
        assert "pickglass_refused_total 1.0" in text
        assert "pickglass_waiting 0.0" in text
        assert 'pickglass_requests_total{method="POST",route="/inspect",status="503"} 1.0' in text


def test_a_line_holds_no_more_than_some_bytes() -> None:
    line = Line(9, 10, ComputeOptions(), Metrics())
    with line.place() as first:
        first.grow(100)
        with line.place() as second:
            second.grow(60)
            with pytest.raises(HTTPException) as refused:
                first.grow(1)
            assert refused.value.status_code == 503
        first.grow(60)
    line.close()
    with pytest.raises(HTTPException), line.place():
        pass


def test_an_image_at_which_the_model_breaks_leaves_the_others_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = ExportedModel.stream

    def breaking(self: ExportedModel, data: Any, **options: Any) -> Any:
        if any(isinstance(row.pixels, bytes) and b"poison" in row.pixels for row in data):
            raise RuntimeError("secret of /srv/models")
        return judge(self, data, **options)

    monkeypatch.setattr(ExportedModel, "stream", breaking)
    poisoned = SOUND + b"poison"
    with client_of(settings()) as client, ThreadPoolExecutor(8) as pool:
        sent = [poisoned if n % 4 == 0 else SOUND for n in range(16)]
        answers = list(pool.map(lambda content: client.post("/inspect", content=content, headers=PNG), sent))
        assert [answer.status_code for answer in answers] == [500 if n % 4 == 0 else 200 for n in range(16)]
        assert "secret" not in answers[0].text
        assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.slow
def test_a_model_is_replaced_without_a_lost_request(settings: Settings) -> None:
    chosen = settings()
    path = chosen.models[0]
    with client_of(chosen) as client:
        versions: list[int] = []
        end = time.monotonic() + 30

        def ask() -> None:
            while 2 not in versions and time.monotonic() < end:
                answer = post(client)
                assert answer.status_code == 200, answer.text
                versions.append(answer.json()["model_version"])

        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(ask) for _ in range(2)]
            model = ExportedModel(path)
            model.set_thresholds(image=123.0)
            model.save(path)
            for one in asking:
                one.result()
        assert set(versions) == {1, 2} or set(versions) == {2}  # in no order: an answer of the old one may come last
        assert post(client).json()["model_version"] == 2
        assert client.get("/models").json()[0]["threshold"] == 123.0

        path.write_bytes(b"no model")
        until(lambda: client.get("/models").json()[0]["error"] is not None)
        (about,) = client.get("/models").json()
        assert about["version"] == 2
        assert str(path.parent) not in about["error"]
        assert post(client).status_code == 200


# -- the watched folder ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_images_that_arrive_are_judged(settings: Settings, tmp_path: Path, image: Path) -> None:
    folder = tmp_path / "line"
    folder.mkdir()
    (folder / "before.png").write_bytes(SOUND)
    with client_of(settings(watch=folder)) as client:
        assert client.get("/api/watch").json() == {"last": 0, "dropped": 0, "images": [], "error": None}
        (folder / "notes.txt").write_text("no image")
        (folder / "part.png").write_bytes(image.read_bytes())
        until(lambda: client.get("/api/watch").json()["last"] == 1)
        (arrived,) = client.get("/api/watch").json()["images"]
        assert (arrived["name"], arrived["error"]) == ("part.png", None)
        assert arrived["thumbnail"].startswith("data:image/jpeg;base64,")
        whole = client.get("/api/watch/1").json()
        assert whole["map"]["png"]
        assert {**whole, "map": None, "time": ""} == {**arrived["result"], "time": ""}
        shown = client.get("/api/watch/1/image")
        assert list(Image.open(io.BytesIO(shown.content)).size[::-1]) == whole["size"]
        assert client.get("/api/watch?after=1").json()["images"] == []
        odd = os.fsencode(folder) + b"/\xff.png"  # no text in UTF-8
        try:
            Path(os.fsdecode(odd)).write_bytes(SOUND)
        except OSError:  # this file system takes no such name
            Path(os.fsdecode(odd.replace(b"\xff", b""))).write_bytes(SOUND)
        until(lambda: client.get("/api/watch").json()["last"] == 2)
        assert client.get("/api/watch?after=1").json()["images"][0]["name"] == ".png"
        (folder / "part.png").unlink()
        assert client.get("/api/watch/1/image").status_code == 404
        assert client.get("/api/watch/7").status_code == 404


def test_no_folder_is_watched(shared: TestClient, settings: Settings, tmp_path: Path) -> None:
    answer = shared.get("/api/watch")
    assert (answer.status_code, "--watch" in answer.json()["error"]) == (404, True)
    with pytest.raises(InputError, match="no such file or folder"):
        client_of(settings(watch=tmp_path / "nowhere")).__enter__()
