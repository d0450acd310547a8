"""``pickglass bench`` times what ``predict`` does and says what it cannot know. No time is asserted."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import pickglass as pg
from page_reader import PageReader
from pickglass.app.bench import bench as benches
from pickglass.app.bench import machine as machines
from pickglass.app.bench.bench import BenchRequest, bench
from pickglass.app.bench.flops import gflop_of, graph_gflop
from pickglass.app.bench.images import images_for, model_at
from pickglass.app.bench.measure import Job, measured, times_of
from pickglass.app.bench.stages import Pass, stages_of, timed
from pickglass.app.bench.suite import write_suite
from pickglass.app.jobs.executors import LocalExecutor
from pickglass.app.jobs.peak import peak_mb
from pickglass.app.results import BENCH_STAGES, BenchResult
from pickglass.cli.main import main
from pickglass.data import Row, Table, read_image
from pickglass.errors import DataError, InputError, ModelFileError
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.export_file import read_export, replace_header
from pickglass.testing import textures

SIDE = 64
RESNET: dict[str, Any] = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "weights": "random", "size": SIDE}
QUICK = BenchRequest(warm_up=1, repeat=4, batch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Path:
    """A model of the small data set, as model file and exported, for any number of images and for three."""
    root = tmp_path_factory.mktemp("bench")
    detector = pg.PatchCore(**RESNET, ratio=0.05).fit(pg.load_dataset(small_dataset), engine="torch", calibrate=0.2)
    detector.save(root / "m.safetensors")
    detector.export(root / "m.onnx", textures(2, SIDE))
    detector.export(root / "three.onnx", textures(2, SIDE), batch=3, input="uint8")
    return root


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process: a new one for each run takes seconds, and one test below has them."""
    monkeypatch.setattr(benches, "LocalExecutor", lambda apart: LocalExecutor())
    monkeypatch.setattr(benches, "describe_machine", some_machine)  # whose peak takes a second


def some_machine(device: str) -> Iterator[dict[str, Any]]:
    yield {
        "cpu": "a CPU",
        "cores": 1,
        "threads": None,
        "gpu": None,
        "gpu_peak_gflops": None,
        "load": None,
        "peak_gflops": 1.0,
        "peak_library": "numpy",
        "versions": {},
    }


def rows(folder: Path) -> tuple[Row, ...]:
    return tuple(pg.load_dataset(folder).test)


# -- what is timed is what predict does --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "engine", "stages"),
    [
        ("m.safetensors", "torch", ["decode", "prepare", "backbone", "method", "map"]),
        ("m.onnx", "onnxruntime", ["decode", "prepare", "graph", "map"]),
        ("three.onnx", "openvino", ["decode", "prepare", "graph", "map"]),
    ],
)
def test_the_stages_give_what_predict_gives(
    folder: Path, small_dataset: Path, name: str, engine: Any, stages: list[str]
) -> None:
    model, compute = pg.load(folder / name), ComputeOptions(engine=engine)
    made = stages_of(model, compute)
    assert [stage.name for stage in made] == stages
    images = Pass(rows(small_dataset)[:2])
    seconds = timed(made, images)
    assert seconds.shape == (len(stages),)
    assert (seconds >= 0).all()
    wanted = model.predict(Table(images.rows), **compute.arguments())
    for found, expected in zip(images.found, wanted, strict=True):
        assert found.score == pytest.approx(expected.score, rel=1e-5)
        np.testing.assert_allclose(found.full_map(), expected.full_map(), rtol=1e-4, atol=1e-5)


def test_a_run_says_all_that_was_measured(folder: Path, small_dataset: Path) -> None:
    test = rows(small_dataset)
    job = Job(str(folder / "m.onnx"), ComputeOptions(engine="onnxruntime", batch=2), test, test, warm_up=1, repeat=5)
    (run,) = measured(job)
    what = [run[key] for key in ("name", "method", "runtime", "device", "precision")]  # type: ignore[literal-required]
    assert what == ["m.onnx", "patchcore", "onnxruntime", "cpu", "float32"]
    assert (run["canvas"], run["batch"], run["n_judged"]) == ([SIDE, SIDE], 2, 8)
    assert list(run["stages"]) == list(run["stage_images_per_s"]) == ["decode", "prepare", "graph", "map"]
    assert run["latency"]["n"] == len(run["times_ms"]) == 5
    # the stages are all of it
    assert sum(times["mean_ms"] for times in run["stages"].values()) == pytest.approx(run["latency"]["mean_ms"])
    assert run["latency"]["p95_ms"] is None  # nobody knows that of five passes
    assert run["images_per_s"] > 0
    assert run["file_mb"] == pytest.approx((folder / "m.onnx").stat().st_size / 1e6)
    evaluation = pg.evaluate(pg.load(folder / "m.onnx").predict(Table(test), engine="onnxruntime"))
    assert (run["image_auroc"], run["aupro_30"]) == (evaluation["image_auroc"], evaluation["aupro_30"])


