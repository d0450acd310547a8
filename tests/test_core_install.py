"""What ``pip install pickglass`` brings is enough for data, metrics, thresholds and the command line: no torch.

The environment is a real one: an empty virtual environment that sees pickglass, what ``pyproject.toml`` declares as its
dependencies, and what those require in turn, and nothing else of what is installed here.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pickglass as pg
from pickglass.app.threshold import ThresholdRequest, threshold
from pickglass.testing import textures
from source_trees import nodes_of, tree_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

pytestmark = pytest.mark.slow
SOURCE = Path(pg.__file__).parent
PROJECT = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
ABSENT = {
    "torch",
    "torchvision",
    "timm",
    "scipy",
    "safetensors",
    "openvino",
    "onnx",
    "sklearn",
    "matplotlib",
    "pandas",
    "imagecodecs",
    "skimage",
    "ray",
}
CORE = ("errors", "data", "metrics", "calibration", "result", "runtime", "cli")


def required(names: list[str]) -> Iterator[str]:
    """The declared distributions and what they require, each once."""
    waiting, seen = list(names), set()
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name not in seen:
            seen.add(requirement.name)
            yield requirement.name
            waiting += distribution(requirement.name).requires or []


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the core's dependencies only."""
    root = tmp_path_factory.mktemp("core")
    packages = root / "packages"
    packages.mkdir()
    for name in required(PROJECT["dependencies"]):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
    information = Path(str(distribution("pickglass").locate_file("")))
    for folder in information.glob("pickglass-*.dist-info"):  # the version is asked for by name
        (packages / folder.name).symlink_to(folder)
    venv.create(root / "venv", with_pip=False, symlinks=os.name != "nt")
    python = root / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(where, "core.pth").write_text(f"{packages}\n{SOURCE.parent}\n")
    return python


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([python, *arguments], capture_output=True, text=True, env=environment)


