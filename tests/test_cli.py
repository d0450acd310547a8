"""The commands as a user types them: JSON objects, exit codes, and one clear line for bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pickglass.cli.main import main
from pickglass.metrics import auroc

Result = tuple[int, str, str]


@pytest.fixture
def pickglass(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def model(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pickglass.app.fit import FitRequest, fit

    target = tmp_path_factory.mktemp("model") / "m.safetensors"
    fit(small_dataset, target, FitRequest(settings={"size": 96, "ratio": 0.05}))
    return target


def test_fit_prints_one_object_and_writes_the_model(pickglass: Any, small_dataset: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    code, out, _ = pickglass(
        "fit", small_dataset, "-o", target, "--size", "64x80", "--layers", "stage2,stage4", "--set", "ratio=0.02",
        "--set", "top_k=3", "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert list(result) == [
        "model",
        "method",
        "n_fit",
        "n_validate",
        "n_calibrate",
        "fit_s",
        "details",
        "adaptation",
        "suspicious",
        "dropped",
        "auto",
        "foreground",
    ]
    assert (result["method"], result["n_fit"], result["n_validate"], result["n_calibrate"]) == ("patchcore", 14, 0, 2)
    code, out, _ = pickglass("info", target, "--json")
    configuration = json.loads(out)["about"]["configuration"]
    assert configuration["size"] == "64x80"
    assert configuration["layers"] == ["stage2", "stage4"]
    assert (configuration["ratio"], configuration["top_k"]) == (0.02, 3)


def test_test_prints_metrics_and_writes_report_and_maps(
    pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path
) -> None:
    report, maps = tmp_path / "r.html", tmp_path / "f.npz"
    code, out, _ = pickglass("test", model, small_dataset, "-o", report, "--save", maps, "--json")
    result = json.loads(out)
    assert code == 0
    assert list(result) == [
        "n", "image_auroc", "average_precision", "f1_max", "pixel_auroc", "aupro_30", "aupro_05",
        "aupimo", "au_spro_05", "f1", "false_alarm_rate", "miss_rate", "pixel_f1", "intervals",
        "images_per_s", "report", "by_type", "failed", "robustness",
    ]  # fmt: skip
    assert result["n"] == 8
    assert set(result["by_type"]) == {"hole", "scratch"}
    assert set(result["by_type"]["hole"]) == set(list(result)[:14])
    assert result["report"] == str(report)
    assert report.read_text().count("<img") >= 24
    with np.load(maps) as saved:
        assert saved["maps"].shape == (8, 12, 12)
        assert saved["maps"].dtype == np.float32
        labels = ["good" not in path for path in saved["paths"]]
        assert auroc(np.array(labels, int), saved["scores"]) == result["image_auroc"]


def test_predict_gives_score_verdict_and_boxes_and_writes_only_with_o(
    pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = pickglass("predict", model, small_dataset / "test" / "hole", "--json")
    results = json.loads(out)["results"]
    assert code == 0
    assert [list(item) for item in results] == [
        [
            *("path", "score", "verdict", "boxes", "areas_mm2"),
            *("p_value", "p_value_log10", "p_value_extrapolated", "type", "type_probability"),
        ]
    ] * 2
    assert [item["verdict"] for item in results] == ["bad", "bad"]
    for item in results:
        with Image.open(small_dataset / "ground_truth" / "hole" / f"{Path(item['path']).stem}_mask.png") as mask:
            left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
        x, y, w, h = item["boxes"][0]
        assert x < right
        assert x + w > left
        assert y < bottom
        assert y + h > top
    assert list(tmp_path.iterdir()) == []
    code, _, _ = pickglass("predict", model, small_dataset / "test" / "hole", "-o", "found", "--json")
    written = sorted(path.name for path in (tmp_path / "found").iterdir())
    assert len(written) == 5
    assert written[-1] == "results.csv"
    with Image.open(tmp_path / "found" / written[0]) as heat:
        assert heat.size == (96, 80)


def test_people_get_tables(pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path) -> None:
    code, out, _ = pickglass("test", model, small_dataset)
    assert code == 0
    assert "AUPRO@0.05" in out
    assert "optimistic" in out
    code, out, _ = pickglass("predict", model, small_dataset / "test" / "good")
    assert "verdict" in out
    code, out, _ = pickglass("info", small_dataset)
    assert "mvtec" in out
    code, out, _ = pickglass("fit", small_dataset, "-o", tmp_path / "m.safetensors", "--size", "64", "--calibrate", "0")
    assert "fitted patchcore on 16 good images, no threshold" in out
    code, out, _ = pickglass("test", tmp_path / "m.safetensors", small_dataset, "-o", tmp_path / "r.html")
    assert code == 0  # no calibration: scores, no verdicts
    code, out, _ = pickglass("predict", tmp_path / "m.safetensors", small_dataset / "test" / "hole", "--json")
    assert json.loads(out)["results"][0]["verdict"] is None


# -- bad input ---------------------------------------------------------------------------------------------------------


def copy_of(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def test_corrupt_training_images_are_all_listed(pickglass: Any, small_dataset: Path, tmp_path: Path) -> None:
    data = copy_of(small_dataset, tmp_path)
    (data / "train" / "good" / "03.png").write_bytes(b"")
    whole = (data / "train" / "good" / "07.png").read_bytes()
    (data / "train" / "good" / "07.png").write_bytes(whole[: len(whole) // 2])
    code, out, err = pickglass("fit", data, "-o", tmp_path / "m.safetensors", "--json")
    assert (code, out) == (2, "")
    assert "2 of 16 training images cannot be read" in err
    assert "03.png" in err
    assert "07.png" in err
    assert "Traceback" not in err
    assert not (tmp_path / "m.safetensors").exists()


def test_a_corrupt_image_in_predict_keeps_the_rest(
    pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path
) -> None:
    data = copy_of(small_dataset, tmp_path)
    (data / "test" / "good" / "01.png").write_text("not an image")
    code, out, err = pickglass("predict", model, data / "test" / "good", "--json")
    result = json.loads(out)
    assert code == 1
    assert [Path(item["path"]).name for item in result["results"]] == ["00.png", "02.png", "03.png"]
    assert [Path(item["path"]).name for item in result["failed"]] == ["01.png"]
    assert "01.png" in err
    code, out, _ = pickglass("test", model, data, "-o", tmp_path / "r.html", "--json")
    assert code == 1
    assert (json.loads(out)["n"], len(json.loads(out)["failed"])) == (7, 1)


def test_a_mask_of_another_size_is_named(pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path) -> None:
    data = copy_of(small_dataset, tmp_path)
    Image.new("L", (10, 10), 255).save(data / "ground_truth" / "hole" / "05_mask.png")
    code, _, err = pickglass("test", model, data, "--json")
    assert code == 2
    assert "05_mask.png: the mask is 10x10" in err


def test_a_one_pixel_image_is_judged(pickglass: Any, model: Path, tmp_path: Path) -> None:
    Image.new("L", (1, 1), 77).save(tmp_path / "dot.png")
    code, out, _ = pickglass("predict", model, tmp_path / "dot.png", "--json")
    assert code == 0
    assert np.isfinite(json.loads(out)["results"][0]["score"])


def test_a_gigapixel_claim_is_refused_and_the_limit_can_be_raised(
    pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path
) -> None:
    image = next((small_dataset / "test" / "good").iterdir())
    code, _, err = pickglass("predict", model, image, "--max-pixels", "1000", "--json")
    assert code == 1
    assert "7,680" in err
    assert "--max-pixels" in err
    code, _, _ = pickglass("predict", model, image, "--max-pixels", "7680", "--json")
    assert code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "resnet1000"], "unknown backbone 'resnet1000'"),
        (["--layers", "stage33"], "unknown layer of efficientnet_lite0 'stage33'"),
        (["--method", "patchcor"], "unknown method 'patchcor'. The nearest are: patchcore"),
        (["--preset", "fast"], "unknown preset of patchcore 'fast'"),
        (["--set", "ration=1"], "unknown setting of PatchCore 'ration'"),
        (["--set", "ratio"], "expected key=value"),
        (["--size", "12by4"], "size='12by4': expected pixels"),
        (["--calibrate", "1"], "calibrate=1.0: expected a share"),
        (["--layout", "mvtek"], "unknown layout 'mvtek'"),
        (["--device", "warp"], "device='warp' cannot be used here"),
        (["--weights", "nowhere.pth"], "no such file"),
        (["-o", "model.pt"], "ends in .safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_exit_2_with_one_clear_line(
    pickglass: Any, small_dataset: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    output = [] if "-o" in words else ["-o", tmp_path / "m.safetensors"]
    code, out, err = pickglass("fit", small_dataset, *output, *words, "--json")
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_data_without_good_images(pickglass: Any, small_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "empty", tmp_path / "absent", small_dataset / "train" / "good" / "00.png"):
        code, _, err = pickglass("fit", data, "-o", tmp_path / "m.safetensors")
        assert code == 2
        assert err.startswith("error: ")
    data = copy_of(small_dataset, tmp_path)
    shutil.rmtree(data / "train" / "good")
    (data / "train" / "good").mkdir()
    code, _, err = pickglass("fit", data, "-o", tmp_path / "m.safetensors")
    assert code == 2
    assert "good" in err


def test_help_of_every_command() -> None:
    for words in ([], ["fit"], ["test"], ["predict"], ["info"], ["demo"]):
        command = [sys.executable, "-m", "pickglass", *words, "--help"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "Usage:" in found.stdout
        assert found.stderr == ""