def test_the_protocol_of_efficientad_times_the_network_alone(folder: Path, small_dataset: Path) -> None:
    compute = ComputeOptions(engine="torch", batch=2)
    job = Job(str(folder / "m.safetensors"), compute, rows(small_dataset)[:1], (), "efficientad", 2, 4)
    (run,) = measured(job)
    assert list(run["stages"]) == ["backbone", "method"]
    assert run["latency"]["n"] == 4
    assert run["image_auroc"] is None


def test_a_file_for_three_images_takes_three(folder: Path, small_dataset: Path) -> None:
    job = Job(str(folder / "three.onnx"), ComputeOptions(engine="onnxruntime", batch=8), rows(small_dataset), repeat=3)
    (run,) = measured(job)
    assert run["batch"] == 3
    assert run["gflop"] == pytest.approx(gflop_of(pg.load(folder / "m.onnx")))  # of one image, not of three


def test_percentiles_are_times_that_were_measured() -> None:
    few, many = times_of(np.arange(1.0, 20.0)), times_of(np.arange(1.0, 201.0))
    assert (few["n"], few["median_ms"], few["p95_ms"], few["p99_ms"]) == (19, 10.0, None, None)
    assert (many["p95_ms"], many["p99_ms"]) == (191.0, 199.0)


def test_a_slow_model_ends_in_time(folder: Path, small_dataset: Path) -> None:
    compute = ComputeOptions(engine="onnxruntime", batch=2)
    job = Job(str(folder / "m.onnx"), compute, rows(small_dataset), repeat=10**6, warm_up=10**6, longest_s=0.0)
    (run,) = measured(job)
    assert run["latency"]["n"] == 3


@pytest.mark.parametrize(("device", "share"), [("cpu", 0.5), ("cuda", 0.05)])
def test_the_share_is_that_of_the_device(device: str, share: float) -> None:
    run: Any = {"device": device, "gflop": 2.0, "stage_images_per_s": {"decode": 9.0, "backbone": 1.0, "method": 1.0}}
    machine: Any = {"peak_gflops": 2.0, "gpu_peak_gflops": 20.0}
    assert benches._with_share(run, machine)["peak_share"] == pytest.approx(share)
    run["peak_share"] = None
    machine = {"peak_gflops": 2.0, "gpu_peak_gflops": None}
    assert benches._with_share(run, machine)["peak_share"] == (pytest.approx(share) if device == "cpu" else None)


# -- operations --------------------------------------------------------------------------------------------------------