def succeeded(python: Path, *arguments: str) -> str:
    done = run(python, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_of_the_core_can_be_imported(python: Path) -> None:
    modules = [
        ".".join(("pickglass", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0].removesuffix(".py") in CORE
    ]
    assert len(modules) > 50
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint(*sys.modules)"
    loaded = {name.partition(".")[0] for name in succeeded(python, "-c", code).split()}
    assert not loaded & ABSENT


def test_there_is_no_torch_in_it(python: Path) -> None:
    code = f"from importlib.util import find_spec\nprint(*(name for name in {sorted(ABSENT)!r} if find_spec(name)))"
    there = succeeded(python, "-c", code).split()
    assert not there, "this environment proves nothing"


def test_what_only_the_lab_paints_names_the_extra(python: Path) -> None:
    prepared = "import numpy as np\nfrom pickglass.data.painting import cloth, defects, trays\n"
    for call in (
        "cloth.weave(cloth.Cloth('plain', 4), (32, 32))",
        "trays.fill(trays.Tray('washer', 16, 24), (64, 64))",
        "defects.paint(np.full((64, 64), 128, np.uint8), 'surplus_part', 12, np.random.default_rng(0))",
    ):
        done = run(python, "-c", prepared + call)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            "pickglass.errors.MissingExtra: painting images needs scipy, which is not installed: "
            'pip install "pickglass[train]"'
        )


def test_regions_and_promises_need_no_scipy(python: Path) -> None:
    code = (
        "import json, sys, numpy as np, pickglass as pg\n"
        "from pickglass.calibration import Evidence, Wish, promised\n"
        "map = np.kron(np.eye(3, dtype=np.float32), np.ones((4, 4), np.float32))\n"
        "defects = pg.Prediction.from_arrays([1.0], [map]).defects(0, 0.5)\n"
        "wish = Wish('tolerance', 0.05, 0.9)\n"
        "found = promised(Evidence([*range(100)], [*range(100)]), wish)\n"
        "assert 'scipy' not in sys.modules\n"
        "print(json.dumps([defects, found.r, found.false_alarm_bound]))"
    )
    defects, r, bound = json.loads(succeeded(python, "-c", code))
    assert defects == [[[0, 0, 12, 12], 48, 1.0]]
    assert (r, bound) == (1, pytest.approx(0.0383, abs=1e-4))  # Beta(2, 99)


def test_the_command_line_says_what_is_in_a_data_set_and_in_a_model(
    python: Path, small_dataset: Path, tmp_path: Path
) -> None:
    assert "drift" in succeeded(python, "-m", "pickglass", "--help")
    for command in ("fit", "test", "study", "advise"):
        assert "--json" in succeeded(python, "-m", "pickglass", command, "--help")
    assert "mvtec" in succeeded(python, "-m", "pickglass", "info", str(small_dataset))
    about = json.loads(succeeded(python, "-m", "pickglass", "info", str(small_dataset), "--json"))["about"]
    assert about["types"] == {"good": 20, "hole": 2, "scratch": 2}
    model = pg.PatchCore(size=64, ratio=0.1).fit(textures(8, 64)).save(tmp_path / "m.safetensors")
    about = json.loads(succeeded(python, "-m", "pickglass", "info", str(model), "--json"))["about"]
    assert about["method"] == "patchcore"


ONE_BY_ONE = """
import contextlib, io, json, sys
from pickglass.cli.main import main

told = {}
for command, arguments in json.load(open(sys.argv[1])).items():
    sys.argv[:] = ["pickglass", command, *arguments]
    out, err = io.StringIO(), io.StringIO()
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    told[command] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(told))
"""


def test_what_needs_more_names_the_extra(python: Path, small_dataset: Path, tmp_path: Path) -> None:
    line = 'needs torch, which is not installed: pip install "pickglass[train]"'
    data, model, out = str(small_dataset), str(tmp_path / "m.safetensors"), str(tmp_path / "out")
    Path(model).touch()
    commands = {
        "fit": [data, "-o", str(tmp_path / "new.safetensors")],
        "test": [model, data],
        "predict": [model, data],
        "threshold": [model, data],
        "label": [model, data],
        "drift": [model, data],
        "explain": [model, f"{data}/train/good/00.png"],
        "advise": [data, "--defect-px", "8"],
        "study": [data, "-o", str(tmp_path / "study.sqlite")],
        "layers": ["--list"],
        "look": [f"{data}/train/good/00.png", "-o", str(tmp_path / "look.html")],
        "distill": [data, "-o", str(tmp_path / "teacher.safetensors")],
        "demo": [out],
        "bench": [],
    }
    alone = run(python, "-m", "pickglass", "fit", *commands["fit"])
    assert (alone.returncode, alone.stdout) == (2, "")
    assert alone.stderr.splitlines() == [f"error: 'pickglass fit' {line}"]
    (tmp_path / "all.py").write_text(ONE_BY_ONE)  # in one process: starting one for each takes seconds
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    told = json.loads(succeeded(python, str(tmp_path / "all.py"), str(tmp_path / "commands.json")))
    assert told == {command: [2, "", f"error: 'pickglass {command}' {line}\n"] for command in commands}
    done = run(python, "-c", "import pickglass\npickglass.PatchCore")
    assert done.returncode == 1
    assert f"MissingExtra: pickglass.PatchCore {line}" in done.stderr


def test_an_exported_model_does_all_but_learn(python: Path, small_dataset: Path, tmp_path: Path) -> None:
    """The commands of the lab on an exported file, each by a process that has no torch; the answers are the lab's."""
    data = pg.load_dataset(small_dataset)
    detector = pg.PatchCore(size=64, ratio=0.1).fit(data.train, calibrate=0.5, observers=[pg.DriftSample()])
    model, kept = tmp_path / "m.onnx", detector.save(tmp_path / "m.safetensors")
    detector.export(model, textures(2, 64))
    wanted = detector.predict(data.test)

    def answer(*arguments: str | Path) -> dict[str, Any]:
        done = run(python, "-m", "pickglass", *map(str, arguments), "--json")
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))

    judged = answer("predict", model, small_dataset / "test", "-o", tmp_path / "found")
    scores = {found.row.path: found.score for found in wanted}
    assert {item["path"]: item["score"] for item in judged["results"]} == pytest.approx(scores, rel=1e-4)
    assert judged["runtime"] == "onnxruntime"
    assert (tmp_path / "found" / "defects.csv").is_file()
    tested = answer("test", model, small_dataset, "-o", tmp_path / "report.html")
    assert tested["image_auroc"] == pytest.approx(pg.evaluate(wanted)["image_auroc"])
    assert (tmp_path / "report.html").stat().st_size > 10_000
    promised = answer("threshold", model, small_dataset, "--promise", "marginal", "--false-alarm", "0.2")
    in_lab = threshold(kept, small_dataset, ThresholdRequest("marginal", 0.2))
    assert promised["image_threshold"] == pytest.approx(in_lab["image_threshold"], rel=1e-4)
    assert answer("info", model)["about"]["version"] == 2
    assert "drift" in answer("drift", model, small_dataset / "test" / "good", "--level", "0.4")
    why = answer("explain", model, judged["results"][0]["path"], "-o", tmp_path / "why.html")
    assert why["score"] == judged["results"][0]["score"]
    assert why["places"]
    assert why["similar"]["found"]
    assert (tmp_path / "why.html").stat().st_size > 10_000
    assert "torch" not in succeeded(
        python, "-c", f"import sys, pickglass as pg; pg.load({str(model)!r}); print(*sys.modules)"
    )


