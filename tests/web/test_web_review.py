"""The review page: scores that come in the background, thresholds, promises, reports, and the page in a browser."""

from __future__ import annotations

import io
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect
from serving import Settings, client_of, live

import pickglass as pg
from pickglass.app.review.review import Review
from pickglass.app.review.store import Judged, JudgedStore, SmallMap, small_map
from pickglass.app.watch.model import LoadedModel
from pickglass.data.tables.sources import DataSource
from pickglass.errors import InputError
from pickglass.metrics import image_summary, rates_at
from pickglass.runtime.export_file import read_export_header


def reviewed(client: TestClient, **query: Any) -> dict[str, Any]:
    """Ask for the scores until all images are judged."""
    for _ in range(600):
        answer = client.get("/api/review/scores", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        if found["stage"] in ("done", "failed"):
            return found
        time.sleep(0.05)
    raise AssertionError(found["stage"])


@pytest.fixture
def data(small_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the small data set, to change it."""
    return Path(shutil.copytree(small_dataset, tmp_path / "copy" / "tile"))


@pytest.fixture
def own(settings: Settings) -> Iterator[TestClient]:
    """A client of a server of its own, whose data set is judged."""
    with client_of(settings()) as made:
        reviewed(made)
        yield made


# -- scores and pictures -----------------------------------------------------------------------------------------------


def test_images_are_judged_in_the_background(own: TestClient, exported_model: Path, small_dataset: Path) -> None:
    found, images = reviewed(own), own.get("/api/review/images").json()
    assert (found["stage"], found["done"], found["total"], found["key"]) == ("done", 24, 24, images["key"])
    scores = dict(zip(found["images"], found["scores"], strict=True))
    expected = pg.load(exported_model).predict([small_dataset / name for name in images["names"]])
    assert [scores[i] for i in range(24)] == pytest.approx(expected.scores.tolist(), rel=1e-4)
    assert images["labels"] == [int("/good/" not in name) for name in images["names"]]
    assert [kind or "good" for kind in images["types"]] == [name.split("/")[1] for name in images["names"]]
    # the training images taught the model, so they do not judge it
    assert sorted(images["names"][i].split("/")[0] for i in found["outside"]) == ["train"] * 16
    assert "16 images do not count" in found["left_out"][0]
    assert own.get("/api/review/scores", params={"after": 24}).json()["images"] == []


def test_what_was_judged_is_there_after_a_restart(
    settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(data=DataSource(data))
    with client_of(chosen) as client:
        before = reviewed(client)
    judged: list[str] = []
    stream = pg.ExportedModel.stream

    def watched(model: Any, rows: Any, **compute: Any) -> Any:
        judged.extend(Path(row.path).name for row in rows)
        return stream(model, rows, **compute)

    monkeypatch.setattr(pg.ExportedModel, "stream", watched)
    changed, moved = sorted(data.glob("test/good/*.png"))[:2]
    Image.fromarray(np.full((80, 96, 3), 90, np.uint8)).save(changed)
    moved.rename(moved.with_name("moved.png"))
    with client_of(chosen) as client:
        judged.clear()  # models judge a black image when they are loaded
        after = reviewed(client)
    assert judged == [changed.name]  # the other one is the same image under another name
    assert after["done"] == before["done"] == 24


def test_a_broken_image_leaves_the_others_alone(settings: Settings, data: Path) -> None:
    broken = next(data.glob("test/hole/*.png"))
    broken.write_bytes(b"no image")
    with client_of(settings(data=DataSource(data))) as client:
        found = reviewed(client)
        names = client.get("/api/review/images").json()["names"]
        place = names.index(f"test/hole/{broken.name}")
        assert found["stage"] == "done"
        assert list(found["errors"]) == [str(place)]
        assert found["scores"][found["images"].index(place)] is None
        for part in ("thumbnail", "picture", "judged"):
            answer = client.get(f"/api/review/images/{place}/{part}")
            assert answer.status_code == 400
            assert str(data.parent) not in answer.text
        # "read again": the file is mended
        Image.fromarray(np.full((80, 96, 3), 90, np.uint8)).save(broken)
        assert client.post("/api/review/reload").status_code == 200
        again = reviewed(client)
        assert (again["errors"], again["done"], again["key"] != found["key"]) == ({}, 24, True)


def test_a_data_set_that_cannot_be_read(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with client_of(settings(data=DataSource(tmp_path / "empty"))) as client:
        found = reviewed(client)
        assert (found["stage"], found["key"]) == ("failed", None)
        assert "empty" in found["error"]
        assert str(tmp_path) not in found["error"]
        assert client.get("/api/review/images").status_code == 400
    with client_of(settings(data=None)) as client:
        assert "--data" in client.get("/api/review/scores").json()["error"]
        assert client.get("/review").status_code == 200


def test_pictures(own: TestClient, small_dataset: Path) -> None:
    names = own.get("/api/review/images").json()["names"]
    place = next(i for i, name in enumerate(names) if "/hole/" in name)
    plain, again, hot = (
        own.get(f"/api/review/images/{place}/thumbnail", params=query) for query in ({}, {"key": "x"}, {"heat": "tile"})
    )
    assert plain.content == again.content != hot.content
    assert (plain.headers["cache-control"], "immutable" in again.headers["cache-control"]) == ("no-cache", True)
    shapes = [np.asarray(Image.open(io.BytesIO(answer.content))).shape for answer in (plain, hot)]
    assert shapes == [(80, 96, 3)] * 2
    assert own.get(f"/api/review/images/{place}/picture").content == (small_dataset / names[place]).read_bytes()
    judged = own.get(f"/api/review/images/{place}/judged").json()
    assert (judged["name"], judged["verdict"], judged["size"]) == (names[place], "bad", [80, 96])
    assert judged["map"]["png"]
    for part in ("thumbnail", "picture", "judged"):
        assert own.get(f"/api/review/images/999/{part}").status_code == 404


def test_thumbnails_are_bounded(tmp_path: Path) -> None:
    store = JudgedStore(tmp_path / "judged.sqlite", thumbnails=10_000)
    for i in range(30):
        store.keep_thumbnail(f"image {i}", bytes(1000))
    kept = [i for i in range(30) if store.thumbnail(f"image {i}") is not None]
    assert 8 <= len(kept) <= 10
    assert kept == list(range(30 - len(kept), 30))
    store.close()


def test_scores_of_old_models_are_forgotten(tmp_path: Path) -> None:
    store = JudgedStore(tmp_path / "judged.sqlite")
    for i in range(12):
        store.begin(f"model {i}")
        store.keep(f"model {i}", {"image": Judged(float(i), 1.0, SmallMap(np.zeros((2, 2), np.uint8), 0.0, 1.0))})
    assert [i for i in range(12) if store.scores(f"model {i}")] == list(range(4, 12))
    store.close()


def test_a_file_of_another_version_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "judged.sqlite"
    store = JudgedStore(path)
    store.keep_thumbnail("image", b"jpeg")
    store._connection.execute("PRAGMA user_version = 99")
    store.close()
    store = JudgedStore(path)
    assert store.thumbnail("image") is None
    store.close()
    path.write_bytes(b"no database at all, but long enough for SQLite to say so" * 20)
    with pytest.raises(InputError, match="delete that file"):
        JudgedStore(path)


def test_small_maps_keep_the_peak(exported_model: Path, small_dataset: Path) -> None:
    (found,) = pg.load(exported_model).predict(next(small_dataset.glob("test/hole/*.png")))
    small = small_map(found)
    assert max(small.cells.shape) == 64
    assert small.values().max() == pytest.approx(found.full_map().max(), rel=0.02)


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_thresholds_are_written_into_the_file(own: TestClient, settings: Settings) -> None:
    file = settings().models[0]
    before = read_export_header(file)
    by_hand = {"threshold": 7.5, "unsure_threshold": 6.5}
    answer = own.post("/api/review/thresholds", json={"version": 1, "by_hand": by_hand, "user": "Ann"}).json()
    assert (answer["threshold"], answer["unsure_threshold"], answer["version"]) == (7.5, 6.5, 2)
    header = read_export_header(file)
    assert header["calibration"]["image_threshold"] == 7.5
    change = header["history"][-1]
    assert (change["command"], change["promise"], change["unsure_threshold"]) == ("threshold", "fixed", 6.5)
    assert change["image_threshold_before"] == before["calibration"]["image_threshold"]
    assert own.get("/models").json()[0]["version"] == 2  # judges with them from now on
    # no image is unsure any more
    none = own.post("/api/review/thresholds", json={"version": 2, "by_hand": {"threshold": 7.5}}).json()
    assert (none["threshold"], none["unsure_threshold"], none["version"]) == (7.5, None, 3)
    assert "unsure" not in none["sentence"]
    newest, first = own.get("/api/audit").json()["entries"]
    assert [entry["what"] for entry in (newest, first)] == ["thresholds"] * 2
    assert (first["user"], first["before"]["version"], first["after"]["version"]) == ("Ann", 1, 2)
    assert (newest["before"]["unsure_threshold"], newest["after"]["unsure_threshold"]) == (6.5, None)


def test_two_people_do_not_overwrite_each_other(own: TestClient, settings: Settings) -> None:
    first = own.post("/api/review/thresholds", json={"version": 1, "by_hand": {"threshold": 7.5}})
    second = own.post("/api/review/thresholds", json={"version": 1, "by_hand": {"threshold": 9.0}})
    assert (first.status_code, second.status_code) == (200, 409)
    assert "version 2" in second.json()["error"]
    assert read_export_header(settings().models[0])["calibration"]["image_threshold"] == 7.5


WRONG: list[dict[str, Any]] = [
    {"version": 1},
    {"version": 1, "by_hand": {"threshold": 5.0}, "promise": {}},
    {"version": 1, "by_hand": {"threshold": 5.0, "unsure_threshold": 6.0}},
    {"version": 1, "by_hand": {"threshold": "NaN"}},
    {"version": 1, "by_hand": {"threshold": None}},
    {"version": 0, "by_hand": {"threshold": 5.0}},
    {"version": 1, "promise": {"false_alarm": 0}},
    {"version": 1, "promise": {"false_alarm": 0.5, "unsure": 0.6}},
    {"version": 1, "promise": {"promise": "surely"}},
    {"version": 1, "by_hand": {"threshold": 5.0}, "file": "/etc/passwd"},
]


def test_thresholds_that_make_no_sense(own: TestClient, settings: Settings) -> None:
    for wrong in WRONG:
        assert own.post("/api/review/thresholds", json=wrong).status_code in (400, 422), wrong
    assert read_export_header(settings().models[0])["version"] == 1


def test_a_promise_in_words(own: TestClient, settings: Settings) -> None:
    asked = {"promise": "estimate", "false_alarm": 0.1}
    found = own.post("/api/review/promise", json=asked).json()
    assert found["reachable"]
    assert re.match(r"about [\d.]+ % of good parts will be flagged", found["sentence"])
    assert read_export_header(settings().models[0])["version"] == 1  # nothing was written
    saved = own.post("/api/review/thresholds", json={"version": 1, "promise": asked}).json()
    assert (saved["threshold"], saved["sentence"]) == (found["threshold"], found["sentence"])
    # the images taught the model, so there is no promise with a confidence
    asked = {"false_alarm": 0.1}
    none = own.post("/api/review/promise", json=asked).json()
    assert (none["reachable"], none["threshold"], none["have"]) == (False, None, 0)
    assert "--" not in none["sentence"]  # the page has no command line
    assert own.post("/api/review/thresholds", json={"version": 2, "promise": asked}).status_code == 400


def test_a_promise_from_images_of_the_data_set(settings: Settings, data: Path, lab_model: Path, tmp_path: Path) -> None:
    """Good images that the model has not learned are judged already, and set the threshold as on the command line."""
    for i, path in enumerate(sorted(data.glob("train/good/*.png"))):
        pixels = np.asarray(Image.open(path)).astype(int) + (i % 3) - 1
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
            path
        )  # two of three are others than those of the fit
    next(data.glob("train/good/*.png")).unlink()
    with client_of(settings(data=DataSource(data))) as client:
        reviewed(client)
        few = client.post("/api/review/promise", json={"false_alarm": 0.01}).json()
        assert (few["reachable"], few["needed"], few["have"]) == (False, 299, 10)
        assert f"These 10 can promise {100 * few['possible']:.3g} %" in few["sentence"]
        found = client.post("/api/review/promise", json={"false_alarm": few["possible"]}).json()
    path = Path(shutil.copy(lab_model, tmp_path / "cli.safetensors"))
    from pickglass.app.threshold import ThresholdRequest, threshold

    expected = threshold(path, data, ThresholdRequest(false_alarm=few["possible"]))
    assert found["sentence"] == expected["sentence"]
    assert found["threshold"] == pytest.approx(expected["image_threshold"], rel=1e-4)


# -- reports -----------------------------------------------------------------------------------------------------------


def test_a_report_of_some_images(own: TestClient, small_dataset: Path) -> None:
    images = own.get("/api/review/images").json()
    chosen = [i for i, name in enumerate(images["names"]) if name.startswith("test/")]
    asked = {"key": images["key"], "images": chosen}
    report = own.post("/api/review/reports", json=asked).json()
    for _ in range(600):
        if report["ready"] or report["error"]:
            break
        time.sleep(0.05)
        report = own.get(f"/api/review/reports/{report['key']}").json()
    assert (report["ready"], report["name"]) == (True, "tile-report.html")
    answer = own.get(f"/api/review/reports/{report['key']}/file")
    assert answer.headers["content-disposition"] == 'attachment; filename="tile-report.html"'
    assert all(images["names"][i] in answer.text for i in chosen)
    assert str(small_dataset.parent) not in answer.text
    assert own.post("/api/review/reports", json={**asked, "key": "old"}).status_code == 409
    assert own.post("/api/review/reports", json={**asked, "images": []}).status_code == 422
    assert own.post("/api/review/reports", json={**asked, "images": [999]}).status_code == 404
    assert own.get("/api/review/reports/../../models/file").status_code == 404


def test_a_review_ends(exported_model: Path, data: Path, tmp_path: Path) -> None:
    detector = pg.load(exported_model)
    model = LoadedModel(detector, detector.calibration, detector.model_id(), detector.model_version)
    review = Review(DataSource(data), JudgedStore(tmp_path / "judged.sqlite"))
    for _ in range(600):
        _, published = review.ask(model)
        if published is not None and published.order:
            break
        time.sleep(0.02)
    review.close()  # in the middle of its work, or after it
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pickglass-review")]


# -- in a browser ------------------------------------------------------------------------------------------------------


def counts(page: Page) -> list[int]:
    return [int(text) for text in page.locator("#matrix button").all_inner_texts()]


FIGURES = """async ({scores, truths, bad, unsure, limits}) => {
  const {auroc, confusion, nearest, ratesOf, sortedBy} = await import("/static/review_figures.js");
  const columns = {scores: Float64Array.from(scores, score => score ?? NaN), truths: Int8Array.from(truths)};
  const counts = new Uint8Array(scores.length).fill(1);
  const rising = sortedBy(columns.scores);
  return {
    rates: ratesOf(confusion(columns, {bad, unsure}, counts)),
    auroc: auroc(columns, counts),
    nearest: limits.map(each => [...nearest(columns.scores, rising, each)]),
  };
}"""


@pytest.mark.slow
def test_figures_are_those_of_the_metrics(settings: Settings, page: Page) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    scores = np.round(rng.normal(10 + 2 * labels, 2), 1)  # with ties
    bad, unsure = 11.3, 10.0
    shown: list[float | None] = [*scores.tolist(), None, None]  # two images cannot be read
    limits = [[bad], [unsure, bad], [-9.0, bad], [unsure, 99.0]]
    asked = {"scores": shown, "truths": [*labels.tolist(), 1, -1], "bad": bad, "unsure": unsure, "limits": limits}
    with live(settings(data=None)) as address:
        page.goto(address + "/review")
        found = page.evaluate(FIGURES, asked)
    expected = rates_at(labels, scores, bad, unsure)
    rates = found["rates"]
    assert rates["alarms"] / rates["good"] == pytest.approx(expected.false_alarm_rate)
    assert rates["missed"] / rates["bad"] == pytest.approx(expected.miss_rate)
    assert rates["all"] == 400
    assert found["auroc"] == pytest.approx(image_summary(labels, scores)["image_auroc"])
    for order, each in zip(found["nearest"], limits, strict=True):
        assert sorted(order) == list(range(402))
        distances = np.abs(scores[order[:400]][:, None] - each).min(axis=1)
        assert (np.diff(distances) >= -1e-9).all()
        assert sorted(order[400:]) == [400, 401]


@pytest.mark.slow
def test_the_page(settings: Settings, page: Page, context: BrowserContext, tmp_path: Path) -> None:
    with live(settings()) as address:
        page.goto(address + "/review")
        expect(page.locator("#about")).to_contain_text("24 images, all are judged")
        grid = page.get_by_role("listbox", name="Images")
        expect(grid.get_by_role("option")).to_have_count(8)  # of the test: the others were learned
        before = counts(page)
        assert sum(before[:3]) == sum(before[3:6]) == 4

        # drag the threshold to the left end: all are bad
        handle = page.get_by_role("slider", name="Threshold of bad")
        box = handle.bounding_box()
        plot = page.locator(".plot").bounding_box()
        assert box is not None
        assert plot is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(plot["x"] - 30, box["y"] + 40, steps=4)
        page.mouse.up()
        assert counts(page)[:6] == [0, 0, 4, 0, 0, 4]
        expect(page.locator("#rates")).to_contain_text("100 %")
        # and by keys to the right end: none is
        handle.press("End")
        assert counts(page)[:6] == [4, 0, 0, 4, 0, 0]
        page.get_by_label("Some are unsure").check()
        page.get_by_role("slider", name="Threshold of unsure").press("Home")
        assert counts(page)[:6] == [0, 4, 0, 0, 4, 0]

        # a cell of the matrix filters
        page.get_by_role("button", name="4 images, known as bad, judged unsure").click()
        expect(grid.get_by_role("option")).to_have_count(4)
        expect(page.locator("#shown")).to_contain_text("4 of 24 images: judged unsure, known as bad")
        # keys walk through the images, and open one
        grid.focus()
        grid.press("ArrowRight")
        expect(grid.get_by_role("option", selected=True)).to_have_attribute("aria-posinset", "2")
        grid.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("2 of 4")
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("dialog")).to_contain_text("3 of 4")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()

        # marks, by keys: the next one is chosen; what is marked counts as known
        grid.press("g")
        expect(page.locator("#shown")).to_contain_text("3 of 24 images")
        grid.press("u")
        expect(page.locator("#shown")).to_contain_text("2 of 24 images")
        assert counts(page) == [0, 5, 0, 0, 2, 0, 0, 1, 0]

        # a promise, saved; another tab that had changes of its own is told
        other = context.new_page()
        other.goto(address + "/review")
        other.get_by_role("slider", name="Threshold of bad").press("ArrowLeft")
        page.get_by_label("kept").select_option("estimate")
        page.get_by_label("% false alarms").fill("10")
        page.get_by_role("button", name="Find thresholds").click()
        expect(page.locator("#worth")).to_contain_text("of good parts will be flagged")
        page.get_by_role("button", name="Save into the model").click()
        expect(page.locator("#version")).to_have_text("tile, version 2")
        other.get_by_role("button", name="Save into the model").click()
        expect(other.locator("#theirs")).to_contain_text("Somebody else has saved other thresholds")
        other.get_by_role("button", name="Keep mine").click()
        other.get_by_role("button", name="Save into the model").click()
        expect(other.locator("#version")).to_have_text("tile, version 3")
        expect(page.locator("#version")).to_have_text("tile, version 3")  # the first tab follows

        # a report to hand on
        page.get_by_role("button", name="All images", exact=True).click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Report of these").click()
        assert download.value.suggested_filename == "tile-report.html"