def test_a_graph_of_known_operations() -> None:
    def weight(name: str, *shape: int) -> Any:
        return helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape, np.float32).ravel().tolist())

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], group=2),  # (B, 6, 8, 8)
        helper.make_node("ConvTranspose", ["a", "v"], ["b"], strides=[2, 2]),  # (B, 5, 16, 16)
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "m"], ["d"]),  # (B, 5, 16, 7)
        helper.make_node("Flatten", ["d"], ["e"]),  # (B, 560)
        helper.make_node("Gemm", ["e", "g"], ["y"], transB=1),  # (B, 3)
    ]
    tensors = [weight("w", 6, 2, 3, 3), weight("v", 6, 5, 2, 2), weight("m", 16, 7), weight("g", 3, 560)]
    for batch, dimension in ((1, "images"), (4, 4)):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [dimension, 4, 8, 8])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [dimension, 3])
        graph = helper.make_graph(nodes, "g", [x], [y], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
        onnx.checker.check_model(model)
        conv, transposed, product, gemm = 6 * 64 * 2 * 9, 6 * 64 * 5 * 4, 5 * 16 * 7 * 16, 3 * 560
        assert graph_gflop(model) == pytest.approx(2 * (conv + transposed + product + gemm) / 1e9), batch


def test_lab_and_export_count_alike(folder: Path) -> None:
    lab, line = gflop_of(pg.load(folder / "m.safetensors")), gflop_of(pg.load(folder / "m.onnx"))
    assert lab == pytest.approx(line, rel=0.02)
    assert lab is not None
    assert lab > 0.1


# -- the use case ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(folder: Path, small_dataset: Path) -> tuple[BenchResult, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benches, "LocalExecutor", lambda apart: LocalExecutor())
        patch.setattr(machines, "_SIDE", 256)  # products of 2048 x 2048 take seconds
        output = [folder / name for name in ("page.html", "table.csv", "lines.jsonl")]
        models = [folder / name for name in ("m.safetensors", "m.onnx", "three.onnx")]
        return bench(models, small_dataset, QUICK, output), folder


def test_all_runtimes_side_by_side(result: tuple[BenchResult, Path]) -> None:
    found, _ = result
    ran = [(run["name"], run["runtime"]) for run in found["runs"] if run["precision"] == "float32"]
    assert ran == [
        ("m.safetensors", "torch"),
        ("m.safetensors", "openvino"),
        ("m.onnx", "onnxruntime"),
        ("m.onnx", "openvino"),
        ("three.onnx", "onnxruntime"),
        ("three.onnx", "openvino"),
    ]
    assert not found["failed"]
    assert {run["n_judged"] for run in found["runs"]} == {8}
    scores = {run["image_auroc"] for run in found["runs"] if run["precision"] == "float32"}
    assert len(scores) == 1
    for run in found["runs"]:
        seconds = sum(
            1 / run["stage_images_per_s"][name] for name in ("backbone", "method", "graph") if name in run["stages"]
        )
        assert run["peak_share"] == pytest.approx(run["gflop"] / seconds / found["machine"]["peak_gflops"])  # type: ignore[operator]
    assert any("bfloat16" in text for text in [*found["notes"], *(run["precision"] for run in found["runs"])])
    assert "accuracy is that of 8 labelled test images" in found["notes"]
    assert "three.onnx takes 3 images at once: its latency is that of 3" in found["notes"]
    assert found["images"] == "8 images of tile, 80 x 96 pixels (height x width), read again and again"
    machine = found["machine"]
    assert machine["cores"] >= 1
    assert machine["peak_gflops"] > 0
    assert {"pickglass", "numpy", "torch", "onnxruntime"} <= set(machine["versions"])


def test_the_files(result: tuple[BenchResult, Path]) -> None:
    found, folder = result
    assert found["written"] == [str(folder / name) for name in ("page.html", "table.csv", "lines.jsonl")]
    with (folder / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    assert [row["runtime"] for row in table] == [run["runtime"] for run in found["runs"]]
    assert {"decode_median_ms", "graph_median_ms", "backbone_images_per_s", "p99_ms"} <= set(table[0])
    by_name = {Path(row["model"]).name: row for row in table}
    assert by_name["m.safetensors"]["graph_median_ms"] == by_name["m.onnx"]["backbone_median_ms"] == ""  # not invented
    assert [line["name"] for line in lines] == [run["name"] for run in found["runs"]]
    assert lines[0]["machine"] == json.loads(json.dumps(found["machine"]))
    page = PageReader((folder / "page.html").read_text())
    assert page is not None
    text = (folder / "page.html").read_text()
    assert "m.safetensors, torch float32" in text
    assert all(f'<th scope="col">{stage}</th>' in text for stage in BENCH_STAGES)
    assert text.count('class="line series') >= len(found["runs"])


def test_generated_pictures_have_the_size_of_the_canvas(folder: Path, tmp_path: Path) -> None:
    images = images_for([model_at(folder / "m.onnx")], None, tmp_path, ComputeOptions())
    assert images.about.startswith("32 generated pictures of each model's canvas, PNG")
    assert [read_image(row.path).shape for row in images.rows[SIDE, SIDE]] == [(SIDE, SIDE, 3)] * 32
    assert not images.judged


@pytest.mark.usefixtures("here")
def test_a_broken_image_is_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    for i, image in enumerate(textures(3, 80)):
        (tmp_path / "good").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "good" / f"{i}.png")
    (tmp_path / "good" / "broken.png").write_bytes(b"\x89PNG nonsense")
    found = bench([folder / "m.onnx"], tmp_path, QUICK, compute=ComputeOptions(engine="onnxruntime"))
    assert [Path(item["path"]).name for item in found["failed"]] == ["broken.png"]
    assert len(found["runs"]) == 1
    assert found["runs"][0]["latency"]["n"] == 4
    assert any("no good and bad images: no accuracy" in note for note in found["notes"])
    for path in (tmp_path / "good").glob("[0-9].png"):
        path.unlink()
    with pytest.raises(DataError, match="no image can be read"):
        bench([folder / "m.onnx"], tmp_path, QUICK)


def test_an_image_that_does_not_fit_the_canvas_loses_no_other(folder: Path, tmp_path: Path) -> None:
    header, _ = read_export(folder / "m.onnx")
    preprocess = {**header["preprocess"], "geometry": "native"}
    native = tmp_path / "native.onnx"
    native.write_bytes((folder / "m.onnx").read_bytes())
    replace_header(native, {**header, "preprocess": preprocess})
    images = []
    for i, side in enumerate((SIDE + 1, SIDE, SIDE, SIDE)):
        Image.fromarray(textures(1, side, seed=i)[0]).save(tmp_path / f"{i}.png")
        images.append(Row(str(tmp_path / f"{i}.png"), label=i % 2))
    compute = ComputeOptions(engine="onnxruntime", batch=2)
    (run,) = measured(Job(str(native), compute, tuple(images), tuple(images), repeat=4, warm_up=1))
    (failed,) = run["failed"]
    assert failed["path"] == images[0].path
    assert "do not fit on the model's canvas" in failed["error"]
    assert run["n_judged"] == 3
    with pytest.raises(DataError, match="can judge none of 1 images"):
        list(measured(Job(str(native), compute, tuple(images[:1]))))


def test_threads_are_those_of_the_processes_alone(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    seen: list[str | None] = []

    class Spy:
        def __init__(self, apart: bool) -> None:
            seen.append(os.environ.get("OMP_NUM_THREADS"))

        def run(self, *_: Any) -> Iterator[Any]:
            raise InputError("enough")

    monkeypatch.setattr(benches, "LocalExecutor", Spy)
    for before in ("3", None):
        if before is None:
            monkeypatch.delenv("OMP_NUM_THREADS")
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", before)
        with pytest.raises(InputError, match="enough"):
            bench([folder / "m.onnx"], None, BenchRequest(threads=5))
        assert os.environ.get("OMP_NUM_THREADS") == before
    assert seen == ["5", "5"]


@pytest.mark.usefixtures("here")
def test_what_departs_from_the_paper_is_said(folder: Path, small_dataset: Path) -> None:
    request = BenchRequest("efficientad", warm_up=2, repeat=3)
    found = bench([folder / "m.onnx"], small_dataset, request, compute=ComputeOptions(engine="onnxruntime"))
    (cited, departures) = (note for note in found["notes"] if "EfficientAD" in note or "departures" in note)
    assert "Batzner et al., WACV 2024" in cited
    assert "2 passes to warm up and 3 timed ones, not 1000 each" in departures
    assert "16 images at once for throughput are our choice" in departures


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_runtime_that_cannot_run_it_is_named(
    folder: Path, small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benches, "LocalExecutor", lambda apart: LocalExecutor(apart=True))
    found = bench([folder / "m.onnx"], small_dataset, QUICK, compute=ComputeOptions(engine="torch"))
    assert not found["runs"]
    (failed,) = found["failed"]
    assert failed["path"] == f"{folder / 'm.onnx'} in torch"
    assert failed["error"].startswith("engine='torch': ")  # no class of an error in front


def test_bad_input(folder: Path, small_dataset: Path, tmp_path: Path) -> None:
    for models, request, output, message in (
        ([small_dataset], {}, [], r"is a folder; its images come with --data"),
        ([small_dataset / "m.pt"], {}, [], r"not named like a model: expected model files"),
        ([folder / "m.onnx", folder / "." / "m.onnx"], {}, [], "named twice"),
        ([folder / "m.onnx"], {"threads": 0}, [], "threads=0: expected at least 1"),
        ([folder / "m.onnx"], {"repeat": -1}, [], "repeat=-1: expected at least 1"),
        ([folder / "m.onnx"], {"protocol": "none"}, [], "protocol='none': expected one of files, efficientad"),
        ([folder / "m.onnx"], {}, ["x.txt"], r"'x.txt': expected a name that ends in .html, .csv, .jsonl"),
        ([folder / "m.onnx"], {}, [tmp_path / "none" / "x.csv"], "in an existing folder"),
    ):
        with pytest.raises(InputError, match=message) as error:
            bench(models, None, BenchRequest(**request), output)  # type: ignore[arg-type]
        assert len(str(error.value)) < 500
    with pytest.raises(ModelFileError, match="no such file"):
        bench([folder / "none.onnx"])


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_the_command(
    folder: Path, small_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pickglass", "bench", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().out

    quick = ("--repeat", 3, "--warm-up", 1, "--batch", 2, "--engine", "onnxruntime", "--data", small_dataset)
    code, out = run(folder / "m.onnx", *quick, "--json")
    assert code == 0
    assert json.loads(out)["runs"][0]["runtime"] == "onnxruntime"
    code, out = run(folder / "m.onnx", *quick)
    assert code == 0
    for words in ("median ms", "images/s", "of peak", "first s", "decode", "prepare", "graph", "3 passes after 1"):
        assert words in out
    assert "backbone" not in out


@pytest.mark.slow
def test_each_run_has_a_process_of_its_own(folder: Path, small_dataset: Path) -> None:
    request = BenchRequest(repeat=3, warm_up=1, batch=2, threads=1)
    found = bench([folder / "m.onnx"], small_dataset, request, compute=ComputeOptions(engine="onnxruntime"))
    (run,) = found["runs"]
    here = peak_mb()
    if run["peak_mb"] is not None and here is not None:
        assert run["peak_mb"] < here  # where torch is
    assert found["machine"]["threads"] == 1


@pytest.mark.slow
def test_an_exported_model_is_measured_without_torch(folder: Path, small_dataset: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['jinja2'] = None\n"
        "from pickglass.app.bench import bench, machine\n"
        "machine._SIDE = 256\n"
        "from pickglass.app.jobs.executors import LocalExecutor\n"
        "bench.LocalExecutor = lambda apart: LocalExecutor()\n"
        "found = bench.bench([sys.argv[1]], sys.argv[2], bench.BenchRequest(repeat=3, warm_up=1))\n"
        "print(found['machine']['peak_library'], *(run['runtime'] for run in found['runs']))\n"
    )
    command = [sys.executable, "-c", code, str(folder / "m.onnx"), str(small_dataset)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["numpy", "onnxruntime", "openvino"]), done.stderr


# -- without a model ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_the_models_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[tuple[str, tuple[int, ...]]] = []
    # that each method can be exported is held elsewhere, and takes seconds
    monkeypatch.setattr(
        pg.Detector, "export", lambda self, path, images: exported.append((Path(path).name, images.shape))
    )
    written = write_suite(tmp_path, side=64)
    methods = ("patchcore", "padim", "efficientad")
    assert [path.name for path in written] == [f"{m}{suffix}" for m in methods for suffix in (".safetensors", ".onnx")]
    assert exported == [(f"{method}.onnx", (2, 64, 64, 3)) for method in methods]
    assert [model_at(path).canvas for path in written[::2]] == [(64, 64)] * 3
    assert model_at(written[0]).provenance.details["bank"] == 16 * 8 * 8  # of so small pictures: all


@pytest.mark.usefixtures("here")
def test_without_a_model_the_suite_is_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [folder / "m.safetensors", folder / "m.onnx"]
    monkeypatch.setattr("pickglass.app.bench.suite.write_suite", lambda *_: models)
    found = bench(request=BenchRequest(repeat=3, warm_up=1))
    assert [(run["name"], run["runtime"]) for run in found["runs"]] == [
        ("m.safetensors", "openvino"),
        ("m.onnx", "onnxruntime"),
        ("m.onnx", "openvino"),
    ]
    assert found["batch"] == 4
    assert any("OpenVINO alone" in note for note in found["notes"])