def test_saved_scores_and_maps_are_evaluated(python: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 8, 10), bool)
    masks[3:, 2:4, 5:9] = True
    maps = (rng.random((6, 8, 10)) + masks).astype(np.float32)
    labels = [0, 0, 0, 1, 1, 1]
    scores = maps.max((1, 2))
    file = tmp_path / "saved.npz"
    np.savez(file, scores=scores, maps=maps, labels=labels, masks=masks)
    code = (
        "import json, sys, numpy as np, pickglass as pg\n"
        "prediction = pg.Prediction.from_arrays(**np.load(sys.argv[1]))\n"
        "print(json.dumps(dict(pg.evaluate(prediction))))"
    )
    figures = json.loads(succeeded(python, "-c", code, str(file)))
    assert figures["image_auroc"] == pg.metrics.auroc(labels, scores) == 1
    assert figures["pixel_auroc"] == pytest.approx(pg.metrics.auroc(masks.ravel(), maps.ravel()))
    assert figures["aupro_30"] == pytest.approx(pg.metrics.aupro(maps, masks))


# -- and on paper ------------------------------------------------------------------------------------------------------


def at_module_level(tree: ast.Module) -> Iterator[str]:
    """Modules that are imported when a module is, those for type checkers left out."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        waiting += ast.iter_child_nodes(node)


def test_no_module_of_the_core_imports_an_extra() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE).parts[0].removesuffix(".py") in CORE:
            loaded = {name.partition(".")[0] for name in at_module_level(tree_of(path))}
            assert not loaded & ABSENT, f"{path} imports {sorted(loaded & ABSENT)}, which is not in the core"


# Python 3.10 knows the packages of a distribution only if it lists them.
OTHER_NAMES = {"sklearn": "scikit-learn", "paho": "paho-mqtt"}


def test_whatever_is_imported_is_declared() -> None:
    """A package that only comes along with another one is gone with its next release."""
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "dev"}
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    distributions = packages_distributions()
    missing = set()
    for path in SOURCE.rglob("*.py"):
        for node in nodes_of(path):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for top in {name.partition(".")[0] for name in names} - {"pickglass", *sys.stdlib_module_names}:
                providers = {canonicalize_name(name) for name in distributions.get(top, [OTHER_NAMES.get(top, top)])}
                missing |= {top} if not providers & declared else set()
    assert not missing


def test_the_alias_of_an_extra_stays_for_a_release() -> None:
    assert PROJECT["optional-dependencies"]["label"][0] in PROJECT["optional-dependencies"]["train"]
