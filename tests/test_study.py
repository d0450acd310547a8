"""The study: every cell once, whatever is killed, shared or broken; the same scores as plain fits; its page."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pickglass.app.jobs.executors import LocalExecutor
from pickglass.app.pages.heckler2023 import best_layers, mean_values
from pickglass.app.pages.study import courses_of, undrawn
from pickglass.app.study.cells import Cell, Grid, Plan, make_plan, weights_name
from pickglass.app.study.heckler2023 import HECKLER2023
from pickglass.app.study.report import write_report
from pickglass.app.study.store import Outcome, StudyStore
from pickglass.app.study.study import StudyFiles, StudyRequest, list_cells, study
from pickglass.app.study.time import estimate
from pickglass.cli.study import _write
from pickglass.data import load_dataset
from pickglass.errors import InputError, UnknownName
from pickglass.features.shared import SharedFeatures
from pickglass.methods import find_method
from pickglass.runtime.compute import ComputeOptions

QUICK = ComputeOptions(engine="torch")
TORCH = QUICK.arguments()
LITE = "efficientnet_lite0"


def make(n_groups: int = 3, seeds: int = 2) -> Plan:
    """Cells that nobody fits."""
    cells = [
        Cell("/data", f"part{g}", "patchcore", LITE, ("stage2",), "default", 64, s)
        for g in range(n_groups)
        for s in range(seeds)
    ]
    return Plan(tuple(cells), {}, (), {("/data", f"part{g}"): (10, 5) for g in range(n_groups)})


def keys(plan: Plan) -> list[str]:
    return [cell.key for cell in plan.cells]


def fill(store: StudyStore, plan: Plan, value: Any) -> None:
    """Do all cells, each with the image AUROC that ``value`` gives of it."""
    store.enter(plan)
    while cells := store.claim(keys(plan)):
        for cell in cells:
            store.write(Outcome(cell.key, "done", {"image_auroc": value(cell), "aupro_30": 0.25}))


def test_each_data_set_has_a_table_and_every_cell_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make(2, seeds=2)
    of_set = {"part0": 1.0, "part1": 0.0}
    with StudyStore(tmp_path / "s.sqlite") as store:
        fill(store, plan, lambda cell: of_set[cell.dataset])
        rows = store.rows()
        store.export(tmp_path / "s.csv")
        write_report(tmp_path / "s.html", store, keys(plan), plan, None, 10**6)
    text = (tmp_path / "s.html").read_text()
    assert "<h3>part0</h3>" in text
    assert "<h3>part1</h3>" in text
    assert "1.000 ± 0.000" in text
    assert "0.500 ± " not in text  # the mean of unlike data sets
    said = "patchcore draws nothing at random here: each of its 2 seeds gave the same figures"
    assert said in text
    assert said in undrawn(rows)[0]
    assert undrawn([{**row, "image_auroc": row["seed"] / 2} for row in rows]) == []
    assert undrawn([row for row in rows if row["seed"] == 0]) == []  # one seed tells nothing
    with (tmp_path / "s.csv").open(newline="") as file:
        commands = [row["command"] for row in csv.DictReader(file)]
    assert all(command.startswith("pickglass study /data -o ") for command in commands)
    cells = [{**row, "data": "/data", "layers": ["stage2"]} for row in rows]
    _write({"cells": cells}, latex=False)  # type: ignore[typeddict-item]
    markdown = capsys.readouterr().out
    assert markdown.count("### part") == 2
    assert "| patchcore | efficientnet_lite0 | stage2 | default | 64 | 1.000 ± 0.000 | 0.250 ± 0.000 |" in markdown
    _write({"cells": cells}, latex=True)  # type: ignore[typeddict-item]
    latex = capsys.readouterr().out
    assert latex.count(r"\begin{tabular}") == 2
    assert r"1.000 $\pm$ 0.000" in latex


# -- one backbone pass -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scores_are_those_of_plain_fits_and_each_image_is_seen_once(small_dataset: Path) -> None:
    data = load_dataset(small_dataset)
    settings = {"backbone": LITE, "weights": "random", "size": 64}
    tiny = {"teacher_epochs": 1, "student_epochs": 1, "student_hidden": 8}
    cases = [
        ("patchcore", ("stage2", "stage3"), {}),
        ("padim", ("stage3",), {}),
        ("asymmetric_student_teacher", ("stage3",), tiny),
    ]
    with SharedFeatures(LITE, "random", 0, ["stage2", "stage3"], len(data.table), 1.0) as shared:
        for method, layers, changes in cases:
            own = {**settings, "layers": layers, **changes}
            plain, served = (find_method(method).configured(own) for _ in range(2))
            served.shared_features = shared
            found = [d.fit(data.train, calibrate=0.0, **TORCH).predict(data.test, **TORCH) for d in (plain, served)]
            np.testing.assert_allclose(found[1].scores, found[0].scores, rtol=1e-4)
            np.testing.assert_allclose(found[1].maps, found[0].maps, rtol=1e-3, atol=1e-4)
        assert shared.computed == len(data.table) == 24


def test_more_images_than_are_kept_are_computed_anew() -> None:
    images = torch.rand(3, 3, 64, 64)
    with SharedFeatures(LITE, "random", 0, ["stage2"], 2, 1.0) as shared:
        engine = shared.engine(shared.extractor, "cpu", "torch")
        first, again = engine(images[[0, 1, 2, 0]]), engine(images[[2, 0, 1]])
        assert shared.computed == 4  # three, and the third once more
        torch.testing.assert_close(again[0], first[0][[2, 0, 1]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first[0][3], first[0][0], rtol=0, atol=0)


def test_features_of_other_weights_are_refused() -> None:
    from pickglass.features.extractor import FeatureExtractor

    with SharedFeatures(LITE, "random", 0, ["stage2"], 2, 1.0) as shared:
        with pytest.raises(RuntimeError, match="seed 1"):
            shared.engine(FeatureExtractor(LITE, ["stage2"], "random", seed=1), "cpu", "torch")
        with pytest.raises(RuntimeError, match="stage3"):
            shared.engine(FeatureExtractor(LITE, ["stage3"], "random", seed=0), "cpu", "torch")


# -- the cells ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cells_of_a_pass_stand_together_and_random_weights_differ_by_seed(small_dataset: Path) -> None:
    grid = Grid(["patchcore", "padim"], [LITE], ["stage2", "stage2+stage3"], ["supervised", "random"], [64, 128])
    plan = make_plan([small_dataset], [grid, grid], seeds=3)
    assert len(plan.cells) == len(set(keys(plan))) == 2 * 2 * 2 * 2 * 3
    groups = [cell.group for cell in plan.cells]
    assert len(set(groups)) == 2 + 2 * 3  # sizes of the published weights, sizes x seeds of the random ones
    assert sum(a != b for a, b in pairwise(groups)) == len(set(groups)) - 1
    assert Cell.from_json(json.loads(json.dumps(plan.cells[5].to_json()))) == plan.cells[5]


def test_weights_as_papers_write_them() -> None:
    names = ["supervised", "moco_v2", "MoCo", "SeLa-v2", "simclr", "random", "v2", "my_file.pth", "simclr:FILE_x.pth"]
    assert [weights_name(name) for name in names] == [
        "default", "mocov2", "mocov2", "selav2", "simclr", "random", "v2", "my_file.pth", "simclr:FILE_x.pth",
    ]  # fmt: skip


def test_what_cannot_be_is_said_before_anything_runs(small_dataset: Path) -> None:
    with pytest.raises(UnknownName, match="stage2"):
        make_plan([small_dataset], [Grid(["padim"], [LITE], ["stag2"])])
    with pytest.raises(UnknownName, match="epochs"):
        make_plan([small_dataset], [Grid(["fastflow"], [LITE])], settings={"fastflow": {"epoch": 3}})
    with pytest.raises(InputError, match="published for resnet50"):
        make_plan([small_dataset], [Grid(["padim"], [LITE], weights=["moco_v2"])])
    plan = make_plan([small_dataset], [Grid(["padim"], [LITE], ["stage2"], ["moco_v2", "random"])])
    assert len(plan.cells) == 1
    assert "not for efficientnet_lite0" in plan.left_out[0]


def test_preset_selects(small_dataset: Path, tmp_path: Path) -> None:
    result = list_cells([small_dataset], tmp_path / "s.sqlite", StudyRequest(preset="heckler2023"))
    # figure 2: 2 x 4 backbones x 4 layers; figure 3: 2 x 3 sizes x 4, of which FastFlow at 256 px is figure 2's;
    # figures 4 and 5: 2 x 6 initialisations x 4
    assert result["n"] == 32 + 24 - 4 + 48
    chosen = list_cells([small_dataset], tmp_path / "s.sqlite", StudyRequest(preset="heckler2023", weights=["MoCo"]))
    assert {(c["method"], c["weights"]) for c in chosen["cells"]} == {
        ("asymmetric_student_teacher", "mocov2"),
        ("patchcore", "mocov2"),
    }
    assert not (tmp_path / "s.sqlite").exists()


# -- the file ----------------------------------------------------------------------------------------------------------


def test_claims_are_apart_and_a_lost_claim_writes_nothing(tmp_path: Path) -> None:
    plan = make()
    with StudyStore(tmp_path / "s.sqlite") as a, StudyStore(tmp_path / "s.sqlite") as b:
        for store in (a, b):
            store.enter(plan)
        first, second = a.claim(keys(plan)), b.claim(keys(plan))
        assert [cell.dataset for cell in (*first, *second)] == ["part0", "part0", "part1", "part1"]
        assert not b.write(Outcome(first[0].key, "done", {"image_auroc": 0.5}))
        assert a.write(Outcome(first[0].key, "done", {"image_auroc": 0.75}))
        assert not a.write(Outcome(first[0].key, "failed", {}))
        a.release()
        states = {row["key"]: row["state"] for row in b.rows()}
        assert [states[key] for key in keys(plan)] == ["done", "waiting", "claimed", "claimed", "waiting", "waiting"]
        assert [cell.key for cell in b.claim(keys(plan))] == [first[1].key]


def test_a_claim_without_a_sign_of_life_is_taken_over(tmp_path: Path) -> None:
    plan = make(1)
    with StudyStore(tmp_path / "s.sqlite") as a, StudyStore(tmp_path / "s.sqlite") as b:
        a.enter(plan)
        assert len(a.claim(keys(plan))) == 2
        assert b.claim(keys(plan)) == ()
        a.connection.execute("UPDATE cells SET beat = ?", (time.time() - 300,))
        assert len(b.claim(keys(plan))) == 2
        assert not a.write(Outcome(keys(plan)[0], "done", {}))


CLAIMS = """
    import json, os, sys
    from pickglass.app.study.store import Outcome, StudyStore
    store = StudyStore(sys.argv[1])
    keys = [row["key"] for row in store.rows()]
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(8):
        cells = store.claim(keys)
        if not cells:
            break
        for cell in cells:
            store.write(Outcome(cell.key, "done", {}))
            print(cell.key, flush=True)
    cells = store.claim(keys)
    print("held", *(cell.key for cell in cells), flush=True)
    os._exit(1)  # no farewell
