"""Marks over the API: people mark, disagree, take their marks along, and teach the model."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import Settings, client_of

import pickglass as pg
from made_jobs import ready_job
from pickglass.app.marking.table import COLUMNS
from pickglass.app.marking.worker import with_thresholds_of
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

GOOD, BAD = "test/good/00.png", "test/hole/05.png"


def said(client: TestClient, name: str = GOOD, mark: str | None = "good", status: int = 200, **more: Any) -> Any:
    body = {"image": {"place": more.pop("place", "data"), "name": name}, "mark": mark, **more}
    answer = client.post("/api/marks", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def png(seed: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(textures(1, 64, seed=seed)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_of_the_data_set_is_marked(client: TestClient, small_dataset: Path) -> None:
    one = said(client, BAD, "bad", type="hole", user="Ann", model="tile", score=1.5, note="left", seen=0)
    digest = hashlib.sha256((small_dataset / BAD).read_bytes()).hexdigest()
    assert (one["sha256"], one["place"], one["name"]) == (digest, "data", BAD)
    assert (one["version"], one["latest"], one["disputed"], one["model_version"]) == (1, 1, False, 1)
    listed = client.get("/api/marks").json()
    assert listed["marks"] == [one]
    assert (listed["good"], listed["bad"], listed["unsure"], listed["types"]) == (0, 1, 0, ["hole"])
    picture = client.get(f"/api/marks/{digest}/picture?side=48")
    assert max(Image.open(io.BytesIO(picture.content)).size) == 48
    assert said(client, BAD, None)["mark"] is None
    assert client.get("/api/marks").json()["marks"] == []
    assert len(client.get(f"/api/marks/{digest}").json()["marks"]) == 2


def test_two_people_at_once_do_not_overwrite_each_other(client: TestClient) -> None:
    first = said(client, mark="good", user="Ann", seen=0)
    second = said(client, mark="bad", user="Bob", seen=0)
    assert (second["disputed"], second["counts_as"], second["latest"]) == (True, "unsure", 2)
    usable = client.get("/api/teach/marks").json()
    assert [one["name"] for one in usable["disputed"]] == [GOOD]
    assert (usable["good"], usable["bad"], usable["unsure"]) == (0, 0, 1)
    settled = said(client, mark="bad", user="Cem", seen=second["latest"])
    assert (settled["disputed"], settled["counts_as"]) == (False, "bad")
    history = client.get(f"/api/marks/{first['sha256']}").json()["marks"]
    assert [(one["user"], one["mark"]) for one in history] == [("Ann", "good"), ("Bob", "bad"), ("Cem", "bad")]


def test_a_drawn_mask_is_as_large_as_the_image(client: TestClient) -> None:
    stroke = {"kind": "stroke", "points": [[20, 30], [40, 30]], "radius": 3}
    one = said(client, BAD, "bad", shapes=[stroke])
    mask = np.asarray(Image.open(io.BytesIO(client.get(f"/api/marks/{one['sha256']}/mask").content)))
    assert mask.shape == (80, 96)
    assert mask[28:32, 20:40].all()
    eraser = {"kind": "polygon", "points": [[0, 0], [30, 0], [30, 80], [0, 80]], "erase": True}
    said(client, BAD, "bad", shapes=[eraser], keep_mask=True)
    again = np.asarray(Image.open(io.BytesIO(client.get(f"/api/marks/{one['sha256']}/mask").content)))
    assert not again[:, :30].any()
    assert (again[:, 30:] == mask[:, 30:]).all()
    assert said(client, BAD, "bad", keep_mask=True)["mask"]
    assert not said(client, BAD, "bad")["mask"]
    assert client.get(f"/api/marks/{one['sha256']}/mask").status_code == 404


PNG = {"content-type": "image/png"}


def test_an_upload_is_kept_with_its_mark(client: TestClient) -> None:
    content = png()
    kept = client.post("/api/marks/images?name=../../line 3/part.png", content=content, headers=PNG).json()
    assert kept["name"] == f"{hashlib.sha256(content).hexdigest()}/part.png"
    again = client.post("/api/marks/images?name=other.png", content=content, headers=PNG).json()
    assert again == kept
    one = said(client, kept["name"], place="kept")
    assert (one["place"], one["sha256"]) == ("kept", kept["sha256"])
    assert client.get(f"/api/marks/{one['sha256']}/picture").status_code == 200


def test_an_image_of_the_watched_folder_is_marked(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "line"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    with client_of(settings(watch=folder)) as client:
        assert said(client, "a.png", place="watch")["name"] == "a.png"
        said(client, "b.png", place="watch", status=404)


@pytest.mark.parametrize(
    ("place", "name", "status"),
    [
        ("data", "../tile/test/good/00.png", 404),
        ("data", "/etc/passwd", 404),
        ("data", "", 404),
        ("watch", "a.png", 400),
        ("kept", "../marks.sqlite", 404),
        ("kept", f"{'0' * 64}/../../marks.sqlite", 404),
        ("kept", f"{'0' * 64}/a\0.png", 404),
        ("disk", "a.png", 422),
    ],
)
def test_no_other_file_is_opened(client: TestClient, place: str, name: str, status: int) -> None:
    said(client, name, place=place, status=status)
    assert client.get("/api/marks").json()["marks"] == []


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"mark": "fine"}, 422),
        ({"mark": "good", "type": "hole"}, 400),
        ({"mark": "bad", "type": "../hole"}, 400),
        ({"mark": "bad", "seen": 7}, 400),
        ({"mark": "bad", "seen": -1}, 422),
        ({"mark": "bad", "model": "none"}, 404),
        ({"mark": "bad", "shapes": [{"kind": "stroke", "points": [[5, 5]]}]}, 400),
        ({"mark": "bad", "shapes": [{"kind": "stroke", "points": [[5000, 5]], "radius": 2}]}, 400),
        ({"mark": "bad", "colour": "red"}, 422),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(
    client: TestClient, tmp_path: Path, wrong: dict[str, Any], status: int
) -> None:
    answer = said(client, status=status, **wrong)
    assert str(tmp_path) not in json.dumps(answer)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"0" * 100])
def test_what_is_no_image_is_not_kept(client: TestClient, tmp_path: Path, content: bytes) -> None:
    answer = client.post("/api/marks/images", content=content, headers=PNG)
    assert answer.status_code in (400, 422)
    assert not (tmp_path / "state" / "images").exists()


def test_an_image_with_too_many_pixels_is_not_kept(settings: Settings) -> None:
    with client_of(settings(compute=ComputeOptions(max_pixels=1000))) as client:
        assert client.post("/api/marks/images", content=png(), headers=PNG).status_code == 400


def test_a_table_comes_and_goes(client: TestClient, small_dataset: Path, tmp_path: Path) -> None:
    said(client, BAD, "bad", type="hole", user="=Ann", shapes=[{"kind": "stroke", "points": [[9, 9]], "radius": 3}])
    said(client)
    text = client.get("/api/marks/table.csv").text
    rows = list(csv.reader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    assert [row[0] for row in rows[1:]] == [BAD, GOOD]
    assert str(tmp_path) not in text
    assert str(small_dataset) not in text
    brought = client.post("/api/marks/table", content=text.encode()).json()
    assert brought["disputed"] == []
    for kind in ("text/csv", "application/json", "application/octet-stream"):  # whatever a sender calls it
        again = client.post("/api/marks/table", content=text.encode(), headers={"content-type": kind}).json()
        assert (again["added"], again["known"]) == (0, 2), kind
    other = text.replace(",good,,,,", ",bad,,,Bob,")  # an older row, of somebody else
    other = other.replace(rows[2][6], "2020-01-01T00:00:00+00:00")
    assert client.post("/api/marks/table", content=other.encode()).json()["disputed"] == [GOOD]
    wrong = client.post("/api/marks/table", content=b"path,sha256,mark\na.png,12,good\n")
    assert wrong.status_code == 400
    assert "the table: 1 of 1 rows cannot be read as marks" in wrong.json()["error"]
    stolen = f"path,sha256,mark,mask\na.png,{'0' * 64},bad,/etc/passwd\n"
    assert client.post("/api/marks/table", content=stolen.encode()).status_code == 400
    assert sorted(path.name for path in (tmp_path / "state").glob("*.csv")) == []


def test_marks_become_a_data_set(client: TestClient, tmp_path: Path) -> None:
    said(client, BAD, "bad", type="hole", shapes=[{"kind": "stroke", "points": [[9, 9]], "radius": 3}])
    said(client, "train/good/00.png")
    kept = client.post("/api/marks/images?name=00.png", content=png(), headers=PNG).json()
    said(client, kept["name"], place="kept")
    gone = f"path,sha256,mark\nlost.png,{'0' * 64},good\n"
    client.post("/api/marks/table", content=gone.encode())
    answer = client.get("/api/marks/dataset.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert sorted(name for name in archive.namelist() if name[-1] != "/") == [
            "about.json",
            "ground_truth/hole/05_mask.png",
            "test/hole/05.png",
            "train/good/00-2.png",
            "train/good/00.png",
        ]
        about = json.loads(archive.read("about.json"))
    assert [one["path"] for one in about["failed"]] == ["lost.png"]
    assert (about["good"], about["bad"], about["masks"]) == (2, 1, 1)
    assert str(tmp_path) not in json.dumps(about)
    assert not list((tmp_path / "state").glob("export-*"))


def test_a_model_that_cannot_be_taught_says_so(client: TestClient) -> None:
    said(client)
    usable = client.get("/api/teach/marks").json()
    assert (
        "cannot learn: put the model file that it was exported of beside it, as tile.safetensors" in usable["problem"]
    )
    answer = client.post("/api/teach", json={})
    assert answer.status_code == 400
    assert answer.json()["error"] == usable["problem"]
    assert client.get("/api/teach").json() == {"jobs": []}
    assert client.get("/api/teach/none").status_code == 404


def test_images_that_are_missing_are_named(
    settings: Settings, exported_model: Path, lab_model: Path, small_dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_dataset, tmp_path / "set")
    with client_of(settings(models=(lab_model,), data=pg.data.DataSource(tmp_path / "set"))) as client:
        digest = said(client)["sha256"]
        (tmp_path / "set" / GOOD).write_bytes(png())
        usable = client.get("/api/teach/marks").json()
        assert usable["missing"] == [
            {"sha256": digest, "name": GOOD, "error": "its content is another than when it was marked: mark it again"}
        ]
        answer = client.post("/api/teach", json={})
        assert answer.status_code == 400
        assert f"1 marked images are not there as they were marked, e.g. {GOOD}" in answer.json()["error"]
        answer = client.post("/api/teach", json={"leave_out": [digest]})
        assert "none of 0 marked images is marked good" in answer.json()["error"]


def test_an_update_is_decided_on(settings: Settings, exported_model: Path, lab_model: Path, tmp_path: Path) -> None:
    made = settings()
    served = made.models[0]
    lab = Path(shutil.copy(lab_model, served.with_suffix(".safetensors")))
    other = pg.load(served)
    other.set_thresholds(image=9.5)
    other.save(tmp_path / "other.onnx")
    with client_of(made) as client:
        digest = said(client, BAD, "bad")["sha256"]
        judged = {"path": None, "sha256": digest, "mark": "bad", "type": None, "score_before": 1.0, "score": 2.0,
                  "verdict_before": "good", "verdict": "bad", "judged": "bad"}  # fmt: skip
        candidates = {".onnx": (tmp_path / "other.onnx").read_bytes(), ".safetensors": lab.read_bytes()}
        folder = tmp_path / "state" / "teach"
        name = ready_job(folder, served, lab, lost=1, images=[judged], candidates=candidates)
        (job,) = client.get("/api/teach?model=tile").json()["jobs"]
        assert (job["id"], job["state"], job["model"]) == (name, "ready", "tile")
        assert (job["outcome"]["images"][0]["place"], job["outcome"]["images"][0]["name"]) == ("data", BAD)
        assert job["outcome"]["lost"] == ["x.png"]
        assert str(tmp_path) not in json.dumps(job)
        refused = client.post(f"/api/teach/{name}/take", json={})
        assert refused.status_code == 400
        assert "1 known bad images that the model finds now would be missed" in refused.json()["error"]
        taken = client.post(f"/api/teach/{name}/take", json={"user": "Bob", "lost_is_known": True}).json()
        assert (taken["state"], taken["decided"]["user"]) == ("taken", "Bob")
        loaded = pg.load(served)
        assert loaded.calibration is not None
        assert loaded.calibration.image_threshold == 9.5
        (entry,) = client.get("/api/audit").json()["entries"]
        assert (entry["what"], entry["model"], entry["user"], entry["after"]["id"]) == ("take", "tile.onnx", "Bob", "b")
        assert said(client, model="tile")["model_version"] == loaded.model_version == 2  # the page judges with it
        late = client.post(f"/api/teach/{name}/leave", json={})
        assert late.status_code == 400
        assert "was taken already" in late.json()["error"]


def test_an_update_goes_on_from_the_thresholds_of_the_served_file(
    exported_model: Path, lab_model: Path, tmp_path: Path
) -> None:
    served, lab = (Path(shutil.copy(path, tmp_path)) for path in (exported_model, lab_model))
    assert with_thresholds_of(served, lab, tmp_path) == lab
    other = pg.load(served)
    other.set_thresholds(image=7.5, unsure=5.5)
    other.save(served)
    base = pg.load(with_thresholds_of(served, lab, tmp_path))
    assert base.calibration is not None
    assert (base.calibration.image_threshold, base.calibration.unsure_threshold) == (7.5, 5.5)
    assert (base.model_id(), base.model_version) == (other.model_id(), 2)
    changed = pg.load(lab)
    changed.set_thresholds(image=1.5)
    changed.save(lab)  # both were changed: those of the model file count
    assert with_thresholds_of(served, lab, tmp_path) == lab
