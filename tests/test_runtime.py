"""An exported model answers without torch as the detector does, from any number of threads, and damage is noticed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import pickglass as pg
from pickglass.app.drift import drift
from pickglass.app.predict import predict
from pickglass.app.testing.test import test as judge
from pickglass.app.threshold import ThresholdRequest, threshold
from pickglass.app.watch.watch import WatchRequest, watch
from pickglass.cli.main import app
from pickglass.data import Row, Table
from pickglass.errors import InputError, MissingExtra, ModelFileError
from pickglass.methods import load as load_detector
from pickglass.runtime import exported as exporteds
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.export_file import _field, fields_of, read_export, read_export_header, write_export
from pickglass.runtime.exported import ExportedModel, _Form, array_from_json, array_to_json
from pickglass.runtime.provenance import Provenance
from pickglass.runtime.session import usual_threads
from pickglass.testing import textures

SIDE = 64
RESNET: dict[str, Any] = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "weights": "random", "size": SIDE}


@pytest.fixture(scope="module")
def detector() -> pg.Detector:
    return pg.PatchCore(**RESNET, ratio=0.05).fit(
        textures(12, SIDE), engine="torch", calibrate=0.5, observers=[pg.DriftSample()]
    )


@pytest.fixture(scope="module")
def file(detector: pg.Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "bottle.onnx"
    detector.export(path, textures(3, SIDE, seed=1))
    return path


@pytest.fixture
def model(file: Path) -> ExportedModel:
    return ExportedModel(file)


def expect_alike(a: pg.Prediction, b: pg.Prediction) -> None:
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4)
    np.testing.assert_allclose(np.stack(a.maps), np.stack(b.maps), rtol=1e-3, atol=1e-3)
    assert a.rows == b.rows
    assert a.sizes == b.sizes
    assert [f.window for f in a] == [f.window for f in b]
    assert [f.pixel_mm for f in a] == [f.pixel_mm for f in b]
    assert a.calibration == b.calibration


# -- as in the lab -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_it_judges_as_the_detector_does(detector: pg.Detector, model: ExportedModel, engine: Any) -> None:
    images = [*textures(4, SIDE, seed=7), *textures(3, 96, seed=8)]
    expect_alike(model.predict(images, engine=engine, batch=3), detector.predict(images, engine="torch"))
    assert model.model_id() == detector.model_id()
    assert (model.model_version, model.history) == (detector.model_version, detector.history)
    assert (model.method, model.title) == ("patchcore", "PatchCore")
    assert model.configuration() == json.loads(json.dumps(detector.configuration()))
    assert (
        model.provenance.to_json()
        == Provenance.from_json(json.loads(json.dumps(detector.provenance.to_json()))).to_json()
    )


def test_the_graph_gets_the_same_numbers(detector: pg.Detector, model: ExportedModel, tmp_path: Path) -> None:
    """The inputs are bit-equal: from files of each kind, of any size and depth, through the model's geometry."""
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 255, (50, 70, 3), np.uint8),
        rng.integers(0, 255, (SIDE, SIDE), np.uint8),
        rng.integers(0, 65535, (90, 30), np.uint16),
    ]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    Image.fromarray(images[0]).save(tmp_path / "3.jpg")
    table = pg.data.as_table(tmp_path)
    got: list[np.ndarray] = []

    def kept(inputs: Any) -> Any:
        got.extend(inputs["image"])
        return original(inputs)

    session = model._open(_Form("onnxruntime", "cpu", False))
    original = session.run
    model._sessions[_Form("onnxruntime", "cpu", False)] = session._replace(run=kept)
    model.predict(table, engine="onnxruntime")
    wanted: list[np.ndarray] = []
    loader = detector.loader(ComputeOptions(engine="torch"))
    for loaded in loader.plain().batches(table):
        assert loaded.batch is not None
        assert loaded.batch.images is not None
        wanted.extend(loaded.batch.images[:, 0].numpy())
    assert len(got) == len(wanted) == 4
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_model_of_an_older_pickglass_keeps_its_id(detector: pg.Detector, tmp_path: Path) -> None:
    """The older one knew fewer settings, of which the id is a digest."""
    kept = load_detector(detector.save(tmp_path / "m.safetensors"))
    kept._file_id = ("0123456789ab", kept.settings_digest())
    kept.export(tmp_path / "m.onnx", textures(2, SIDE))
    assert pg.load(tmp_path / "m.onnx").model_id() == kept.model_id() == "0123456789ab"
    assert load_detector(kept.save(tmp_path / "again.safetensors")).model_id() == "0123456789ab"