"""


@pytest.mark.slow
def test_two_processes_share_a_file_and_the_claim_of_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    plan = make(40, seeds=1)
    file = tmp_path / "s.sqlite"
    with StudyStore(file) as store:
        store.enter(plan)
        command = [sys.executable, "-c", textwrap.dedent(CLAIMS), str(file)]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        own: list[str] = []
        while len(own) < 15:
            (cell,) = store.claim(keys(plan))
            store.write(Outcome(cell.key, "done", {}))
            own.append(cell.key)
            time.sleep(0.002)
        *theirs, held = other.communicate()[0].split("\n")[:-1]
        assert len(theirs) == 8
        assert not set(theirs) & set(own)
        abandoned = held.split()[1:]
        assert len(abandoned) == 1
        left = []
        while cells := store.claim(keys(plan)):
            left += [cell.key for cell in cells]
        assert set(abandoned) < set(left)
        assert sorted([*own, *theirs, *left]) == sorted(keys(plan))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, " * 100)
    with pytest.raises(InputError, match="cannot be used as a study's file"):
        StudyStore(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="cannot be used as a study's file"):
        StudyStore(tmp_path / "nowhere" / "s.sqlite")


# -- the study ---------------------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    from pickglass.app.study.study import StudyRequest, study
    from pickglass.runtime.compute import ComputeOptions
    def progress(stage, done, total):
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    request = StudyRequest(methods=["padim"], layers=["stage2", "stage3", "stage4"], weights=["random"], sizes=[64])
    study([sys.argv[1]], sys.argv[2], request, compute=ComputeOptions(engine="torch"), progress=progress)
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_study_goes_on_where_it_was(small_dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.sqlite"
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(small_dataset), str(file)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with StudyStore(file) as store:
        before = store.rows()
    assert [row["state"] for row in before] == ["done", "done", "claimed"]
    request = StudyRequest(methods=["padim"], layers=["stage2", "stage3", "stage4"], weights=["random"], sizes=[64])
    calls: list[int] = []
    result = study(
        [small_dataset], file, request, compute=QUICK, progress=lambda stage, done, total: calls.append(done)
    )
    assert (result["done"], result["n"], calls) == (3, 3, [3])
    with StudyStore(file) as store:
        after = store.rows()
    assert before[:2] == after[:2]
    assert after[2]["image_auroc"] is not None
    study([small_dataset], file, request, compute=QUICK, progress=lambda stage, done, total: calls.append(done))
    assert calls == [3]  # nothing was left


@pytest.mark.slow
def test_a_failed_cell_does_not_stop_the_rest(small_dataset: Path, tmp_path: Path) -> None:
    table, page = tmp_path / "s.csv", tmp_path / "s.html"
    result = study(
        [small_dataset],
        tmp_path / "s.sqlite",
        StudyRequest(
            methods=["asymmetric_student_teacher", "padim"],  # the first takes one layer only
            layers=["stage2+stage3"],
            weights=["random"],
            sizes=[64],
        ),
        files=StudyFiles(table, page, images=4),
        compute=QUICK,
    )
    assert [(cell["method"], cell["state"]) for cell in result["cells"]] == [
        ("asymmetric_student_teacher", "failed"),
        ("padim", "done"),
    ]
    failed = result["cells"][0]
    assert "layer" in str(failed["error"])
    assert "--methods asymmetric_student_teacher" in str(failed["command"])
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["failed", "done"]
    assert 0 <= float(rows[1]["image_auroc"]) <= 1
    assert float(rows[1]["peak_mb"]) > 10
    assert json.loads(rows[1]["versions"])["torch"] == torch.__version__.partition("+")[0]
    text = page.read_text()
    assert "Cells that failed" in text
    assert text.count("data:image/jpeg") == 4 * 3  # the image, and padim's map on both scales
    assert text.count("nothing to show") == 4


def test_the_page_says_which_layer_sees_most() -> None:
    def row(layers: str, value: float | None, place: int, backbone: str = "a") -> dict[str, Any]:
        own = {"dataset": "tiles", "method": "padim", "weights": "default", "size": "256", "seed": 0}
        return {**own, "backbone": backbone, "layers": layers, "place": place, "state": "done", "aupro_05": value}

    rows = [row("one", 0.1, 0), row("two", 0.7, 1), row("three", None, 2), row("x", 0.2, 3, "b"), row("y", 0.3, 4, "b")]
    (course,) = courses_of(rows)  # two layers of b say nothing of their course
    assert (course.dataset, course.backbone, course.layers) == ("tiles", "a", ["one", "two", "three"])
    (line,) = course.lines
    assert [cell.text for cell in line.cells] == ["0.10", "0.70", "–"]
    assert [cell.style for cell in line.cells] == ["share1", "share7", ""]
    assert line.best == "two"
    assert courses_of(rows[3:]) == []


def test_missing_weights_stay_empty_and_carry_their_command(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICKGLASS_WEIGHTS", str(tmp_path))
    result = study(
        [small_dataset],
        tmp_path / "s.sqlite",
        StudyRequest(backbones=["resnet50"], weights=["swav"], sizes=[64]),
        compute=QUICK,
    )
    assert (result["n"], result["missing"], result["done"]) == (4, 4, 0)
    assert "swav_800ep_pretrain.pth.tar" in str(result["cells"][0]["error"])
    words = str(result["cells"][0]["command"]).split()
    assert words[words.index("--weights") + 1] == "swav"
    assert words[words.index("--layers") + 1] == "layer1.2.relu_2"


def test_estimates_follow_what_was_measured() -> None:
    plan = make(1, seeds=3)
    rows = [
        {"key": cell.key, "state": "waiting", "total_s": None, "cell": json.dumps(cell.to_json())}
        for cell in plan.cells
    ]
    rough = estimate(plan, rows)
    assert len(rough) == 3
    rows[0] |= {"state": "done", "total_s": 30.0}
    assert estimate(plan, rows) == pytest.approx(dict.fromkeys(keys(plan)[1:], 30.0))


# -- executors ---------------------------------------------------------------------------------------------------------


COUNT = """
    import os

    def count(task):
        yield 10 * task
        if task == 1:
            os._exit(7)
        if task == 2:
            raise ValueError("task 2")
        yield 10 * task + 1
