"""What comes from outside is data: no checkpoint runs code, no name leaves its folder, no cell is a formula."""

from __future__ import annotations

import ast
import csv
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pickglass as pg
from pickglass.app.convert import convert
from pickglass.app.study.cells import Cell, Plan
from pickglass.app.study.store import StudyStore
from pickglass.app.weights import weights
from pickglass.data import load_dataset
from pickglass.data.files import scratch_folder
from pickglass.data.tables.cells import cell, text_of
from pickglass.data.tables.layouts.spreadsheet import read_lines
from pickglass.errors import DataError, PickglassError
from pickglass.features import FeatureExtractor

pytestmark = pytest.mark.fresh

SOURCE = Path(pg.__file__).parent
FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "'=1", "''a", "a;=1+1", "a\t@x", "\uff1d1"]


# -- pickles -----------------------------------------------------------------------------------------------------------


class Runs:
    """A pickle of it makes a folder where it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("form", ["zip", "pickle", "legacy"])
def test_a_malicious_checkpoint_does_not_run(tmp_path: Path, form: str) -> None:
    trace, file = tmp_path / "it-ran", tmp_path / "resnet18.pth"
    content = {"state_dict": {"conv1.weight": torch.zeros(1)}, "more": Runs(trace)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(PickglassError, match="resnet18"):
        FeatureExtractor("resnet18", ["layer1"], str(file))
    for name in ("m.safetensors", "m.onnx"):
        (tmp_path / name).write_bytes(file.read_bytes())
        with pytest.raises(PickglassError):
            pg.load(tmp_path / name)
    assert not trace.exists()


def test_nothing_is_unpickled() -> None:
    """Also where a library would do it: each of these calls has to say that it does not."""
    wrong = []
    words = ("load", "pickle", "marshal", "shelve", "joblib", "dill")
    for path in SOURCE.rglob("*.py"):
        text = path.read_text("utf-8")
        for node in (
            ast.walk(ast.parse(text)) if any(f"{word}(" in text or f"{word}." in text for word in words) else ()
        ):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name.rpartition(".")[2] not in ("load", "loads", "open"):
                continue
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            safe = said.get("weights_only") == "True" if name == "torch.load" else said.get("allow_pickle") != "True"
            if not safe or name.split(".")[0] in ("marshal", "shelve", "joblib", "dill"):
                wrong.append(f"{path.name}:{node.lineno}: {name}")
            if name.startswith("pickle.") and path.name != "testing.py":  # whose pickles are its own
                wrong.append(f"{path.name}:{node.lineno}: {name}")
    assert not wrong


def test_pages_of_the_server_make_no_markup_of_texts() -> None:
    scripts = [path for path in SOURCE.rglob("*.js")]
    assert len(scripts) > 5
    for path in scripts:
        text = path.read_text("utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in text, f"{path.name}: {word}"


# -- tables ------------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("=+-@\t\r\n;'a\uff1d\uff20")))
def test_no_cell_begins_a_formula_and_every_text_comes_back(text: str) -> None:
    written = cell(text)
    assert text_of(written) == text
    for part in written.replace("\t", ";").split(";"):
        assert not part.startswith(tuple("=+-@\r\n\uff1d\uff20"))


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(path)


def cells_in(file: Path) -> list[str]:
    with file.open(newline="", encoding="utf-8") as lines:
        return [value for line in csv.reader(lines) for value in line]


def test_names_and_types_that_are_formulas_go_through_a_table(tmp_path: Path) -> None:
    names = [name for name in FORMULAS if "/" not in name and name not in ("\r=1",)]
    for i, name in enumerate(names):
        image(tmp_path / "data" / "train" / "good" / f"{name}{i}.png")
        image(tmp_path / "data" / "test" / name / f"{i}.png")
    image(tmp_path / "data" / "test" / "good" / "g.png")
    groups = "".join(f'"{cell(f"train/good/{name}{i}.png")}",{cell("=g")}\n' for i, name in enumerate(names))
    (tmp_path / "data" / "groups.csv").write_text(f"path,group\n{groups}")
    before = load_dataset(tmp_path / "data", training=False)
    assert {row.group for row in before.table if row.role == "train"} == {"=g"}
    convert(tmp_path / "data", tmp_path / "set", "table")
    written = cells_in(tmp_path / "set" / "table.csv")
    assert not [text for text in written if text.startswith(("=", "+", "-", "@", "\t"))]
    after = load_dataset(tmp_path / "set" / "table.csv", training=False)
    assert sorted(str(row.defect) for row in after.table) == sorted(str(row.defect) for row in before.table)
    assert {row.group for row in after.table if row.role == "train"} == {"=g"}


def test_a_study_exports_no_formula(tmp_path: Path) -> None:
    one = Cell("=root", "@set", "patchcore", "resnet18", ("layer1",), "-weights", 32, 0)
    with StudyStore(tmp_path / "s.sqlite") as store:
        store.enter(Plan((one,), {one.key: "+no such weights"}, ()))
        store.export(tmp_path / "s.csv")
    assert {"'=root", "'@set", "'-weights", "'+no such weights"} <= set(cells_in(tmp_path / "s.csv"))
    (line,) = read_lines(str(tmp_path / "s.csv"))
    assert (line["data"], line["dataset"], line["weights"]) == ("=root", "@set", "-weights")


# -- folders -----------------------------------------------------------------------------------------------------------


def test_weights_are_imported_from_their_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICKGLASS_WEIGHTS", str(tmp_path / "here"))
    (tmp_path / "secret").write_text("of somebody else")
    (tmp_path / "packed").mkdir()
    row = {"file": "../secret", "sha256": "cf5ab3d1c5d6e2c1d0f2d0a6c5e1b3a4", "licence": "", "source": ""}
    (tmp_path / "packed" / "pickglass-weights.json").write_text(json.dumps({"resnet50:swav": row}))
    with pytest.raises(DataError, match=r"packed.secret is missing"):
        weights("import", folder=tmp_path / "packed")
    assert not (tmp_path / "here").exists()


def test_a_converted_set_stays_in_its_folder(tmp_path: Path) -> None:
    image(tmp_path / "data" / "a.png")
    image(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "data" / "t.csv").write_text(
        'path,label,defect,role\na.png,0,,train\n../elsewhere/b.png,1,../../../evil,test\n"a.png",1,..,test\n'
    )
    before = {path for path in tmp_path.rglob("*")}
    for form in ("mvtec", "table"):
        try:
            convert(tmp_path / "data" / "t.csv", tmp_path / form, form)  # type: ignore[arg-type]
        except DataError:
            continue
    new = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert new <= {"mvtec", "table"}


def test_a_scratch_folder_of_a_name_that_leads_elsewhere_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".pickglass-tmp-link").symlink_to(tmp_path / "other")
    with scratch_folder(tmp_path / "here"):
        pass
    assert (tmp_path / "other" / "precious").exists()
