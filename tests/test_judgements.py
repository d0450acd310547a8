"""``pickglass predict`` for a line: a row an image, a row a defect, and an exit code for bad parts."""

from __future__ import annotations

import csv
import json
import os
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from pickglass.app.judgements import DEFECTS, IMAGES, write_tables
from pickglass.app.predict import predict
from pickglass.cli.main import main
from pickglass.data.tables.cells import cell, text_of
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

QUICK = ComputeOptions(engine="torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fitted = pg.PatchCore(size=64, ratio=0.05).fit(textures(12, 64), engine="torch")
    return fitted.save(tmp_path_factory.mktemp("judgements") / "m.safetensors")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A good part, a broken file, a part with two holes, and a name that a spreadsheet would run."""
    folder = tmp_path / "parts"
    folder.mkdir()
    good, bad, odd = textures(3, 64, seed=4)
    bad = bad.copy()
    bad[6:20, 6:20], bad[44:60, 40:60] = 0, 255
    for name, pixels in (("a.png", good), ("c.png", bad), ("=1+1.png", odd)):
        Image.fromarray(pixels).save(folder / name)
    (folder / "b.png").write_bytes(b"no image")
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_each_image_has_a_row_in_the_order_given_also_one_that_failed(model: Path, parts: Path, tmp_path: Path) -> None:
    began = datetime.now(timezone.utc) - timedelta(seconds=1)
    order = [parts / name for name in ("c.png", "b.png", "a.png")]
    result = predict(model, order, tmp_path / "out", compute=QUICK)
    images = rows(tmp_path / "out" / "results.csv")
    assert list(images[0]) == list(IMAGES)
    assert [row["path"] for row in images] == [str(path) for path in order]
    bad, broken, good = images
    detector = pg.load(model)
    assert detector.calibration is not None
    for row in images:
        assert float(row["threshold"]) == detector.calibration.image_threshold == result["threshold"]
        assert (row["model_id"], row["model_version"]) == (detector.model_id(), "1")
        assert began < datetime.fromisoformat(row["time"]) < datetime.now(timezone.utc)
    assert [row["verdict"] for row in images] == ["bad", "", "good"]
    assert float(bad["score"]) == result["results"][0]["score"]
    assert float(bad["p_value"]) == result["results"][0]["p_value"] < float(good["p_value"])
    assert (broken["score"], broken["p_value"], good["error"], bad["type"]) == ("", "", "", "")
    assert {row["unsure_threshold"] for row in images} == {""}
    assert broken["error"] == result["failed"][0]["error"] != ""


def test_each_defect_has_a_row_in_pixels_of_the_original(model: Path, parts: Path, tmp_path: Path) -> None:
    with Image.open(parts / "c.png") as small:
        small.resize((128, 192), Image.Resampling.NEAREST).save(parts / "c.png")
    result = predict(model, [parts / "a.png", parts / "c.png"], tmp_path, pixel_mm=0.5, compute=QUICK)
    defects = rows(tmp_path / "defects.csv")
    assert list(defects[0]) == list(DEFECTS)
    listed = [(item["path"], d) for item in result["results"] for d in item["defects"]]
    assert len(defects) == len(listed) >= 1
    for row, (path, defect) in zip(defects, listed, strict=True):
        assert row["path"] == path
        assert [int(row[name]) for name in ("x", "y", "width", "height")] == defect["box"]
        assert int(row["area_px"]) <= int(row["width"]) * int(row["height"])
        assert float(row["area_mm2"]) == int(row["area_px"]) * 0.25
        assert float(row["peak"]) == defect["peak"] > pg.load(model).calibration.pixel_threshold  # type: ignore[union-attr]
    of_bad = [row for row in defects if row["path"].endswith("c.png")]
    assert [int(row["defect"]) for row in of_bad] == list(range(1, len(of_bad) + 1))
    assert max(int(row["y"]) + int(row["height"]) for row in of_bad) > 64  # beyond the network's input


@pytest.mark.parametrize(("image", "unsure"), [("above", "between"), ("between", "below")])
def test_a_part_between_two_thresholds_is_unsure_everywhere(
    model: Path,
    parts: Path,
    tmp_path: Path,
    image: str,
    unsure: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = pg.load(model)
    names = ["a.png", "c.png"]
    low, high = detector.predict([parts / name for name in names], engine="torch").scores.tolist()
    place = {"below": low - 1, "between": (low + high) / 2, "above": high + 1}
    expected = {"between": ["good", "unsure"], "below": ["unsure", "bad"]}[unsure]
    detector.set_thresholds(image=place[image], unsure=place[unsure])
    own = detector.save(tmp_path / "own.safetensors")
    out = tmp_path / "out"
    words = [
        "predict",
        own,
        *(parts / name for name in names),
        "--fail-on-bad",
        "--engine",
        "torch",
        "-o",
        out,
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1  # a part that nobody has looked at must not pass
    result = json.loads(capsys.readouterr().out)
    assert [item["verdict"] for item in result["results"]] == expected
    assert result["unsure_threshold"] == place[unsure]
    images, defects = rows(out / "results.csv"), rows(out / "defects.csv")
    assert [row["verdict"] for row in images] == expected
    assert {row["unsure_threshold"] for row in images} == {repr(place[unsure])}
    by_path = {row["path"]: row["verdict"] for row in images}
    assert defects
    assert all(row["verdict"] == by_path[row["path"]] for row in defects)


def test_fail_on_bad_lets_good_parts_pass_beside_a_band(
    model: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = pg.load(model)
    (low,) = detector.predict(parts / "a.png", engine="torch").scores.tolist()
    detector.set_thresholds(image=low + 2, unsure=low)  # a score that equals a threshold does not exceed it
    own = detector.save(tmp_path / "own.safetensors")
    monkeypatch.setattr(
        sys, "argv", ["pickglass", "predict", str(own), str(parts / "a.png"), "--fail-on-bad", "--engine", "torch"]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


def test_a_size_in_mm2_is_empty_where_no_pitch_is_known(model: Path, parts: Path, tmp_path: Path) -> None:
    predict(model, [parts / "c.png"], tmp_path, compute=QUICK)
    assert {row["area_mm2"] for row in rows(tmp_path / "defects.csv")} == {""}


def test_the_type_stands_with_the_image_and_with_the_defect_that_was_named(
    model: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pickglass.result import Named

    detector = pg.load(model)
    monkeypatch.setattr(detector, "_names", lambda batch, scores, maps: [Named("=hole", 0.9)] * len(scores))
    detector.set_thresholds(pixel=float(detector.predict(parts / "c.png", engine="torch").maps[0].mean()))
    predict(detector, [parts / "c.png"], tmp_path, compute=QUICK)
    (image,), defects = rows(tmp_path / "results.csv"), rows(tmp_path / "defects.csv")
    assert (image["type"], image["model_version"]) == ("'=hole", "2")
    assert [row["type"] for row in defects] == ["'=hole", *[""] * (len(defects) - 1)]


def test_a_spreadsheet_runs_no_name_and_every_text_can_be_had_back(tmp_path: Path) -> None:
    names = [
        "=cmd|' /C calc'!A0",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "'",
        "'=1",
        "\uff1d1",
        "a=1",
        "",
        'é,"x',
    ]
    write_tables(tmp_path, [[name, *[None] * (len(IMAGES) - 1)] for name in names], [])
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        _, *lines = csv.reader(file)
    written = [line[0] for line in lines]
    assert not [text for text in written if text.startswith((*"=+-@\t\r\n", "\uff1d"))]
    assert [text_of(text) for text in written] == names
    assert [cell(value) for value in (-0.5, np.float64(-1e-9), 3, None)] == ["-0.5", "-1e-09", "3", ""]


def test_a_row_that_cannot_be_written_leaves_both_old_files(tmp_path: Path) -> None:
    write_tables(tmp_path, [["old", *[None] * (len(IMAGES) - 1)]], [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken() -> Any:
        yield ["new", *[None] * (len(IMAGES) - 1)]
        raise OSError("disk full")

    for images, defects in ((broken(), []), ([["new", *[None] * (len(IMAGES) - 1)]], broken())):
        with pytest.raises(OSError, match="disk full"):
            write_tables(tmp_path, images, defects)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("names", "option", "code"),
    [
        (["a.png"], [], 0),
        (["a.png"], ["--fail-on-bad"], 0),
        (["a.png", "c.png"], [], 0),
        (["a.png", "c.png"], ["--fail-on-bad"], 1),
        (["a.png", "b.png"], [], 1),
        (["a.png", "b.png"], ["--fail-on-bad"], 1),
        (["a.png", "absent.png"], ["--fail-on-bad"], 2),
    ],
    ids=str,
)
def test_exit_codes(
    model: Path,
    parts: Path,
    names: list[str],
    option: list[str],
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["predict", model, *(parts / name for name in names), *option, "--json", "--engine", "torch"]
    monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert int(stop.value.code or 0) == code
    out = capsys.readouterr().out
    if code == 2:
        assert out == ""
        return
    result = json.loads(out)
    keys = ["model_id", "model_version", "threshold", "unsure_threshold", "results", "failed", "stale", "runtime"]
    assert list(result) == keys
    assert len(result["results"]) + len(result["failed"]) == len(names)


def test_a_model_that_calls_nothing_bad_cannot_vouch_for_parts(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = pg.PatchCore(size=64, ratio=0.05).fit(textures(4, 64), calibrate=0, engine="torch")
    model = detector.save(tmp_path / "m.safetensors")
    words = ["predict", model, parts / "c.png", "--fail-on-bad", "--json", "--engine", "torch"]
    monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out) == (2, "")
    assert "has no threshold and calls no image bad" in captured.err
    result = predict(model, [parts / "c.png"], tmp_path / "out", compute=QUICK)
    assert (result["threshold"], result["results"][0]["verdict"]) == (None, None)
    (row,) = rows(tmp_path / "out" / "results.csv")
    assert (row["threshold"], row["verdict"], row["p_value"]) == ("", "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files that are no text")
def test_a_name_that_is_no_text_is_written_as_it_is(model: Path, parts: Path, tmp_path: Path) -> None:
    name = os.fsencode(parts) + b"/\xff\xe9.png"
    Path(os.fsdecode(name)).write_bytes((parts / "a.png").read_bytes())
    predict(model, [os.fsdecode(name), parts / "b.png"], tmp_path, compute=QUICK)
    assert name in (tmp_path / "results.csv").read_bytes()
