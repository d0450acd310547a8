"""``pickglass export``: one ONNX file that answers as the detector does, in onnxruntime and OpenVINO alike."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from PIL import Image

import pickglass as pg
from least_network import LEAST_LAYERS, least_backbone
from least_training import LEAST
from pickglass.cli.main import main
from pickglass.data import Row, Table, resize_map
from pickglass.detectors import certificate as certificates
from pickglass.detectors.certificate import Certificate, RuntimeFigures
from pickglass.detectors.onnx_graph import OPSET, onnx_graph
from pickglass.errors import DataError, InputError, MissingExtra, ModelFileError, NotFitted
from pickglass.methods import METHODS
from pickglass.runtime.export_file import EXPORT_FORMAT, read_export_header
from pickglass.runtime.exported import array_from_json
from pickglass.runtime.session import Answer, RuntimeName, Session
from pickglass.testing import textures

DOCS = Path(__file__).parents[1] / "docs"
SIDE = 64
RESNET: dict[str, Any] = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "weights": "random", "size": SIDE}
FORMS = ("plain", "tiled", "shared heads", "region of interest")

# What the graphs may be made of. TensorRT 8.4 reads all of these: docs/operators.md of github.com/onnx/onnx-tensorrt,
# at commit 009d654, has "Y" for them. What it lacks, such as Mod, NonZero, OneHot and Unique, is not among them.
_NAMES = """
    Abs Add And ArgMax ArgMin Atan AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape
    Conv ConvTranspose DequantizeLinear Div Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gemm
    GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity InstanceNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mul Neg Not Or Pad Pow PRelu QuantizeLinear Range
    ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    Selu Shape Sigmoid Sign Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze
    Where Xor
"""
TENSORRT = set(_NAMES.split())


def canvases(n: int, seed: int = 5, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """(n, 3, H, W) float32 in 0..1, of 8 bits."""
    images = textures(n, max(size), seed)[:, : size[0], : size[1]]
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def runs(model: onnx.ModelProto | Path) -> list[Any]:
    """Functions from inputs to (score, map), of both runtimes."""
    content = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def openvinos(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        answer = compiled(inputs)
        return [np.array(answer["score"]), np.array(answer["map"])]

    return [lambda inputs: session.run(["score", "map"], inputs), openvinos]


def expect_parity(detector: pg.Detector, model: onnx.ModelProto, images: np.ndarray, keep: Any = None) -> None:
    with torch.no_grad():
        given = () if keep is None else (torch.from_numpy(keep),)
        scores, maps = (x.numpy() for x in detector(torch.from_numpy(images), *given))
    for run in runs(model):
        got = run({"image": images} if keep is None else {"image": images, "keep": keep})
        assert got[0].shape == scores.shape
        assert got[1].shape == maps.shape
        np.testing.assert_allclose(got[0], scores, rtol=1e-4, atol=1e-5 * np.ptp(maps))
        np.testing.assert_allclose(got[1], maps, atol=1e-4 * np.ptp(maps))


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly a graph is compiled twice here, and to keep each takes a tenth of the time."""
    monkeypatch.setenv("PICKGLASS_COMPILED", "off")


@pytest.fixture(scope="module")
def detector() -> pg.Detector:
    return pg.PatchCore(**RESNET, ratio=0.05).fit(textures(10, SIDE), engine="torch")


