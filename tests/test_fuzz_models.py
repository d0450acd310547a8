"""Damaged and hostile files of models, journals and studies: each is used, or refused with one line; see bench.fuzz."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench.fuzz import KINDS, Kind, cases_of, made_kinds, run_case

from pickglass.runtime.export_file import read_export
from pickglass.runtime.graph import check_graph

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="its timers and limits are of POSIX"),
]
CASES = {"model": 24, "tiled": 12, "export": 32, "table": 120, "journal": 32, "study": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("read")


@pytest.fixture(scope="module")
def kinds(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return made_kinds(tmp_path_factory.mktemp("made"), folder)


@pytest.mark.parametrize("name", KINDS)
def test_hostile_files_are_used_or_refused(name: str, kinds: dict[str, Kind], folder: Path) -> None:
    outcomes, faults = set(), []
    for case in cases_of(name, kinds[name], CASES[name], seed=0):
        outcome, fault = run_case(case, kinds[name], folder)
        outcomes.add(outcome)
        faults += [] if fault is None else [f"{case.change}: {fault.what}"]
    assert not faults, "\n".join(faults)
    assert outcomes == {"used", "refused"}


def test_what_a_graph_may_not_do(kinds: dict[str, Kind], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(kinds["export"].sound)
    check_graph(read_export(tmp_path / "m.onnx")[1])
    import onnx
    from onnx import TensorProto, helper

    def refused(change: str, build: object) -> str:
        model = onnx.load_model_from_string(kinds["export"].sound)
        build(model)  # type: ignore[operator]
        with pytest.raises(ValueError, match=change) as caught:
            check_graph(model.SerializeToString())
        return str(caught.value)

    def external(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "/etc/passwd"

    def external_constant(model: onnx.ModelProto) -> None:
        tensor = helper.make_tensor("inner", TensorProto.FLOAT, [1], [1.0])
        tensor.data_location = TensorProto.EXTERNAL
        model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))

    def loop(model: onnx.ModelProto) -> None:
        body = helper.make_graph([], "body", [], [])
        model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))

    def stranger(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.hostile"

    def functions(model: onnx.ModelProto) -> None:
        model.functions.append(onnx.FunctionProto(name="f", domain="x"))

    def growing(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("ConstantOfShape", ["many"], ["bomb"]))

    def doubled(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Concat", ["image", "image"], ["twice"], axis=0))

    refused("another file", external)
    refused("another file", external_constant)
    refused("graph of its own", loop)
    refused("com.hostile", stranger)
    refused("functions of its own", functions)
    refused("ConstantOfShape", growing)
    refused("joins a value with itself", doubled)
