"""The commands as a user types them: JSON objects, exit codes, and one clear line for bad input."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pickglass.cli import console
from pickglass.cli.command import stdout_reserved
from pickglass.cli.fit import _trained
from pickglass.cli.info import PROBLEMS
from pickglass.cli.main import COMMANDS, main
from pickglass.data import find_problems
from pickglass.methods import METHODS
from pickglass.metrics import auroc
from pickglass.metrics.catalogue import WITHOUT_THRESHOLD

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


@pytest.mark.slow
def test_fit_prints_one_object_and_writes_the_model(pickglass: Any, small_dataset: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    code, out, _ = pickglass(
        "fit", small_dataset, "-o", target, "--size", "64x80", "--layers", "stage2+stage4", "--set", "ratio=0.02",
        "--set", "top_k=3", "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert list(result) == [
        "model",
        "model_id",
        "method",
        "n_fit",
        "n_validate",
        "n_calibrate",
        "fit_s",
        "image_threshold",
        "unsure_threshold",
        "threshold_sentence",
        "backbone",
        "layers",
        "layers_chosen",
        "size",
        "canvas",
        "details",
        "adaptation",
        "suspicious",
        "dropped",
        "known_defects",
        "auto",
        "foreground",
    ]
    assert (result["method"], result["n_fit"], result["n_validate"], result["n_calibrate"]) == ("patchcore", 16, 0, 0)
    code, out, _ = pickglass("info", target, "--json")
    configuration = json.loads(out)["about"]["configuration"]
    assert configuration["size"] == "64x80"
    assert configuration["layers"] == ["stage2", "stage4"]
    assert (configuration["ratio"], configuration["top_k"]) == (0.02, 3)


@pytest.mark.slow
def test_test_prints_metrics_and_writes_report_and_maps(
    pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path
) -> None:
    report, maps = tmp_path / "r.html", tmp_path / "f.npz"
    code, out, _ = pickglass("test", model, small_dataset, "-o", report, "--save", maps, "--json")
    result = json.loads(out)
    assert code == 0
    assert list(result) == [
        "n", "n_good", "n_defective", "false_alarms", "missed", "unsure_good", "unsure_defective",
        "image_auroc", "average_precision", "f1_max", "pixel_auroc", "aupro_30", "aupro_05",
        "aupimo", "au_spro_05", "f1", "false_alarm_rate", "miss_rate",
        "unsure_good_rate", "unsure_defective_rate", "pixel_f1", "intervals",
        "verdict", "next", "images_per_s", "report", "by_type", "left_out", "notes", "failed", "robustness",
    ]  # fmt: skip
    assert result["n"] == 8
    assert set(result["by_type"]) == {"hole", "scratch"}
    assert set(result["by_type"]["hole"]) == set(list(result)[:22])
    assert result["report"] == str(report)
    assert report.read_text().count("<img") >= 24
    assert "image_names" not in report.read_text()  # one for each image that was learned would be too long
    with np.load(maps) as saved:
        assert saved["maps"].shape == (8, 12, 12)
        assert saved["maps"].dtype == np.float32
        labels = ["good" not in path for path in saved["paths"]]
        assert saved["labels"].tolist() == labels
        assert auroc(np.array(labels, int), saved["scores"]) == result["image_auroc"]


@pytest.mark.slow
def test_predict_gives_score_verdict_and_boxes_and_writes_only_with_o(
    pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = pickglass("predict", model, small_dataset / "test" / "hole", "--json")
    results = json.loads(out)["results"]
    assert code == 0
    assert [list(item) for item in results] == [
        [
            *("path", "score", "verdict", "defects"),
            *("p_value", "p_value_log10", "p_value_extrapolated", "type", "type_probability", "time"),
        ]
    ] * 2
    assert [item["verdict"] for item in results] == ["bad", "bad"]
    for item in results:
        with Image.open(small_dataset / "ground_truth" / "hole" / f"{Path(item['path']).stem}_mask.png") as mask:
            left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
        x, y, w, h = item["defects"][0]["box"]
        assert x < right
        assert x + w > left
        assert y < bottom
        assert y + h > top
    assert list(tmp_path.iterdir()) == []
    code, _, _ = pickglass("predict", model, small_dataset / "test" / "hole", "-o", "found", "--json")
    written = sorted(path.name for path in (tmp_path / "found").iterdir())
    assert len(written) == 6
    assert written[-2:] == ["defects.csv", "results.csv"]
    with Image.open(tmp_path / "found" / written[0]) as heat:
        assert heat.size == (96, 80)


@pytest.mark.slow
def test_people_get_tables(pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path) -> None:
    code, out, _ = pickglass("test", model, small_dataset)
    assert code == 0
    assert "PRO@0.05" in out
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


def test_a_training_is_told_in_a_sentence() -> None:
    phase = {"phase": "flow", "train": [[3.0], [2.0], [1.0]], "validation": [[3.0], [1.0], [2.0]], "seconds": 61.7}
    assert _trained({**phase, "picked": [2]}) == (
        "trained the flow: 3 epochs in 62 s; epoch 2 kept, which held-back images fit best"
    )
    assert _trained({**phase, "picked": [3]}) == "trained the flow: 3 epochs in 62 s"
    several = _trained({**phase, "picked": [3, 1, 2]})
    assert several.endswith("; epochs 1 to 3, by position, kept, which held-back images fit best")
    assert _trained({**phase, "train": [[1.0]], "validation": [], "picked": [1]}) == "trained the flow: 1 epoch in 62 s"


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_mask_of_another_size_is_named(pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path) -> None:
    data = copy_of(small_dataset, tmp_path)
    Image.new("L", (10, 10), 255).save(data / "ground_truth" / "hole" / "05_mask.png")
    code, _, err = pickglass("test", model, data, "--json")
    assert code == 2
    assert "05_mask.png: the mask is 10x10" in err


@pytest.mark.slow
def test_a_one_pixel_image_is_judged(pickglass: Any, model: Path, tmp_path: Path) -> None:
    Image.new("L", (1, 1), 77).save(tmp_path / "dot.png")
    code, out, _ = pickglass("predict", model, tmp_path / "dot.png", "--json")
    assert code == 0
    assert np.isfinite(json.loads(out)["results"][0]["score"])


@pytest.mark.slow
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


# -- manners -----------------------------------------------------------------------------------------------------------


HELP = """
import sys
from pickglass.cli.main import COMMANDS, main
for command in [None, *COMMANDS]:
    sys.argv = ["pickglass", *([command.__name__] if command else []), "--help"]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
