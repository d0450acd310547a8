"""Exported files in float16 and int8: what they are made of, what their thresholds promise, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import pickglass as pg
from pickglass.calibration import Calibration, Evidence, Wish, promised, usual_threshold
from pickglass.calibration.promises import fixed_value
from pickglass.calibration.transfer import found_among, other_scores, transferred
from pickglass.cli.export import _show as show_export
from pickglass.cli.main import main
from pickglass.data import Preprocess, Row
from pickglass.detectors import export as exports
from pickglass.detectors import precision as precisions
from pickglass.detectors.accuracy import Comparison
from pickglass.detectors.certificate import TOLERANCES, Certificate, RuntimeFigures, Tolerance
from pickglass.detectors.onnx_graph import OPSET, onnx_graph
from pickglass.detectors.precision import _digits, _searches, halve
from pickglass.errors import DataError, InputError
from pickglass.methods import METHODS
from pickglass.runtime.export_file import read_export_header
from pickglass.testing import textures

SIDE = 64
RESNET: dict[str, Any] = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "weights": "random", "size": SIDE}
GOOD = textures(24, SIDE)


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly a graph is compiled twice here, and to keep each takes a tenth of the time."""
    monkeypatch.setenv("PICKGLASS_COMPILED", "off")


@pytest.fixture(scope="module")
def detector() -> pg.Detector:
    """A model with 6 images held back for its thresholds."""
    return pg.PatchCore(**RESNET, ratio=0.05).fit(GOOD, engine="torch", calibrate=0.25)