@pytest.mark.parametrize(
    "changes",
    [
        *(pytest.param(one, marks=pytest.mark.long) for one in ({"batch": 2}, {"input": "uint8"}, {"keep": True})),
        {"map": "full"},
        {"batch": 3, "input": "uint8", "keep": True},  # the three before, at once
    ],
)
@pytest.mark.slow
def test_each_form_of_a_file_is_read(detector: pg.Detector, changes: dict[str, Any], tmp_path: Path) -> None:
    detector.export(tmp_path / "m.onnx", textures(2, SIDE), **changes)
    images = textures(5, SIDE, seed=7)
    got, wanted = pg.load(tmp_path / "m.onnx").predict(images), detector.predict(images, engine="torch")
    np.testing.assert_allclose(got.scores, wanted.scores, rtol=1e-4)
    if changes.get("map") != "full":
        np.testing.assert_allclose(np.stack(got.maps), np.stack(wanted.maps), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_regions_of_interest(tmp_path: Path) -> None:
    roi = np.zeros((SIDE, SIDE), np.uint8)
    roi[:, : SIDE // 2] = 255
    Image.fromarray(roi).save(tmp_path / "roi.png")
    rows = [
        Row(f"array:{i}", "train", 0, pixels=im, roi=str(tmp_path / "roi.png"))
        for i, im in enumerate(textures(8, SIDE))
    ]
    detector = pg.PatchCore(**RESNET, ratio=0.05).fit(Table(rows), engine="torch")
    detector.export(tmp_path / "one.onnx", textures(2, SIDE))
    detector.export(tmp_path / "each.onnx", textures(2, SIDE), keep=True)
    images = textures(3, SIDE, seed=7)
    wanted = detector.predict(images, engine="torch")
    other = [Row(f"array:{i}", pixels=im, roi=255 - roi) for i, im in enumerate(images)]
    for name in ("one", "each"):
        got = pg.load(tmp_path / f"{name}.onnx").predict(images)
        expect_alike(got, wanted)
        assert all(np.array_equal(a.inside(), b.inside()) for a, b in zip(got, wanted, strict=True))  # type: ignore[arg-type]
    expect_alike(pg.load(tmp_path / "each.onnx").predict(other), detector.predict(other, engine="torch"))
    with pytest.raises(InputError, match=r"exported without an input for regions of interest.*--keep"):
        pg.load(tmp_path / "one.onnx").predict(other)


def test_a_broken_image_leaves_the_others(model: ExportedModel, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [textures(1, SIDE)[0], tmp_path / "broken.png", None, textures(1, SIDE)[0]]
    found = model.predict(images)
    assert len(found) == 2
    assert [failure.path for failure in found.failed] == [str(tmp_path / "broken.png"), "array:1"]
    assert len(model.predict([tmp_path / "broken.png"])) == 0


def test_a_generator_is_read_as_images_are_needed(model: ExportedModel) -> None:
    taken = []

    def endless() -> Any:
        for i in range(10_000):
            taken.append(i)
            yield textures(1, SIDE)[0]

    stream = model.stream(endless(), engine="onnxruntime", batch=2)
    next(stream)
    assert len(taken) < 20


# -- runtimes and threads ----------------------------------------------------------------------------------------------


def test_the_faster_runtime_is_taken_where_it_pays(model: ExportedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.runtime == "none yet"
    model.predict(textures(1, SIDE))
    assert model.runtime == "onnxruntime"
    seconds = {"onnxruntime": 0.25, "openvino": 0.125}
    monkeypatch.setattr(exporteds, "_seconds_each", lambda session, *_: seconds[session.name])
    model.predict(list(textures(1, SIDE)) * exporteds._MANY)
    assert model.runtime == "openvino (ms an image here: onnxruntime 250, openvino 125)"
    monkeypatch.setattr(exporteds, "_seconds_each", lambda *_: pytest.fail("measured twice"))
    model.predict(textures(1, SIDE))
    monkeypatch.setattr(exporteds.importlib.util, "find_spec", lambda _: None)
    other = ExportedModel(model.source)
    other.predict(list(textures(1, SIDE)) * exporteds._MANY)
    assert other.runtime == "onnxruntime"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "auto"])
def test_each_thread_has_an_image_of_its_own_where_that_pays(
    file: Path, tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[Any] = list(textures(exporteds._MANY, SIDE, seed=4))
    (tmp_path / "broken.png").write_bytes(b"no image")
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    expected = ExportedModel(file, threads=1).predict(tmp_path, engine="onnxruntime")
    monkeypatch.setattr(exporteds, "_seconds_each", lambda session, *_: 1 / session.at_once)
    model = ExportedModel(file, threads=2)
    got = model.predict(tmp_path, engine=engine)
    assert [form.wide for form in model._sessions] == [True]  # the others were measured and closed
    assert [found.row.path for found in got.found] == [found.row.path for found in expected.found]
    assert [failure.path for failure in got.failed] == [str(tmp_path / "broken.png")]
    np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-4)
    stream = model.stream(tmp_path, engine=engine)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pickglass-session")]
    monkeypatch.setattr(exporteds, "_seconds_each", lambda session, *_: session.at_once)
    model = ExportedModel(file, threads=2)
    model.predict(tmp_path, engine=engine)
    assert [form.wide for form in model._sessions] == [False]


def test_what_it_cannot_run_in_is_said(model: ExportedModel, detector: pg.Detector) -> None:
    for wanted, message in (
        ({"engine": "torch"}, r"engine='torch': .*bottle\.onnx is an exported model, which runs in one of auto, onnx"),
        ({"engine": "openvino", "device": "cuda"}, "device='cuda' with openvino"),
        ({"device": "tpu"}, "device='tpu' with onnxruntime: expected 'cpu', or 'cuda'"),
        ({"batch": 0}, "batch=0: expected at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            model.predict(textures(1, SIDE), **wanted)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="which runs exported models"):
        detector.predict(textures(1, SIDE), engine="onnxruntime")
    with pytest.raises(InputError, match="threads=0"):
        ExportedModel(model.source, threads=0)


def test_a_runtime_that_is_absent_is_named(model: ExportedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"bottle\.onnx in OpenVINO needs openvino"):
        model.predict(textures(1, SIDE), engine="openvino")


@pytest.mark.parametrize(("text", "threads"), [("3", 3), ("2,1", 2), ("", None), ("0", None), ("many", None)])
def test_threads_as_the_environment_says(text: str, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert usual_threads() == threads


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_eight_threads_get_their_own_scores(file: Path, engine: Any) -> None:
    model = ExportedModel(file, threads=1)
    images = textures(8, SIDE, seed=3)
    alone = [ExportedModel(file, threads=1).predict(image, engine=engine).scores[0] for image in images]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: model.predict(images[i % 8], engine=engine).scores[0], range(40)))
    np.testing.assert_allclose(answers, [alone[i % 8] for i in range(40)], rtol=1e-6)
    assert len(model._sessions) == 1


def test_runtimes_report_nothing_to_their_makers(file: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy, pickglass; model = pickglass.load(sys.argv[1]); image = numpy.zeros((32, 32, 3), 'u1'); "
        "model.predict([image], engine='onnxruntime'); model.predict([image], engine='openvino')"
    )
    unset = ("ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "JENKINS_URL", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, env={**environment, **home}, timeout=120)
    left = [str(path) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [], "they keep an id of this machine, with which they report"


def test_copies_and_pickles(model: ExportedModel) -> None:
    image = textures(1, SIDE)
    wanted = model.predict(image, engine="onnxruntime").scores
    copy = pickle.loads(pickle.dumps(model))
    assert copy.runtime == "none yet"
    np.testing.assert_allclose(copy.predict(image, engine="onnxruntime").scores, wanted, rtol=1e-6)
    assert "patchcore" in repr(copy)
    assert model.warm_up() > 0


# -- the commands ------------------------------------------------------------------------------------------------------


def folder_of(path: Path, images: np.ndarray) -> Path:
    path.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"{i:02d}.png")
    return path


def test_predict_writes_the_same_tables(detector: pg.Detector, file: Path, tmp_path: Path) -> None:
    marked = textures(3, SIDE, seed=7)
    marked[1:, 20:30, 30:45] = 255
    images = folder_of(tmp_path / "images", marked)
    got = predict(file, [images], tmp_path / "out")
    wanted = predict(detector, [images])
    assert [item["verdict"] for item in got["results"]] == [item["verdict"] for item in wanted["results"]]
    boxes = [[defect["box"] for defect in item["defects"]] for item in got["results"]]
    assert boxes[1]
    assert boxes == [[defect["box"] for defect in item["defects"]] for item in wanted["results"]]
    assert (got["model_id"], got["model_version"]) == (wanted["model_id"], wanted["model_version"])
    assert (got["runtime"], wanted["runtime"]) == ("onnxruntime", None)
    assert (tmp_path / "out" / "results.csv").is_file()


def test_the_commands_say_which_runtime_and_refuse_the_wrong_file(file: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", textures(1, SIDE, seed=7))
    done = CliRunner().invoke(app, ["predict", str(file), str(images)])
    assert done.exit_code == 0
    assert "run by onnxruntime\n" in done.output  # click before 8.2 does not keep stdout and stderr apart
    swapped = CliRunner().invoke(app, ["predict", str(images), str(file)])
    assert "the arguments are swapped" in str(swapped.exception)


def test_a_line_runs_on_it(file: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", textures(3, SIDE, seed=7))
    done = watch(WatchRequest(file, images, jsonl=tmp_path / "o.jsonl", settle=0, once=True))
    told = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    wanted = predict(file, [images])["results"]
    assert (done["judged"], done["failed"]) == (3, 0)
    assert [item["score"] for item in told] == pytest.approx([item["score"] for item in wanted], rel=1e-4)


def test_thresholds_are_set_in_the_file(file: Path, detector: pg.Detector, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(file.read_bytes())
    graph = onnx.load(copy).graph.SerializeToString()
    good = folder_of(tmp_path / "good", textures(30, SIDE, seed=9))
    wanted = threshold(detector.save(tmp_path / "m.safetensors"), good, ThresholdRequest("marginal", 0.1))
    got = threshold(copy, good, ThresholdRequest("marginal", 0.1))
    assert got["image_threshold"] == pytest.approx(wanted["image_threshold"], rel=1e-4)
    assert got["sentence"] == wanted["sentence"]
    assert (got["model_id"], got["model_version"]) == (detector.model_id(), 2)
    model = pg.load(copy)
    assert model.calibration is not None
    assert model.calibration.image_threshold == got["image_threshold"]
    assert [change.command for change in model.history] == ["fit", "threshold"]
    by_hand = threshold(copy, None, ThresholdRequest("fixed", value=12.5))
    assert (by_hand["image_threshold"], by_hand["model_version"]) == (12.5, 3)
    with pytest.raises(InputError, match="an exported model, which cannot be fitted again"):
        threshold(copy, good, ThresholdRequest("estimate"))
    assert onnx.load(copy).graph.SerializeToString() == graph
    model.set_thresholds(image=3.5, unsure=3.0)
    again = pg.load(model.save(tmp_path / "again.onnx"))
    assert again.calibration is not None
    assert (again.calibration.image_threshold, again.calibration.unsure_threshold) == (3.5, 3.0)
    assert again.model_version == 3


def test_drift_is_found(file: Path, detector: pg.Detector, tmp_path: Path) -> None:
    images = textures(12, SIDE, seed=11)
    for name, taken in (("same", images), ("dark", images // 2)):
        folder = folder_of(tmp_path / name, taken)
        got, wanted = drift(file, [folder], level=0.2), drift(detector, [folder], level=0.2)
        assert (got["drift"], got["most"], got["n_new"]) == (wanted["drift"], wanted["most"], wanted["n_new"])
        assert [c["p"] for c in got["changes"]] == pytest.approx([c["p"] for c in wanted["changes"]], abs=0.02)


def test_drift_needs_its_sample(tmp_path: Path) -> None:
    pg.PatchCore(**RESNET, ratio=0.05).fit(textures(8, SIDE), engine="torch").export(
        tmp_path / "m.onnx", textures(2, SIDE)
    )
    folder = folder_of(tmp_path / "new", textures(12, SIDE))
    with pytest.raises(InputError, match="has no images to compare with"):
        drift(tmp_path / "m.onnx", [folder])
    with pytest.raises(InputError, match="does not compute what drift compares"):
        drift(tmp_path / "m.onnx", [folder], against=[folder_of(tmp_path / "old", textures(12, SIDE, seed=1))])


@pytest.mark.slow
def test_test_writes_its_report(file: Path, detector: pg.Detector, small_dataset: Path, tmp_path: Path) -> None:
    got = judge(file, small_dataset, tmp_path / "report.html")
    wanted = judge(detector, small_dataset)
    assert got["image_auroc"] == pytest.approx(wanted["image_auroc"])
    assert got["aupro_30"] == pytest.approx(wanted["aupro_30"], rel=1e-3)
    assert "PatchCore" in (tmp_path / "report.html").read_text()


# -- the file ----------------------------------------------------------------------------------------------------------


def changed_header(file: Path, change: Callable[[dict[str, Any]], object], target: Path) -> Path:
    header, content = read_export(file)
    change(header)
    write_export(target, content, {k: v for k, v in header.items() if k != "sha256"})
    return target


def test_the_header_is_what_onnx_says(file: Path) -> None:
    entries = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert read_export_header(file) == json.loads(entries["pickglass"]) == read_export(file)[0]


def test_what_learns_wants_the_model_file(file: Path, tmp_path: Path) -> None:
    images, out = folder_of(tmp_path / "images", textures(2, SIDE, seed=7)), str(tmp_path / "m.safetensors")
    for command in ("update", "label"):
        done = CliRunner().invoke(app, [command, str(file), str(images), "-o", out])
        assert "an exported model, which judges and does not learn" in str(done.exception), done.output


def test_damage_is_noticed(file: Path, tmp_path: Path) -> None:
    content, target = file.read_bytes(), tmp_path / "m.onnx"
    for wrong, message in (
        (b"", "it is empty"),
        (content[:-1], "cut short"),
        (content[: len(content) // 2], "cut short"),
        (content[:1000] + bytes([content[1000] ^ 1]) + content[1001:], "checksum differs"),
        (b"\xff" * 100, "not a readable ONNX file"),
        (b"\x08\x08" * 20_000, "more than 10000 fields"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "'pickglass export' did not write it"),
    ):
        target.write_bytes(wrong)
        with pytest.raises(ModelFileError, match=message) as error:
            pg.load(target)
        assert len(str(error.value)) < 500
    with pytest.raises(ModelFileError, match="no such file"):
        pg.load(tmp_path / "none.onnx")
    changed_header(file, lambda header: header.update(format=99), target)
    with pytest.raises(ModelFileError, match=r"format 99, this pickglass reads format 1: upgrade"):
        pg.load(target)
    changed_header(file, lambda header: header.pop("certificate"), target)
    with pytest.raises(ModelFileError, match="lacks \\['certificate'\\]"):
        pg.load(target)
    for name in ("preprocess", "calibration", "provenance", "history", "drift_reference", "roi"):
        changed_header(file, lambda header, name=name: header.update({name: "nonsense"}), target)  # type: ignore[misc]
        with pytest.raises(ModelFileError, match="header is damaged"):
            pg.load(target)


def test_a_graph_that_no_runtime_takes(file: Path, tmp_path: Path) -> None:
    header, _ = read_export(file)
    node = onnx.helper.make_node("Unheard", ["image"], ["score", "map"])
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, (None, 3, SIDE, SIDE))
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("score", "map")]
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [image], outputs))
    write_export(tmp_path / "m.onnx", graph.SerializeToString(), header)
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(ModelFileError, match="refuses it"):
            pg.load(tmp_path / "m.onnx").predict(textures(1, SIDE), engine=engine)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        parts = list(fields_of(memoryview(content)))
    except ValueError:
        return
    assert b"".join(bytes(part.whole) for part in parts) == content


@settings(max_examples=50, deadline=None)
@given(number=st.integers(1, 1000), value=st.binary(max_size=300))
def test_a_field_is_read_as_written(number: int, value: bytes) -> None:
    (field,) = fields_of(memoryview(_field(number, value)))
    assert (field.number, bytes(field.value)) == (number, value)


def test_arrays_in_the_header() -> None:
    for array in (np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 4), np.int64), np.ones((3, 3), np.bool_)):
        stored = json.loads(json.dumps(array_to_json(array)))
        got = array_from_json(stored)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert np.array_equal(got, array)
    stored = array_to_json(np.zeros(1000, np.float32))
    for change, message in (
        ({"shape": [10]}, "41 bytes for an array of float32"),
        ({"shape": [2000]}, "4000 bytes"),
        ({"dtype": "O"}, "for an array of object"),
        ({"shape": [-1000]}, "1 bytes for an array of float32"),
        ({"deflated": "AAAA"}, "Error -3"),
        ({"deflated": "?"}, "base64"),
    ):
        with pytest.raises(ValueError, match=message):
            array_from_json({**stored, **change})