heavy = {"torch", "numpy", "scipy", "PIL", "openvino", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_of_every_command_needs_nothing_heavy() -> None:
    found = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.count("Usage: ") == 1 + len(COMMANDS)
    assert not re.search(r"^ +(-.*  |.*>  )Of ", found.stdout, flags=re.MULTILINE)


def test_version(pickglass: Any) -> None:
    code, out, _ = pickglass("--version")
    assert (code, out) == (0, f"pickglass {version('pickglass')}\n")


def test_shells_complete_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/lib/pickglass/__main__.py"])  # python -m pickglass has the same name
    for shell, said in (
        ("bash", "complete -o default"),
        ("zsh", "#compdef pickglass"),
        ("fish", "--command pickglass"),
    ):
        monkeypatch.setenv("_PICKGLASS_COMPLETE", f"source_{shell}")
        with pytest.raises(SystemExit):
            main()
        assert said in capsys.readouterr().out
    monkeypatch.setenv("_PICKGLASS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "pickglass thr")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.split() == ["threshold"]


def test_unknown_options_and_choices_exit_2(pickglass: Any, small_dataset: Path) -> None:
    code, out, err = pickglass("info", small_dataset, "--nonsense")
    assert (code, out) == (2, "")
    assert "--nonsense" in err
    code, out, err = pickglass("predict", "m.safetensors", small_dataset, "--engine", "steam")
    assert (code, out) == (2, "")
    assert "openvino" in err


PRINTING = """
import ctypes, json, os, sys
import pickglass.app.info as use_case
from pickglass.cli.main import main
kept = sys.stdout
def noisy(source, **_):
    print("by print")
    kept.write("by a stream from before")
    os.write(1, b"by file descriptor\\n")
    ctypes.CDLL(None).printf(b"by C\\n")
    os.system("echo by a child")
    return {"kind": "data", "path": str(source.path), "about": {}}
use_case.info = noisy
sys.argv = ["pickglass", "info", "somewhere", "--json"]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="printf by its POSIX name")
def test_json_owns_stdout() -> None:
    """Whatever prints while a command computes, stdout is one JSON object."""
    found = subprocess.run([sys.executable, "-c", PRINTING], capture_output=True, text=True, check=False)
    assert json.loads(found.stdout) == {"kind": "data", "path": "somewhere", "about": {}}
    for by in ("by print", "by a stream from before", "by file descriptor", "by C", "by a child"):
        assert by in found.stderr
    assert found.returncode == 0


def test_stdout_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="stop"), stdout_reserved():  # noqa: PT012
        sys.stdout.write("inside\n")
        os.write(1, b"also inside\n")
        raise ValueError("stop")
    sys.stdout.write("after\n")
    sys.stdout.flush()
    os.write(1, b"also after\n")
    out, err = capfd.readouterr()
    assert sorted(out.split("\n")) == ["", "after", "also after"]
    assert sorted(err.split("\n")) == ["", "also inside", "inside"]


def test_warnings_are_one_line(pickglass: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(source: Any, **_: Any) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("mind the gap", UserWarning, stacklevel=2)
        return {"kind": "data", "path": "", "about": {}}

    monkeypatch.setattr("pickglass.app.info.info", warning)
    code, out, err = pickglass("info", "somewhere", "--json")
    assert (code, json.loads(out)["kind"], err) == (0, "data", "warning: mind the gap\n")


@pytest.mark.slow
def test_a_path_that_does_not_exist_is_answered_with_what_is_there(
    pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path
) -> None:
    data = copy_of(small_dataset, tmp_path)
    wrong = data / "tset" / "hole"
    code, out, err = pickglass("predict", model, wrong)
    assert (code, out) == (2, "")
    assert f"tset in '{data}'" in err
    assert f"did you mean '{data / 'test'}'?" in err
    code, out, err = pickglass("predict", model, tmp_path / "nofile.png", tmp_path / "nor.png", "--json")
    assert (code, out) == (2, "")
    assert err.startswith("error: 2 of the paths do not exist:")
    code, out, err = pickglass("fit", tmp_path / "cpoy", "-o", tmp_path / "m.safetensors")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1  # the cause, not seven layouts
    assert f"did you mean '{tmp_path / 'copy'}'?" in err
    code, out, err = pickglass("test", tmp_path / "model.safetensors", data)
    assert (code, out) == (2, "")
    assert "no such file or folder: model.safetensors" in err


@pytest.mark.parametrize("command", ["test", "predict", "threshold", "label", "drift"])
def test_swapped_arguments_are_recognised(pickglass: Any, small_dataset: Path, model: Path, command: str) -> None:
    code, out, err = pickglass(command, small_dataset, model)
    assert (code, out) == (2, "")
    assert err == (
        f"error: the arguments are swapped: {model} is a model, and the model comes first: "
        f"pickglass {command} {model} {small_dataset}\n"
    )


def test_an_existing_model_is_kept_without_force(pickglass: Any, small_dataset: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    target.write_text("precious")
    words = ["fit", small_dataset, "-o", target, "--size", "64", "--engine", "torch"]
    code, out, err = pickglass(*words)
    assert (code, out, target.read_text()) == (2, "", "precious")
    assert "--force" in err
    code, _, _ = pickglass(*words, "--force")
    assert code == 0
    assert target.stat().st_size > 1000
    code, _, err = pickglass("distill", tmp_path, "-o", target)
    assert code == 2
    assert "exists already" in err


def test_methods_and_their_settings(pickglass: Any) -> None:
    code, out, _ = pickglass("methods")
    assert code == 0
    for name, cls in METHODS.items():
        assert f"{name}: " in out
        code, text, _ = pickglass("methods", cls.__name__, "--json")
        (about,) = json.loads(text)["methods"]
        assert (about["method"], set(about["presets"])) == (name, set(cls.presets))
        parameters = inspect.signature(cls.__init__).parameters
        assert [setting["name"] for setting in about["settings"]] == [key for key in parameters if key != "self"]
        for setting in about["settings"]:
            assert len(setting["meaning"].split()) > 1, f"{name} does not say what {setting['name']} means"
            assert "`" not in setting["meaning"]
    code, out, _ = pickglass("methods", "reverse-distillation")
    assert code == 0
    assert "epochs" in out
    code, _, err = pickglass("methods", "patchcor")
    assert code == 2
    assert "patchcore" in err


def test_a_method_in_any_case(pickglass: Any, small_dataset: Path, tmp_path: Path) -> None:
    words = ["-o", tmp_path / "m.safetensors", "--size", "64", "--engine", "torch", "--json"]
    code, out, _ = pickglass("fit", small_dataset, "--method", "PatchCore", *words)
    assert (code, json.loads(out)["method"]) == (0, "patchcore")


@pytest.mark.parametrize("width", [80, None])
def test_tables_fit_a_terminal_and_a_pipe_gets_the_whole_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None
) -> None:
    monkeypatch.setattr(console, "console", lambda: Console(highlight=False, width=width or 100_000))
    name = "a-rather-long-name-of-a-defect"
    sets: dict[str, Any] = {name: {"n": 4} | dict.fromkeys(WITHOUT_THRESHOLD, 0.5)}
    console.print_metrics("defect type", sets, WITHOUT_THRESHOLD)
    lines = capsys.readouterr().out.splitlines()
    if width is None:
        assert len(lines) == 3
        assert name in lines[2]
        assert len(set(lines[0].split("  "))) > len(WITHOUT_THRESHOLD)
    else:
        assert max(map(len, lines)) <= width
        letters = "".join(line[: lines[-1].index(" ")] for line in lines)
        assert "…" not in letters
        assert sum(line.count("0.500") for line in lines) == len(WITHOUT_THRESHOLD)


def test_info_speaks_in_sentences(pickglass: Any, small_dataset: Path, model: Path, tmp_path: Path) -> None:
    code, out, _ = pickglass("info", model)
    assert code == 0
    assert f"{model} is a model of the method patchcore." in out
    assert "on 16 good images" in out
    assert "each judged as if left out, they set its threshold" in out
    assert "It reads stage3+stage5 of efficientnet_lite0" in out
    assert "An image is bad above a score of" in out
    code, out, _ = pickglass("info", small_dataset)
    assert code == 0
    assert "is a data set of 24 images in the layout mvtec" in out
    assert "By role: 16 train, 8 for the test. By type: 20 good, 2 hole, 2 scratch." in out
    data = copy_of(small_dataset, tmp_path)
    (data / "train" / "good" / "03.png").write_bytes(b"")
    _, out, _ = pickglass("info", data)
    assert "1 cannot be read:\n" in out
    described = set(re.findall(r"``(\w+)``", (find_problems.__doc__ or "").partition("Returns:")[2]))
    assert described == set(PROBLEMS)


@pytest.mark.parametrize(("command", "needs"), [("fit", "torch"), ("layers", "torch")])
def test_a_missing_extra_names_the_line_that_installs_it(small_dataset: Path, command: str, needs: str) -> None:
    words = {"fit": ["fit", str(small_dataset), "-o", "m.safetensors"], "layers": ["layers", "resnet18"]}[command]
    code = f"""
import sys
sys.modules[{needs!r}] = None
sys.argv = ["pickglass", *{words!r}]
from pickglass.cli.main import main
main()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert f"'pickglass {command}' needs torch" in found.stderr
    assert 'pip install "pickglass[train]"' in found.stderr
    assert "Traceback" not in found.stderr