@pytest.fixture(scope="module")
def exported(detector: pg.Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "bottle.onnx"
    detector.export(path, textures(6, SIDE, seed=1))
    return path


# -- the graph ---------------------------------------------------------------------------------------------------------


def test_one_file_takes_any_number_of_images(detector: pg.Detector, exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    for n in (1, 2, 3, 5):
        expect_parity(detector, model, canvases(n))


def test_forward_is_what_predict_says(detector: pg.Detector, exported: Path) -> None:
    images = textures(3, SIDE, seed=7)
    prediction = detector.predict(images, engine="torch")
    inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    for run in runs(exported):
        scores, maps = run({"image": inputs})
        np.testing.assert_allclose(scores, prediction.scores, rtol=1e-4)
        np.testing.assert_allclose(maps, np.stack(prediction.maps), rtol=1e-3, atol=1e-4)


def test_a_fixed_number_of_images(detector: pg.Detector) -> None:
    model = onnx_graph(detector, 2, "float32", "grid")
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, SIDE, SIDE]
    expect_parity(detector, model, canvases(2))
    assert "Shape" not in {node.op_type for node in model.graph.node}


def test_bytes_in_and_the_full_map_out(detector: pg.Detector, exported: Path) -> None:
    model = onnx_graph(detector, None, "uint8", "full")
    pixels = textures(3, SIDE, seed=8)
    inputs = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    for run, plain in zip(runs(model), runs(exported), strict=True):
        (scores, maps), (expected, grids) = run({"image": pixels}), plain({"image": inputs})
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        assert maps.shape == (3, SIDE, SIDE)
        for full, grid in zip(maps, grids, strict=True):  # what the lab draws for an image of the canvas's size
            np.testing.assert_allclose(full, resize_map(grid, (SIDE, SIDE)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [f"letterbox:{SIDE}", pytest.param(f"shorter:{SIDE}", marks=pytest.mark.long)])
def test_what_an_image_leaves_empty_is_told_to_the_graph(size: str, tmp_path: Path) -> None:
    wide = textures(8, 96)[:, :72]  # 72x96
    detector = pg.PatchCore(**{**RESNET, "size": size}, ratio=0.05).fit(wide, engine="torch")
    certificate = detector.export(tmp_path / "m.onnx", wide)
    assert certificate["runtimes"]["onnxruntime"]["score_difference"] < 1e-4
    assert read_export_header(tmp_path / "m.onnx")["keep"] is True
    other = textures(1, 96)[0, :48, :60]
    keep = detector.preprocess.kept((48, 60))
    assert keep is not None
    assert not keep.all()
    expected = detector.predict(other, engine="torch").scores[0]
    for run in runs(tmp_path / "m.onnx"):
        score, _ = run({"image": detector.preprocess(other)[None], "keep": keep[None]})
        assert score[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_layers_whose_grids_do_not_come_out_even(tmp_path: Path) -> None:
    good = textures(8, 70)
    detector = pg.PaDiM(**{**RESNET, "size": (70, 62)}, dims=8).fit(_rows(good, tmp_path), engine="torch")
    expect_parity(detector, onnx_graph(detector, None, "float32", "grid"), canvases(3, size=(70, 62)))


def _rows(images: np.ndarray, folder: Path) -> Table:
    """Rows whose region of interest is their left three eighths."""
    region = np.zeros(images.shape[1:3], np.uint8)
    region[:, : 3 * images.shape[2] // 8] = 255
    Image.fromarray(region).save(folder / "roi.png")
    rows = [
        Row(f"array:{i}", "train", 0, pixels=np.ascontiguousarray(image), roi=str(folder / "roi.png"))
        for i, image in enumerate(images)
    ]
    return Table(rows)


# Methods whose graph holds a network that is made of the backbone's layers, one that searches a bank, and one that has
# a backbone of its own are exported with the backbone that users get; what others make of its maps is the same for any.
USUAL = ("patchcore", "stfpm", "reverse_distillation", "efficientad")


def small(method: str, form: str, folder: Path) -> tuple[pg.Detector, np.ndarray]:
    """A fitted detector with as little training as there can be, and images."""
    cls = METHODS[method]
    settings = cls.configured({"size": SIDE, **cls.quick_settings(8, SIDE)}).configuration()
    least = {name: value for name, value in LEAST.items() if name in settings}
    if "steps" in settings and "epochs" not in "".join(least):
        least["steps"] = 1
    if not (method == "efficientad" or (form == "plain" and method in USUAL)):
        reads_one = method == "asymmetric_student_teacher"
        least |= {"backbone": least_backbone(), "layers": LEAST_LAYERS[1:] if reads_one else LEAST_LAYERS}
    detector = cls.configured({**settings, **{name: value for name, value in least.items() if name in settings}})
    good = textures(4, SIDE)
    wide = np.concatenate([good, good[:, ::-1], good[:, :, ::-1]], axis=2)
    if form == "plain":
        return detector.fit(good, engine="torch"), good
    tiles = 3 if form == "shared heads" else 2
    heads: Any = {"heads": 2} if form == "shared heads" else {}
    detector = detector.tiled(size=(SIDE, tiles * SIDE), tile=(SIDE, SIDE), stride=(SIDE, SIDE), **heads)
    images = np.ascontiguousarray(wide[:, :, : tiles * SIDE])
    return detector.fit(images if form != FORMS[3] else _rows(images, folder), engine="torch"), images


# Tiles are cut and joined by the same code for all methods. Two tiles with a region of interest are tiles too, and one
# method that counts and one that trains prove the other forms. Of the students of a teacher's features STFPM and
# reverse distillation are tried, and of what a combination is made of each part.
CASES = [(m, f) for m in METHODS for f in FORMS if f in (FORMS[0], FORMS[3]) or m in ("patchcore", "fastflow")]
# what of these adds tiles to a method whose plain form is exported anyway, or is made like one that is
LONG = [
    *((method, FORMS[0]) for method in ("efficientad", "asymmetric_student_teacher", "combined")),
    ("patchcore", "tiled"),
    *(case for case in CASES if case[1] == FORMS[3] and case[0] not in ("patchcore", "stfpm")),
    ("fastflow", "tiled"),
    ("fastflow", "shared heads"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "form"), [pytest.param(*case, marks=pytest.mark.long) if case in LONG else case for case in CASES]
)
def test_every_method_in_every_form(method: str, form: str, tmp_path: Path) -> None:
    detector, images = small(method, form, tmp_path)
    # an open number of images costs a second trace; the plain form of these methods has it
    batch = 3 if form == FORMS[3] and METHODS[method].trains else None
    images = images[:2]
    certificate = detector.export(tmp_path / "m.onnx", images, batch=batch)
    assert set(certificate["runtimes"]) == {"onnxruntime", "openvino"}
    assert certificate["good"] == certificate["painted"] == len(images)
    for figures in certificate["runtimes"].values():
        assert figures["score_difference"] < 1e-4
        assert figures["map_difference"] < 1e-3
        assert figures["flips"] == 0
    model = onnx.load(tmp_path / "m.onnx")
    assert {node.op_type for node in model.graph.node} <= TENSORRT
    expect_parity(detector, model, canvases(3, size=images.shape[1:3]))


SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "eq. 7": ("patchcore", {"reweight": 3, "top_share": 0.0}, {}),
    "places": ("patchcore", {"position_weight": 0.5, "place_scale": True}, {}),
    "level": ("patchcore", {"level_shift": True}, {}),
    "both, tiled": ("patchcore", {"place_scale": True, "level_shift": True}, {"stride": 40}),
    "channels": ("patchcore", {"dims": 16, "top_k": 3, "top_share": 0.0}, {}),
    "projection": ("padim", {"dims": 8, "reduce": "orthogonal"}, {}),
    "overlap": ("patchcore", {}, {"stride": 40, "join": "seams", "image_score": "top_k", "top_share": 0.0}),
    "thumbnail": ("patchcore", {}, {"stride": 40, "edges": "pad", "normalise": "position", "thumbnail": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_change_the_graph(name: str) -> None:
    method, settings, tiling = SETTINGS[name]
    own = {"top_share": tiling.pop("top_share")} if "top_share" in tiling else {}
    # what these add to the graph is the same for any backbone
    network = {"backbone": least_backbone(), "layers": LEAST_LAYERS, "size": SIDE}
    detector = METHODS[method].configured({**network, **settings, **own})
    side = SIDE
    if tiling:
        side = 96
        detector = detector.tiled(size=(side, side), tile=(SIDE, SIDE), **{**tiling, "stride": (40, 40)})
    pictures = textures(10, side)
    if settings.get("level_shift"):  # each part in two lights
        pictures = np.concatenate([pictures // 2, pictures])
    good = [Row(f"{i}.png", "train", 0, group=str(i % 10), pixels=picture) for i, picture in enumerate(pictures)]
    detector.fit(Table(good), engine="torch", calibrate=0 if "eq" in name else None)
    assert (detector.place_gain is not None) == bool(settings.get("place_scale"))
    assert (detector.level_line is not None) or not settings.get("level_shift")
    model = onnx_graph(detector, None, "float32", "grid")
    assert {node.op_type for node in model.graph.node} <= TENSORRT
    expect_parity(detector, model, canvases(3, size=(side, side)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "layers", "batch"),
    [
        ("mobilenet_v3_small", ["features.3", "features.8"], None),
        pytest.param("resnet50", ["layer2", "layer3"], 3, marks=pytest.mark.long),  # resnet18 is in most tests here
    ],
)
def test_other_backbones(backbone: str, layers: list[str], batch: int | None) -> None:
    detector = pg.PatchCore(backbone=backbone, layers=layers, weights="random", size=SIDE, ratio=0.1)
    detector.fit(textures(6, SIDE), engine="torch")
    expect_parity(detector, onnx_graph(detector, batch, "float32", "grid"), canvases(3))


@pytest.mark.slow
def test_a_transformer_is_exported_at_any_size() -> None:
    """What it makes of the size, by an operation that ONNX does not have, is a constant."""
    vit: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "layers": ["block2"], "weights": "random"}
    size = (SIDE, SIDE + 16)  # neither square nor what it was trained at
    detector = pg.PatchCore(**vit, size=size, ratio=0.5).fit(textures(3, SIDE), engine="torch")
    expect_parity(detector, onnx_graph(detector, None, "float32", "grid"), canvases(3, size=size))


# -- the certificate ---------------------------------------------------------------------------------------------------


def test_the_certificate_says_what_was_compared(detector: pg.Detector, exported: Path) -> None:
    certificate = read_export_header(exported)["certificate"]
    assert (certificate["images"], certificate["good"], certificate["painted"]) == ("given", 6, 6)
    assert 0 <= certificate["bad"] <= 12
    for figures in certificate["runtimes"].values():
        assert 0 <= figures["score_difference"] <= certificate["score_tolerance"] == 1e-4
        assert 0 <= figures["map_difference"] <= certificate["map_tolerance"] == 1e-3
        assert figures["flips"] == 0
        assert 0.99 < figures["rank_correlation"] <= 1


def test_without_images_generated_ones_are_named(
    detector: pg.Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_WANTED", 5)
    certificate = detector.export(tmp_path / "m.onnx", batch=2)
    assert (certificate["images"], certificate["good"], certificate["painted"]) == ("generated", 5, 5)


def test_a_file_that_answers_differently_is_not_kept(
    detector: pg.Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = certificates.open_session

    def wrong(name: RuntimeName, content: bytes, threads: int | None) -> Session:
        session = original(name, content, threads)
        if name == "onnxruntime":
            return session

        def off(inputs: Any) -> Answer:
            answer = session.run(inputs)
            return answer._replace(score=answer.score * 1.01)

        return session._replace(run=off)

    monkeypatch.setattr(certificates, "open_session", wrong)
    (tmp_path / "m.onnx").write_bytes(b"what was there")
    with pytest.raises(InputError, match=r"not kept, for in openvino it answers differently.*allowed 1e-04") as error:
        detector.export(tmp_path / "m.onnx", textures(4, SIDE))
    assert len(str(error.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"what was there"


@pytest.mark.parametrize(
    "figures",
    [
        (2e-4, 0.0, 0.0, 0),
        (0.0, 2e-3, 0.0, 0),
        (0.0, 0.0, 2e-3, 0),
        (0.0, 0.0, 0.0, 1),
        (float("nan"), 0.0, 0.0, 0),
        (float("inf"), 0.0, 0.0, 0),
    ],
)
def test_each_figure_counts(figures: tuple[float, float, float, int]) -> None:
    sound = RuntimeFigures(1e-5, 1e-5, 0.0, 0, 1, 1.0, "1")
    Certificate("given", 1, 1, 0, {"onnxruntime": sound}, "1").check()
    with pytest.raises(InputError, match="not kept"):
        Certificate("given", 1, 1, 0, {"a": sound, "b": RuntimeFigures(*figures, 0, None, "1")}, "1").check()


def test_flips_and_scores_at_the_threshold_are_told_apart() -> None:
    from pickglass.calibration.promises import usual_threshold

    calibration = usual_threshold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    compared = certificates._Compared()
    expected, got = np.array([3.0, 2.9, 1.0]), np.array([3.00001, 3.1, np.nan])
    compared.add([expected, np.ones((3, 1, 1))], [got, np.ones((3, 1, 1))])
    figures = compared.figures(calibration, calibration, "1", 1e-4)
    assert (figures.flips, figures.at_threshold) == (2, 1)
    assert figures.score_difference == np.inf
    assert not figures.within(certificates.TOLERANCES["float32"], 3)


def test_the_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    for kinds in (3, 1000):  # with many equal scores, and with hardly any
        a = rng.integers(0, kinds, 50).astype(np.float64)
        b = a + rng.integers(0, kinds, 50)
        compared = certificates._Compared()
        compared.add([a, np.ones((50, 1, 1))], [b, np.ones((50, 1, 1))])
        found = compared.figures(None, None, "1", 1e-4).rank_correlation
        assert found == pytest.approx(spearmanr(a, b).statistic)


def test_a_verdict_between_two_thresholds_may_flip_too() -> None:
    from pickglass.calibration.promises import set_by_hand, usual_threshold

    calibration = set_by_hand(usual_threshold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), unsure=2.0)
    compared = certificates._Compared()
    expected, got = np.array([2.0, 1.9, 2.5, 3.0]), np.array([2.00001, 2.1, 2.6, 3.00001])
    compared.add([expected, np.ones((4, 1, 1))], [got, np.ones((4, 1, 1))])
    figures = compared.figures(calibration, calibration, "1", 1e-4)
    assert (figures.flips, figures.at_threshold) == (1, 2)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_header_has_all_that_is_known(detector: pg.Detector, exported: Path) -> None:
    header = read_export_header(exported)
    calibration = detector.current_calibration()
    assert calibration is not None
    assert header["format"] == EXPORT_FORMAT
    assert header["method"] == "patchcore"
    assert header["configuration"] == json.loads(json.dumps(detector.configuration()))
    assert pg.data.Preprocess.from_json(header["preprocess"]) == detector.preprocess
    assert pg.Calibration.from_json(header["calibration"]) == calibration
    assert len(header["calibration"]["scores"]) == 10
    assert header["provenance"]["data_sha256"] == detector.provenance.data_sha256
    assert (header["opset"], header["batch"], header["input"], header["map"]) == (OPSET, None, "float32", "grid")
    assert (header["keep"], header["canvas"]) == (False, [SIDE, SIDE])
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["pickglass"]) == header


@pytest.mark.slow
def test_the_reference_of_drift_goes_along(tmp_path: Path) -> None:
    detector = pg.PatchCore(**RESNET, ratio=0.05).fit(textures(8, SIDE), engine="torch", observers=[pg.DriftSample()])
    assert detector.reference is not None
    detector.export(tmp_path / "m.onnx", textures(2, SIDE))
    stored = read_export_header(tmp_path / "m.onnx")["drift_reference"]
    for name, array in detector.reference.tensors().items():
        assert (array_from_json(stored[name]) == array).all()


@pytest.mark.slow
def test_what_cannot_be_exported_says_why(detector: pg.Detector, tmp_path: Path, monkeypatch: Any) -> None:
    for arguments, message in (
        ({"path": tmp_path / "m.pt"}, r"ends in \.onnx"),
        ({"path": tmp_path / "no" / "m.onnx"}, "existing folder"),
        ({"input": "int8"}, "input='int8': expected one of float32, uint8"),
        ({"map": "large"}, "map='large': expected one of grid, full"),
        ({"batch": 0}, "batch=0: expected a number of images from 1 on"),
        ({"data": []}, "no good image for the certificate"),
    ):
        with pytest.raises(InputError, match=message):
            detector.export(**{"path": tmp_path / "m.onnx", "data": textures(2, SIDE), **arguments})  # type: ignore[arg-type]
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"certificate cannot be read:\n.*broken\.png"):
        detector.export(tmp_path / "m.onnx", [tmp_path / "broken.png"])
    with pytest.raises(NotFitted):
        pg.PatchCore(**RESNET).export(tmp_path / "m.onnx")
    monkeypatch.setattr("pickglass.detectors.onnx_graph._MOST_BYTES", 1000)
    with pytest.raises(InputError, match="a file of ONNX holds 2 GB"):
        detector.export(tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]


@pytest.mark.parametrize(("module", "extra"), [("onnx", "train"), ("openvino", "openvino")])
def test_a_missing_package_is_named(
    detector: pg.Detector, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it then fails as if it were not there
    with pytest.raises(
        MissingExtra, match=rf'needs {module}, which is not installed: pip install "pickglass\[{extra}\]"'
    ):
        detector.export(tmp_path / "m.onnx", textures(2, SIDE))


def test_other_files_are_told_apart(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    path = tmp_path / "m.onnx"
    for change, message in (
        ({}, "'pickglass export' did not write it"),
        ({"pickglass": "{"}, "its header is damaged"),
        ({"pickglass": '{"format": 99}'}, "format 99, this pickglass reads format 1: upgrade pickglass"),
        ({"pickglass": '{"format": 1}'}, "its header lacks"),
    ):
        onnx.helper.set_model_props(model, change)
        onnx.save(model, path)
        with pytest.raises(ModelFileError, match=message):
            read_export_header(path)
    path.write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(ModelFileError, match="not a readable ONNX file, or cut short"):
        read_export_header(path)
    with pytest.raises(ModelFileError, match="no such file"):
        read_export_header(tmp_path / "none.onnx")


# -- the command -------------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["pickglass", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_the_command_and_info(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = pg.PatchCore(**RESNET, ratio=0.05).fit(pg.load_dataset(small_dataset), engine="torch", calibrate=0.3)
    model, output = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    detector.save(model)
    assert command(monkeypatch, "export", model, "-o", output, "--data", small_dataset, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(output)
    assert (result["certificate"]["images"], result["certificate"]["good"]) == ("given", 16)
    assert result["missing"] == []
    assert command(monkeypatch, "export", model, "-o", output) == 2
    assert "exists already" in capsys.readouterr().err
    options = ("--data", small_dataset, "--force", "--batch", 1, "--input", "uint8", "--map", "full")
    assert command(monkeypatch, "export", model, "-o", output, *options) == 0
    shown = capsys.readouterr().out
    assert f"image (1, {SIDE}, {SIDE}, 3) uint8" in shown
    assert "Certificate: 16 good images, and 16 with painted defects" in shown
    assert command(monkeypatch, "info", output) == 0
    shown = capsys.readouterr().out
    assert "is a model of the method patchcore, exported by pickglass" in shown
    assert "An image is bad above a score of" in shown
    assert "onnxruntime" in shown
    assert "rank correlation" in shown
    assert command(monkeypatch, "info", output, "--json") == 0
    assert json.loads(capsys.readouterr().out)["about"]["certificate"]["good"] == 16


def test_the_example_of_the_docs(
    detector: pg.Detector,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "export.md").read_text(), flags=re.DOTALL)
    Image.fromarray(textures(1, 90, seed=9)[0, :80]).save(tmp_path / "part.png")
    (tmp_path / "bottle.onnx").write_bytes(exported.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/export.md", "exec"), {})
    verdict, score = capsys.readouterr().out.split()
    found = detector.predict(tmp_path / "part.png", engine="torch")
    assert verdict == found.verdict(0)
    assert float(score) == pytest.approx(found.scores[0], rel=1e-4)
