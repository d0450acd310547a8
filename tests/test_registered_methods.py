"""Methods that others write: registered by hand or found as an entry point of an installed package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pickglass as pg
from pickglass.app.methods import list_methods
from pickglass.detectors import plugins
from pickglass.detectors.modelfile import read_model, write_model
from pickglass.detectors.settings import settings_digest
from pickglass.errors import InputError, UnknownName
from pickglass.methods import METHODS, find_method, method_names
from pickglass.testing import textures

pytestmark = pytest.mark.slow

PACKAGE = '''
"""A method of another package: the distance to the mean of good features."""

import pickglass as pg
from pickglass.nn.maps import highest, kept_cells
import torch


class MeanDistance(pg.Detector):
    """The distance of each cell to the mean of its good features."""

    method = "mean_distance"

    def __init__(
        self, *, backbone="efficientnet_lite0", layers=("stage3",), weights="default", size=256, smoothing=None
    ):
        super().__init__(backbone=backbone, layers=layers, weights=weights, size=size, smoothing=smoothing)
        self.register_buffer("mean", None)  # (P, C, h, w)

    def build(self, shapes, positions, seed):
        self.mean = torch.zeros(positions, *shapes[0])

    def begin_fit(self, context):
        self._seen = 0

    def observe(self, batch):
        self.mean += batch.levels[0].sum(0)
        self._seen += len(batch.levels[0])

    def end_fit(self):
        self.mean /= self._seen
        return {"images": self._seen}

    def score(self, batch):
        maps = (batch.levels[0] - self.mean).square().mean(2).sqrt()  # (B, P, h, w)
        keep = kept_cells(batch.keep, tuple(maps.shape[2:]))
        return highest(maps, keep), self.smoothed(maps, keep)
'''

USE = """
import json, sys
import numpy as np
import pickglass as pg
from typer.testing import CliRunner
from pickglass.cli.main import app
from pickglass.methods import METHODS, find_method, method_names
from pickglass.testing import check_detector, textures

data, folder = sys.argv[1:]
assert "mean_distance" in method_names() and "mean_distance" not in METHODS
assert "mean_distance_package" not in sys.modules  # nothing was imported yet

def run(*words):
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output

model = folder + "/model.safetensors"
run("fit", data, "-o", model, "--method", "MeanDistance", "--set", "size=64", "--engine", "torch", "--json")
loaded = pg.load(model)
assert type(loaded) is find_method("mean_distance")
assert np.isfinite(loaded.predict(textures(2, 64), engine="torch").scores).all()
passed = check_detector(type(loaded)(size=64), modes=["plain", "copied"], n_images=8)  # the rest: test_contributing
assert "mean_distance" in run("methods")
study = json.loads(run("study", data, "-o", folder + "/study.sqlite", "--methods", "mean_distance", "--sizes", "64",
                       "--layers", "stage3", "--backbones", "efficientnet_lite0", "--engine", "torch", "--json"))
print(json.dumps({"passed": len(passed), "cells": [[c["method"], c["state"]] for c in study["cells"]]}))
"""


def install(folder: Path, name: str, code: str, entry: str) -> None:
    """A package as pip leaves it: its module, and a dist-info folder with its entry point."""
    module = name.replace("-", "_")
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{entry}\n")


def test_a_method_of_another_package_is_at_home_everywhere(small_dataset: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "mean-distance-package", PACKAGE, "mean_distance = mean_distance_package:MeanDistance")
    paths = [str(site), str(Path(pg.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", USE, str(small_dataset), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["passed"] >= 13
    assert told["cells"] == [["mean_distance", "done"]]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, from which packages are found as if none had been looked for before."""
    monkeypatch.syspath_prepend(tmp_path)
    plugins._offers.cache_clear()
    yield tmp_path
    plugins._offers.cache_clear()


def test_a_package_that_is_broken_is_named_when_it_is_asked_for(site: Path) -> None:
    install(site, "broken-package", "import no_such_module_anywhere", "broken = broken_package:Broken")
    assert "broken" in method_names()  # listing imports nothing
    listed = {about["method"]: about for about in list_methods()["methods"]}
    assert listed["broken"]["idea"].startswith("cannot be used: the method 'broken' of the package broken-package 1.0 ")
    assert listed["patchcore"]["class"] == "PatchCore"
    with pytest.raises(
        InputError, match=r"'broken' of the package broken-package 1\.0 .*no_such_module_anywhere.*unin"
    ):
        find_method("broken")