@pytest.fixture(scope="module")
def files(detector: pg.Detector, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("precision")
    paths = {precision: folder / f"{precision}.onnx" for precision in TOLERANCES}
    for precision, path in paths.items():
        detector.export(path, GOOD, precision=precision)
    return paths


def calibration_of(path: Path) -> Calibration:
    return Calibration.from_json(read_export_header(path)["calibration"])


# -- what a file is made of --------------------------------------------------------------------------------------------


def test_each_precision_takes_less_room_and_says_how_far_it_is_off(files: dict[str, Path]) -> None:
    sizes = {precision: path.stat().st_size for precision, path in files.items()}
    assert sizes["float16"] < 0.6 * sizes["float32"]
    assert sizes["int8"] < 0.45 * sizes["float32"]
    differences = []
    for precision, path in files.items():
        header = read_export_header(path)
        certificate = header["certificate"]
        assert header["precision"] == certificate["precision"] == precision
        tolerance = {name: certificate[f"{name}_tolerance"] for name in ("score", "map", "flips")}
        assert tolerance == TOLERANCES[precision]._asdict()
        for figures in certificate["runtimes"].values():
            assert figures["score_difference"] <= tolerance["score"]
            assert figures["map_difference"] <= tolerance["map"]
            assert figures["rank_correlation"] > 0.9
        differences.append(certificate["runtimes"]["onnxruntime"]["score_difference"])
    assert differences[0] < differences[1] < differences[2]


def test_float16_is_stored_and_not_computed(files: dict[str, Path]) -> None:
    plain, half = onnx.load(files["float32"]), onnx.load(files["float16"])
    wide = {tensor.name for tensor in half.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    casts = [node for node in half.graph.node if node.op_type == "Cast" and node.input[0] in wide]
    assert len(wide) == len(casts) > 5
    operations = [Counter(node.op_type for node in model.graph.node) for model in (plain, half)]
    assert set(operations[1] - operations[0]) == {"Cast"}
    kinds = [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)]
    assert kinds == [TensorProto.FLOAT] * 3


def test_halve_keeps_what_would_suffer() -> None:
    """Means are subtracted from something as large as they are; the small and the vast do not fit in float16."""
    large = np.linspace(-2, 2, 512, dtype=np.float32).reshape(16, 32)
    tensors = {"weights": large, "mean": large, "tiny": large * 1e-7, "vast": large * 1e6, "short": large[:2]}
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        *(helper.make_node("MatMul", ["centred", name], [f"{name} out"]) for name in tensors if name != "mean"),
        helper.make_node("Gather", ["weights", "i"], ["picked"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [], [], [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    )
    model = helper.make_model(graph)
    halve(model)
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored == {
        "weights/half": TensorProto.FLOAT16,
        **dict.fromkeys(("mean", "tiny", "vast", "short"), TensorProto.FLOAT),
    }
    assert (model.graph.node[0].op_type, model.graph.node[0].output[0]) == ("Cast", "weights")


def test_int8_is_for_convolutions_of_networks_and_the_search_of_a_bank_alone(files: dict[str, Path]) -> None:
    model = onnx.load(files["int8"])
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    made = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    narrow = [made[node.input[1]].op_type == "DequantizeLinear" for node in convolutions if node.input[1] in made]
    smoothing = [node for node in convolutions if node.name.startswith("/detector/Conv")]
    assert len(smoothing) == 2
    assert sum(narrow) == len(convolutions) - 3 - len(smoothing) > 4
    stem = next(node for node in convolutions if "conv1" in node.name)
    assert all(made[name].op_type != "DequantizeLinear" for name in (stem.input[0], stem.input[1]) if name in made)
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [made[node.input[1]] for node in convolutions if node.input[1] in made]
    per_channel = [scales[node.input[1]].dims for node in weights if node.op_type == "DequantizeLinear"]
    assert all(dims and dims[0] in (64, 128) for dims in per_channel)
    # nothing else reads numbers of 8 bits: OpenVINO would carry them on into distances
    search = next(node for node in model.graph.node if node.op_type == "MatMul" and "flat" in node.output[0])
    for node in model.graph.node:
        if node is not search and node.op_type not in ("Conv", "Relu", "Add", "QuantizeLinear", "DequantizeLinear"):
            assert not [name for name in node.input if name in made and made[name].op_type == "DequantizeLinear"], node
    assert [made[name].op_type for name in search.input] == ["DequantizeLinear"] * 2
    for name in search.input:  # a product of whole numbers: to scale it, or to add norms to it, takes longer
        assert onnx.numpy_helper.to_array(scales[made[name].input[1]]) == 1
    bank = scales[made[search.input[1]].input[0]]
    assert (bank.data_type, len(bank.dims), bank.dims[0] % 4) == (onnx.TensorProto.INT8, 2, 0)
    assert [node.op_type for node in model.graph.node if search.output[0] in node.input] == ["Reshape"]
    assert read_export_header(files["int8"])["batch"] == 1


def test_a_search_that_is_prepared_for_int8_answers_as_before(detector: pg.Detector) -> None:
    images = np.ascontiguousarray(GOOD[:2].transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    model = onnx_graph(detector, 2, "float32", "grid")
    answers = []
    for _ in range(2):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(["score", "map"], {"image": images}))
        found = _searches(model)
    for before, after in zip(*answers, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert found == []  # prepared once, its bank holds no norms any more


@pytest.mark.parametrize(("most", "highest"), [(127, 40), (100, 900_000), (255, 0)])
def test_norms_are_written_in_digits(most: int, highest: int) -> None:
    norms = np.random.default_rng(0).integers(-highest, highest + 1, (2, 3, 1, 5))
    digits = _digits(norms, most)
    assert np.abs(digits).max() <= 127
    assert (most * digits[..., :-1, :].sum(-2) + digits[..., -1, :] == norms[..., 0, :]).all()


@pytest.mark.slow
def test_a_search_that_errs_too_much_stays_in_float32(
    detector: pg.Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precisions, "_digits", lambda numbers, base: np.zeros_like(numbers))  # norms are lost
    detector.export(tmp_path / "m.onnx", GOOD, precision="int8")
    assert read_export_header(tmp_path / "m.onnx")["int8_search"] is False
    model = onnx.load(tmp_path / "m.onnx")
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert not [node for node in products if made.get(node.input[0]) == "DequantizeLinear"]


def test_files_without_thresholds_and_in_bytes(tmp_path: Path) -> None:
    detector = pg.PatchCore(**RESNET, ratio=0.05).fit(GOOD[:6], engine="torch", calibrate=0)
    certificate = detector.export(tmp_path / "m.onnx", GOOD[:6], precision="int8", batch=2, input="uint8", map="full")
    assert certificate["bad"] is None
    assert read_export_header(tmp_path / "m.onnx")["batch"] == 2
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    scores, maps = session.run(["score", "map"], {"image": GOOD[:2]})
    assert maps.shape == (2, SIDE, SIDE)
    expected = detector.predict(GOOD[:2], engine="torch").scores
    np.testing.assert_allclose(scores, expected, rtol=0.2, atol=0.2 * certificate["score_tolerance"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["padim", *(pytest.param(name, marks=pytest.mark.long) for name in ("efficientad", "fastflow"))]
)
def test_other_methods_in_int8(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCES, "int8", Tolerance(1, 1, 1))  # one step of a training says nothing of quality
    cls = METHODS[method]
    settings = cls.configured({"size": SIDE, **cls.quick_settings(8, SIDE)}).configuration()
    least = {"epochs": 1, "steps": 1, "natural": "none"}
    detector = cls.configured({**settings, **{name: value for name, value in least.items() if name in settings}})
    detector.fit(GOOD[:4], engine="torch")
    for precision in ("float32", "int8"):
        detector.export(tmp_path / f"{precision}.onnx", GOOD[:3], precision=precision)
    sizes = [(tmp_path / f"{precision}.onnx").stat().st_size for precision in ("float32", "int8")]
    assert sizes[1] < 0.6 * sizes[0]


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_images_that_were_held_back_set_the_thresholds_of_the_file(
    detector: pg.Detector, files: dict[str, Path]
) -> None:
    before = detector.calibration
    assert before is not None
    assert before.source == "held back"
    inputs = np.ascontiguousarray(GOOD.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    for precision in ("float16", "int8"):
        after = calibration_of(files[precision])
        session = onnxruntime.InferenceSession(files[precision], providers=["CPUExecutionProvider"])
        own = [float(session.run(["score"], {"image": image[None]})[0][0]) for image in inputs]
        assert after.scores != before.scores
        assert set(np.float32(after.scores).round(5)) <= set(np.float32(own).round(5))
        assert after.image_threshold == sorted(after.scores)[-1 - (after.r or 0)]
        assert (after.promise, after.false_alarm_bound, after.n) == ("marginal", before.false_alarm_bound, before.n)
        assert read_export_header(files[precision])["certificate"]["thresholds"] == "file"
    assert calibration_of(files["float32"]) == before
    assert read_export_header(files["float32"])["certificate"]["thresholds"] == "torch"


def test_images_that_set_the_ranges_set_no_threshold(
    detector: pg.Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def spied(model: Any, inputs: Any, search: bool) -> Any:
        seen[:] = inputs
        return original(model, iter(seen), search)

    original = exports.quantised
    monkeypatch.setattr(exports, "quantised", spied)
    detector.export(tmp_path / "all.onnx", GOOD, precision="int8")
    assert len(seen) == 2 * 18  # those that were fitted, each with a defect, too, and not the 6 that were held back
    assert len({one["image"].tobytes() for one in seen}) == len(seen)
    seen.clear()
    held = detector.provenance.unseen(pg.data.as_table(GOOD))
    assert len(held) == 6
    certificate = detector.export(tmp_path / "held.onnx", held, precision="int8")
    assert (len(seen), certificate["thresholds"]) == (2 * 6, "torch")
    after = calibration_of(tmp_path / "held.onnx")
    assert (after.promise, after.false_alarm_bound) == ("estimate", None)


def test_left_out_scores_need_the_fit(tmp_path: Path) -> None:
    detector = pg.PatchCore(**RESNET, ratio=0.05).fit(GOOD[:12], engine="torch")
    before = detector.calibration
    assert before is not None
    assert before.source == "left out"
    certificate = detector.export(tmp_path / "m.onnx", GOOD[:12], precision="float16")
    after = calibration_of(tmp_path / "m.onnx")
    assert certificate["thresholds"] == "torch"
    assert (after.image_threshold, after.scores) == (before.image_threshold, before.scores)
    assert "this is said of the model in float32, and this file gives other scores in float16" in after.sentence


SCORES = [1.0, 4.0, 2.0, 3.0, 5.0]
AFTER = [1.5, 4.5, 2.5, 3.5, 6.0]
NAMES = [f"{i}.png" for i in range(5)]


def evidence(n: int = 5) -> Evidence:
    return Evidence([float(i) for i in range(n)], [10.0 + i for i in range(n)])


def test_calibration_images_are_found_by_their_scores() -> None:
    known = usual_threshold(SCORES, SCORES)
    assert found_among(known, [9.0, *(score * (1 + 1e-5) for score in reversed(SCORES))]) == [5, 4, 3, 2, 1]
    assert found_among(known, SCORES[:4]) is None
    assert found_among(known, [*SCORES[:4], 5.1]) is None
    assert found_among(usual_threshold([], []), SCORES) is None
    twice = usual_threshold([1.0, 1.0001], [1.0, 1.0])
    assert sorted(found_among(twice, [1.0002, 1.0]) or []) == [0, 1]


def test_thresholds_keep_their_rank() -> None:
    usual = usual_threshold(SCORES, SCORES, settings="x", names=NAMES)
    after = transferred(usual, AFTER, AFTER, NAMES, "int8")
    assert after == usual_threshold(AFTER, AFTER, settings="x", names=NAMES)
    assert "4.png sets it (without it: 4.5)" in after.sentence

    wish = Wish("tolerance", 0.2, 0.9)
    before = promised(evidence(40), wish)
    doubled = [2.0 * i for i in range(40)]
    after = transferred(before, doubled, doubled, [""] * 40, "int8")
    assert before.r
    assert after.image_threshold == doubled[-1 - before.r]
    assert after.pixel_threshold == doubled[-1]
    assert replace(before, scores=(), peaks=(), image_threshold=0, pixel_threshold=0) == replace(
        after, scores=(), peaks=(), image_threshold=0, pixel_threshold=0
    )
    groups = ["a", "a", None, None, None]
    before = promised(replace(evidence(), groups=groups), Wish("marginal", 0.5))
    after = transferred(before, AFTER, AFTER, NAMES, "int8")
    assert after.image_threshold == sorted([4.5, 2.5, 3.5, 6.0])[-1 - (before.r or 0)]


def test_numbers_that_somebody_chose_stay() -> None:
    before = fixed_value(evidence(), 2.5)
    after = transferred(before, [5.0] * 4 + [0.0], [1.0] * 5, NAMES, "int8")
    assert after.image_threshold == 2.5
    assert "4 of 5 good images exceed it" in after.sentence
    assert after.pixel_threshold == 1.0


def test_what_cannot_go_over_promises_nothing() -> None:
    before = promised(evidence(40), Wish("tolerance", 0.2, 0.9))
    after = other_scores(before, "int8")
    assert (after.promise, after.false_alarm_bound, after.confidence) == ("estimate", None, None)
    assert after.image_threshold == before.image_threshold
    assert after.sentence.endswith("this file gives other scores in int8, so that it promises nothing")
    between = replace(before, promise="f1", image_threshold=before.image_threshold + 0.5)  # type: ignore[operator]
    assert transferred(between, list(before.scores), list(before.peaks), [""] * 40, "int8") == other_scores(
        between, "int8"
    )


# -- the loss on labelled images ---------------------------------------------------------------------------------------


def labelled() -> tuple[list[Row], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Three good and three defective images of 8x8 pixels; the other side finds one defect less."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :4] = 1
    rows = [Row(f"{i}", "test", int(i >= 3), mask=mask if i >= 3 else None, pixels=GOOD[0]) for i in range(6)]
    maps = np.zeros((6, 2, 2), np.float32)
    maps[3:, 0, 0] = 1
    scores = np.array([0.1, 0.2, 0.3, 1, 1, 1], np.float32)
    worse, lower = maps.copy(), scores.copy()
    worse[5, 0, 0], lower[5] = 0, 0.15
    return rows, {"torch": (scores, maps), "onnxruntime": (scores, maps), "openvino": (lower, worse)}


def test_the_loss_is_that_of_the_worse_runtime() -> None:
    rows, answers = labelled()
    comparison = Comparison(Preprocess((8, 8)), None)
    for part in (slice(0, 4), slice(4, 6)):
        sides = {name: (scores[part], maps[part]) for name, (scores, maps) in answers.items()}
        comparison.add(rows[part], [(8, 8)] * len(rows[part]), sides)
    figures = comparison.figures(0.01)
    assert figures["images"] == 6
    assert figures["torch"]["image_auroc"] == figures["onnxruntime"]["image_auroc"] == 1
    assert figures["openvino"]["image_auroc"] == pytest.approx(7 / 9)
    assert figures["loss"]["image_auroc"] == pytest.approx(2 / 9)
    assert figures["loss"]["aupro_30"] == pytest.approx(figures["torch"]["aupro_30"] - figures["openvino"]["aupro_30"])
    assert figures["loss"]["aupro_30"] > 0.1
    alone = Comparison(Preprocess((8, 8)), None)
    alone.add(rows[:3], [(8, 8)] * 3, {name: (s[:3], m[:3]) for name, (s, m) in answers.items()})
    with pytest.raises(DataError, match="3 good and 0 defective images and 0 masks: expected good and defective"):
        alone.figures(0.01)


@pytest.mark.parametrize(("loss", "kept"), [(0.011, False), (0.01, True), (-0.2, True)])
def test_a_file_that_loses_more_is_refused(loss: float, kept: bool) -> None:
    sound = RuntimeFigures(0.0, 0.0, 0.0, 0, 0, 1.0, "1")
    accuracy = {"images": 9, "loss": {"image_auroc": 0.0, "aupro_30": loss}, "max_loss": 0.01}
    certificate = Certificate("given", 1, 1, 0, {"onnxruntime": sound}, "1", "int8", "file", accuracy)
    if kept:
        certificate.check()
        return
    with pytest.raises(InputError, match=r"not kept, for on 9 labelled images it loses .*AUPRO.* 0.0110 against torch"):
        certificate.check()


def test_some_verdicts_may_flip_in_int8_and_none_in_float16() -> None:
    flipped = RuntimeFigures(0.05, 0.05, 0.0, 2, 0, 1.0, "1")
    Certificate("given", 50, 50, 0, {"a": flipped}, "1", "int8").check()
    more = replace(flipped, flips=3)
    with pytest.raises(InputError, match=r"3 verdicts of 100 flipped \(allowed 2\)\. Export it with precision float16"):
        Certificate("given", 50, 50, 0, {"a": more}, "1", "int8").check()
    half = RuntimeFigures(0.001, 0.001, 0.0, 1, 0, 1.0, "1")
    with pytest.raises(InputError, match=r"1 verdicts of 100 flipped \(allowed 0\)\. Export it with precision float32"):
        Certificate("given", 50, 50, 0, {"a": half}, "1", "float16").check()


def test_what_is_asked_wrongly_says_why(detector: pg.Detector, tmp_path: Path) -> None:
    for arguments, message in (
        ({"precision": "int4"}, "precision='int4': expected one of float32, float16, int8"),
        ({"precision": "int8", "data": None}, "takes the ranges of its numbers from good images"),
        ({"precision": "int8", "data": []}, "no good image for precision='int8'"),
        ({"max_loss": float("nan")}, "max_loss=nan: expected a number from 0 on"),
        ({"max_loss": -1}, "max_loss=-1: expected a number from 0 on"),
        ({"test": GOOD[:2]}, "the test has 0 good and 0 defective images"),
    ):
        with pytest.raises(InputError, match=message) as error:
            detector.export(**{"path": tmp_path / "m.onnx", "data": GOOD[:2], **arguments})  # type: ignore[arg-type]
        assert len(str(error.value)) < 500
    shallow = pg.PatchCore(**{**RESNET, "layers": ["maxpool"]}, ratio=0.5).fit(GOOD[:3], engine="torch")
    with pytest.raises(InputError, match="convolutions beyond the first three"):
        shallow.export(tmp_path / "m.onnx", GOOD[:3], precision="int8")
    assert not list(tmp_path.iterdir())


# -- the command -------------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["pickglass", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_command_and_info(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = pg.PatchCore(**RESNET, ratio=0.05).fit(pg.load_dataset(small_dataset), engine="torch", calibrate=0.3)
    model, output = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    detector.save(model)
    assert command(monkeypatch, "export", model, "-o", output, "--precision", "int8") == 2
    assert "name some (data, --data)" in capsys.readouterr().err
    given = ("export", model, "-o", output, "--data", small_dataset, "--precision", "int8", "--test", small_dataset)
    assert command(monkeypatch, *given, "--max-loss", 1, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    header = read_export_header(output)
    assert (result["precision"], result["batch"]) == ("int8", 1)
    assert set(result["certificate"]["accuracy"]["loss"]) == {"image_auroc", "aupro_30"}
    assert result["sentence"] == header["calibration"]["sentence"]
    show_export(result)
    shown = capsys.readouterr().out
    assert "MB, int8, ONNX opset 16)" in shown
    assert f"image (1, 3, {SIDE}, {SIDE}) float32" in shown
    assert "The thresholds were set anew" in shown
    assert "On 8 labelled images, of the model and of the file (image AUROC: torch " in shown
    assert "About the threshold: on average at most" in shown
    assert command(monkeypatch, "info", output) == 0
    shown = capsys.readouterr().out
    assert "Its precision is int8." in shown
    assert "On 8 labelled images" in shown