"""


def events_of(executor: LocalExecutor, count: Callable[[int], Iterator[int]]) -> dict[int, list[object]]:
    waiting = [0, 1, 2]
    found: dict[int, list[object]] = {}
    for event in executor.run(count, lambda: waiting.pop(0) if waiting else None):
        found.setdefault(event.task, []).append((event.error or "end") if event.ended else event.result)
    return found


@pytest.mark.slow
def test_a_worker_that_dies_takes_its_own_task_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counting.py").write_text(textwrap.dedent(COUNT))
    monkeypatch.syspath_prepend(tmp_path)
    assert events_of(LocalExecutor(workers=3), import_module("counting").count) == {
        0: [0, 1, "end"],
        1: [10, "the worker process died (exit code 7)"],
        2: [20, "ValueError: task 2"],
    }


# -- figures -----------------------------------------------------------------------------------------------------------


def row(dataset: str, layer: str, seed: int, value: float | None) -> dict[str, object]:
    cell = {"root": "/data", "dataset": dataset}
    state = "waiting" if value is None else "done"
    return {
        "cell": json.dumps(cell),
        "layers": layer,
        "seed": seed,
        "state": state,
        "image_auroc": value,
        "size": "256",
    }


def test_best_layers_are_counted_over_objects_and_ties_are_shared() -> None:
    rows = [
        row("a", "x", 0, 0.9), row("a", "x", 1, 0.7), row("a", "y", 0, 0.75), row("a", "y", 1, 0.75),  # x: 0.8
        row("b", "x", 0, 1.0), row("b", "y", 0, 1.0),  # a tie
        row("c", "x", 0, 0.2), row("c", "y", 0, 0.6),
        row("d", "x", 0, 0.9), row("d", "y", 0, None),  # not done: not counted
    ]  # fmt: skip
    assert best_layers(rows, "image_auroc", ["x", "y"], size=256) == ({"x": 1.5, "y": 1.5}, 3)
    assert mean_values(rows, "image_auroc", layers="x")["/data a"] == pytest.approx(0.8)


def test_figures_are_drawn_from_the_file_and_the_rest_stays_empty(small_dataset: Path, tmp_path: Path) -> None:
    plan = make_plan([small_dataset], list(HECKLER2023))
    with StudyStore(tmp_path / "s.sqlite") as store:
        store.enter(Plan(plan.cells, {}, (), plan.images))
        rng = np.random.default_rng(0)
        while cells := store.claim(keys(plan)):
            for cell in cells:
                empty = cell.weights in ("swav", "simclr") or (cell.method, cell.size) == ("fastflow", 512)
                values = {"image_auroc": rng.uniform(0.6, 1.0), "aupro_30": rng.uniform(0.6, 1.0)}
                store.write(
                    Outcome(cell.key, "missing", {"error": "no file"}) if empty else Outcome(cell.key, "done", values)
                )
        for backbone in {cell.backbone for cell in plan.cells}:
            layers = {cell.layers[0]: 0 for cell in plan.cells if cell.backbone == backbone}
            store.keep_fields(backbone, "random", {layer: 10 * i for i, layer in enumerate(layers, start=1)})
        write_report(tmp_path / "s.html", store, set(keys(plan)), plan, "heckler2023", None)
    text = (tmp_path / "s.html").read_text()
    for title in ("Figure 2", "Figure 3", "Figure 4", "Figure 5"):
        assert text.count(f"{title}: ") == 1
    # FastFlow at 512 px: 4 layers x 2 metrics; two initialisations x 4 layers x 2 metrics x 2 figures
    assert text.count('<td class="empty">') == 8 + 32
    for weights in ("swav", "simclr"):
        assert f"--sizes 256 --weights {weights} --seeds 1" in text
