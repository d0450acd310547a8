"""bench/: each suite can be imported and explains itself; records, tables and the harness; one suite with a peer.

What the suites measure is not run here, but for one; mypy and these tests hold that they keep up with the package.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from bench.__main__ import docs
from bench.harness import apart, interval, records, suite, tables, turns

from pickglass.app.jobs.executors import LocalExecutor

ROOT = Path(__file__).parents[1]
STAMP = {"commit", "date", "cpu", "cores", "threads", "load", "python", "versions", "weights", "arguments", "took_s"}


def test_each_suite_says_how_it_is_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(suite.names()) > 20
    for name, question in suite.names().items():
        assert question.endswith((".", "?")), name
        module = importlib.import_module(f"bench.{name}")
        monkeypatch.setattr(sys, "argv", [f"bench/{name}.py", "--help"])
        with pytest.raises(SystemExit) as stop:
            suite.run(name, ["--help"]) if hasattr(module, "SUITE") else module.main()
        assert stop.value.code == 0, name
        assert "usage:" in capsys.readouterr().out, name


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the example of bench/README.md a suite."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "bench" / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    module = ModuleType("bench.numbers")
    exec(compile(code, "bench/README.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "bench.numbers", module)
    known = suite.names()
    monkeypatch.setattr(suite, "names", lambda: {**known, "numbers": "?"})
    return "numbers"


def test_a_suite_is_measured_once_and_says_with_what(
    example: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new" / "numbers.jsonl"
    first = suite.run(example, ["--counts", "10", "20", "-o", str(file)])
    assert records.read(file) == json.loads(json.dumps(first))
    assert [(row["suite"], row["count"]) for row in first] == [("numbers", 10), ("numbers", 20)]
    assert capsys.readouterr().out.splitlines()[-4:-2] == ["| numbers | seconds |", "|---|---|"]
    measured = first[0]["measured"]
    assert set(measured) == STAMP
    assert measured["arguments"] == {"counts": [10, 20]}

    with file.open("a") as lines:
        lines.write('{"suite": "numbers", "cou')  # a run that was killed
    again = suite.run(example, ["--counts", "20", "30", "-o", str(file)])
    assert again[0] == json.loads(json.dumps(first[1]))
    assert [row["count"] for row in records.read(file)] == [10, 20, 30]
    assert suite.table(example, "", records.read(file)).count("\n") == 4


def test_a_stamp_knows_weights_and_no_folders(tmp_path: Path) -> None:
    stamp = records.stamp(["efficientnet_lite0", "resnet18"], {"data": tmp_path, "sets": [tmp_path / "a"]}, 1.0)
    assert len(stamp["weights"]["efficientnet_lite0"]) == 16
    assert stamp["arguments"] == {"data": tmp_path.name, "sets": ["a"]}
    assert str(tmp_path) not in json.dumps(stamp)


def test_committed_results_say_where_they_come_from() -> None:
    files = sorted(records.RESULTS.glob("*.jsonl"))
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r'[" ](?:/(?:home|root|tmp|Users|mnt|work|opt)|[A-Z]:\\\\)[/\\]?', text), file
        for row in records.read(file):
            assert row["suite"] == file.stem
            if "measured" in row:
                assert set(row["measured"]) == STAMP  # and nothing that names a machine or a user
            else:
                assert {"date", "source", "command"} <= set(row)


def test_tables_of_the_documentation_are_those_of_the_results() -> None:
    assert not docs(check=True), "python -m bench docs writes them"


def test_marks_of_tables() -> None:
    text = "a\n<!-- table: x:y -->\n| old |\n<!-- /table -->\nb"
    new = tables.renewed(text, lambda name, title: f"| {name}, {title} |")
    assert new == "a\n<!-- table: x:y -->\n| x, y |\n<!-- /table -->\nb"
    for broken in (
        text.replace("<!-- /table -->", ""),
        text.replace("<!-- table: x:y -->", ""),
        f"{text}\n{text[2:40]}",
    ):
        with pytest.raises(ValueError, match="/table"):
            tables.renewed(broken, lambda name, title: "")
    assert interval(0.5, 0.25, 0.75, 2) == "0.50 [0.25, 0.75]"


def test_turns_alternate_and_apart_is_another_process() -> None:
    calls: list[str] = []
    times = turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in times.values()] == [2, 2]
    assert apart(records.commit) == records.commit()
    with pytest.raises(RuntimeError, match="no suite 'nope'"):
        apart(suite.run, "nope", [])


@pytest.mark.slow
@pytest.mark.long
def test_the_runtime_against_a_peer(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that says what it was asked stands for the peer."""
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys\n"
        "print('something else')\n"
        "print(json.dumps({'images_per_s': 0.5}))\n"
        "print(json.dumps({'asked': sys.argv[1:]}))\n"
    )
    monkeypatch.setattr("bench.harness.peer.SCRIPT", script)
    # in this process: a new one for each run takes seconds
    monkeypatch.setattr("pickglass.app.bench.bench.LocalExecutor", lambda apart: LocalExecutor())
    words = [str(small_dataset), "--size", "64", "--repeat", "4", "--ratio", "0.1", "--peer-python", sys.executable]
    (found,) = suite.run("runtime", words)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    assert found["n_fit"] == 16
    own = {"patchcore": ["--random-bank", "--ratio", "0.1"], "padim": ["--n-features", "100", "--layers"]}
    for method, more in own.items():
        both, theirs = found[method]["ours"], found[method]["peer"]
        assert list(both) == ["onnxruntime", "openvino"]
        best = max(figures["images_per_s"] for figures in both.values())
        assert found[method]["times_faster"] == pytest.approx(best / 0.5)
        assert both["onnxruntime"]["p99_over_median"] is None  # of four passes
        assert both["onnxruntime"]["image_auroc"] is not None
        asked = theirs["asked"]
        assert asked[:5] == [str(small_dataset.resolve()), "--method", method, "--size", "64"]
        assert asked[7 : 7 + len(more)] == more
    assert suite.table("runtime", "", [found]).count("\n") == 5


def test_summaries_say_what_the_tables_below_them_say() -> None:
    """A page of measurements begins with a table of a few figures; each of them stands below, too, perhaps longer."""
    for name in ("vanishing", "combined", "fusion", "methods", "tiled-ensemble", "teachers"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        first = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
        assert first is not None, name
        figures = set(re.findall(r"\d+\.\d+", first[0]))
        assert len(figures) > 4, name
        below = re.findall(r"\d+\.\d+", text[first.end() :])
        missing = figures - set(below) - {f"{float(value):.2f}" for value in below}
        assert not missing, (name, sorted(missing))