def test_what_is_no_method_or_has_another_name_is_refused(site: Path) -> None:
    install(
        site,
        "odd-package",
        "x = 3\nimport pickglass as pg\nclass Other(pg.PatchCore):\n    method = 'other'\n",
        "number = odd_package:x\nmine = odd_package:Other",
    )
    with pytest.raises(InputError, match=r"odd-package 1\.0 .*3 is no method: expected a class derived"):
        find_method("number")
    with pytest.raises(InputError, match="offers a method 'mine', but its class Other states method = 'other'"):
        find_method("mine")


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    for name in ("first-package", "second-package"):
        install(site, name, PACKAGE, f"same = {name.replace('-', '_')}:MeanDistance")
    with pytest.raises(InputError, match=r"first-package 1\.0 and second-package 1\.0 both offer a method 'same'"):
        find_method("same")


def test_the_name_of_another_method_is_taken(site: Path) -> None:
    install(site, "taker-package", PACKAGE.replace('"mean_distance"', '"padim"'), "padim = taker_package:MeanDistance")
    with pytest.raises(
        InputError, match=r"the name 'padim' is taken by pickglass\.methods\.padim\.PaDiM.*taker_package"
    ):
        find_method("padim")


def test_registering_by_hand_is_a_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "METHODS", dict(METHODS))

    class Mine(pg.PatchCore):
        method = "mine"

    assert pg.register_method(Mine) is Mine
    assert pg.register_method(Mine) is Mine  # once more, as when a notebook cell runs again with the same class
    assert find_method("mine") is Mine
    assert method_names()[-1] == "mine"

    class Nameless(pg.Detector):
        pass

    with pytest.raises(InputError, match=r"Nameless.method is None: expected the method's name"):
        pg.register_method(Nameless)
    with pytest.raises(InputError, match="3 is no method"):
        pg.register_method(3)  # type: ignore[type-var]


def test_an_unknown_name_is_answered_with_the_nearest(site: Path) -> None:
    install(site, "near-package", PACKAGE, "patchcare = near_package:MeanDistance")
    with pytest.raises(UnknownName, match=r"unknown method 'patchcor'\. The nearest are: patchcore, patchcare"):
        find_method("patchcor")


# -- settings with new names -------------------------------------------------------------------------------------------


def test_an_old_name_of_a_setting_is_taken_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="'position' is now called 'position_weight'") as caught:
        detector = pg.PatchCore(position=0.3)  # type: ignore[call-arg]
    assert caught[0].filename == __file__
    assert detector.configuration()["position_weight"] == 0.3
    assert "position" not in detector.configuration()
    with pytest.warns(DeprecationWarning, match="position_weight") as caught:
        assert pg.PatchCore.configured({"position": 0.5}).position_weight == 0.5
    assert caught[0].filename == __file__
    with pytest.raises(InputError, match="'position_weight' is also given under its old name 'position'"):
        pg.PatchCore.configured({"position": 0.5, "position_weight": 0.5})
    with pytest.raises(UnknownName, match="unknown setting of PatchCore 'positio'"):
        pg.PatchCore.configured({"positio": 0.5})


def test_a_model_file_with_the_old_name_still_loads_and_is_not_stale(tmp_path: Path) -> None:
    good = textures(8, 64)
    fitted = pg.PatchCore(size=64, ratio=0.1, position_weight=0.3).fit(good, engine="torch")
    header, tensors = read_model(fitted.save(tmp_path / "new.safetensors"))
    header["configuration"]["position"] = header["configuration"].pop("position_weight")
    header["calibration"]["settings"] = settings_digest(header["configuration"])
    old = write_model(tmp_path / "old.safetensors", header, tensors)
    with pytest.warns(DeprecationWarning, match="position_weight"):
        loaded = pg.load(old)
    assert loaded.position_weight == 0.3  # type: ignore[attr-defined]
    assert not loaded.current_calibration().stale  # type: ignore[union-attr]
    np.testing.assert_array_equal(
        loaded.predict(good, engine="torch").scores, fitted.predict(good, engine="torch").scores
    )
    assert loaded.configuration() == fitted.configuration() | {"layers": list(fitted.read_layers)}
