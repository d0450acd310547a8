"""Workers that die: each executor's users try once more, count nothing twice, and give up on what is to blame alone."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pickglass as pg
from pickglass.app import fit_many as fit_many_module
from pickglass.app import spread
from pickglass.app.fit_many import fit_many
from pickglass.app.jobs.executors import Event, RayExecutor, Where
from pickglass.app.predict import predict
from pickglass.app.spread import Chunk, judge_apart
from pickglass.app.study import study as study_module
from pickglass.app.study.cells import Cell, Plan
from pickglass.app.study.run import GroupTask
from pickglass.app.study.store import Outcome, StudyStore
from pickglass.data import Row, Table
from pickglass.errors import Failure, InputError, PickglassError
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions


class Mortal:
    """An executor in this process: two tasks at once, results in turn, and the worker dies where ``dies`` says so."""

    def __init__(self, dies: Callable[[Any, Any], bool]) -> None:
        self.dies = dies
        self.begun: list[Any] = []

    def run(self, function: Callable[[Any], Iterator[Any]], take: Callable[[], Any]) -> Iterator[Event[Any, Any]]:
        running: list[tuple[Any, Iterator[Any]]] = []
        while True:
            while len(running) < 2 and (task := take()) is not None:
                self.begun.append(task)
                running.append((task, function(task)))
            if not running:
                return
            task, results = running.pop()  # the last one first, so that results come out of order
            for result in results:
                if self.dies(task, result):
                    yield Event(task, ended=True, error="the worker process died (exit code -9)", died=True)
                    break
                yield Event(task, result)
            else:
                yield Event(task, ended=True)


class Known:
    """A model whose score is the number in the image's name."""

    class provenance:
        @staticmethod
        def rows_to_judge(table: Table) -> Sequence[Row]:
            return table.rows

    def stream(self, table: Table, **_: Any) -> Iterator[Found | Failure]:
        for row in table:
            number = int(Path(row.path).stem)
            if number == 3:
                yield Failure(row.path, "broken")
            else:
                yield Found(row, number, np.zeros((1, 1), np.float32), (1, 1))


def judged(monkeypatch: pytest.MonkeyPatch, executor: Mortal, n: int = 20) -> list[tuple[str, object]]:
    monkeypatch.setattr(Where, "make", lambda _: executor)
    monkeypatch.setattr(spread, "_BATCHES", 2)
    table = Table([Row(f"images/{i}.png") for i in range(n)])
    counts: list[int] = []
    model: Any = Known()
    found = [
        *judge_apart(
            model, model, table, Where(), ComputeOptions(batch=3), lambda stage, done, total: counts.append(done)
        )
    ]
    assert counts == [*range(1, n + 1)]
    return [(item.path, item.error) if isinstance(item, Failure) else (item.row.path, item.score) for item in found]


def expected(n: int = 20) -> list[tuple[str, object]]:
    return [(f"images/{i}.png", "broken" if i == 3 else i) for i in range(n)]


def test_images_come_in_order_and_workers_get_absolute_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Mortal(lambda task, result: False)
    assert judged(monkeypatch, executor) == expected()
    assert sorted(len(chunk.rows) for chunk in executor.begun) == [2, 6, 6, 6]
    assert all(Path(row.path).is_absolute() for chunk in executor.begun for row in chunk.rows)


@pytest.mark.parametrize("at", [0, 3, 5, 7, 19])
def test_a_worker_that_dies_once_costs_nothing_and_its_batches_stay(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    died: set[int] = set()

    def dies(task: Chunk, result: tuple[int, object]) -> bool:
        return result[0] == at and at not in died and not died.add(at)  # type: ignore[func-returns-value]

    executor = Mortal(dies)
    assert judged(monkeypatch, executor) == expected()
    spans = [(chunk.first, len(chunk.rows)) for chunk in executor.begun]
    assert sorted(spans) == sorted([(0, 6), (6, 6), (12, 6), (18, 2), (at // 6 * 6, 2 if at > 17 else 6)])


@pytest.mark.parametrize("at", [0, 5, 8, 19])
def test_an_image_that_kills_every_worker_is_reported_and_the_others_are_kept(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    found = judged(monkeypatch, Mortal(lambda task, result: result[0] == at))
    assert found[:at] + found[at + 1 :] == expected()[:at] + expected()[at + 1 :]
    assert found[at][0] == f"images/{at}.png"
    assert "its worker died" in str(found[at][1])


def test_maps_that_wait_for_their_turn_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_HELD", 0)
    assert judged(monkeypatch, Mortal(lambda task, result: False), 60) == expected(60)


def test_an_error_of_the_model_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Mortal):
        def run(self, function: Any, take: Callable[[], Any]) -> Iterator[Event[Any, Any]]:
            yield Event(take(), ended=True, error="m.safetensors: no such file")

    with pytest.raises(PickglassError, match="no such file"):
        judged(monkeypatch, Broken(lambda task, result: False))


# -- studies and fits of many ------------------------------------------------------------------------------------------


def test_a_cell_whose_worker_died_once_is_done_by_the_same_call(tmp_path: Path) -> None:
    def cell(g: int, seed: int) -> Cell:
        return Cell("/data", f"part{g}", "patchcore", "efficientnet_lite0", ("stage2",), "default", 64, seed)

    plan = Plan(tuple(cell(g, seed) for g in range(3) for seed in range(3)), {}, ())
    once, always = plan.cells[1].key, plan.cells[4].key
    died: list[str] = []

    def dies(task: GroupTask, outcome: Outcome) -> bool:
        if outcome.key == always or (outcome.key == once and once not in died):
            died.append(outcome.key)
            return True
        return False

    def work(task: GroupTask) -> Iterator[Outcome]:
        for cell in task.cells:
            yield Outcome(cell.key, "done", {"n": 1})

    with pytest.MonkeyPatch.context() as patch, StudyStore(tmp_path / "s.sqlite") as store:
        patch.setattr(study_module, "run_group", work)
        store.enter(plan)
        counts: list[int] = []
        study_module._work(store, plan, Mortal(dies), GroupTask, lambda stage, done, total: counts.append(done))
        states = {row["key"]: row["state"] for row in store.rows()}
    assert counts == [*range(1, 9)]
    assert sorted(died) == sorted([once, always, always])
    assert [states[cell.key] for cell in plan.cells] == ["done"] * 4 + ["failed"] + ["done"] * 4


def test_cells_that_another_process_lets_wait_again_do_not_disturb_their_group(tmp_path: Path) -> None:
    cells = [Cell("/data", "a", "patchcore", "efficientnet_lite0", ("stage2",), "default", 64, s) for s in range(4)]
    plan = Plan(tuple(cells), {}, ())
    tries: list[str] = []

    with pytest.MonkeyPatch.context() as patch, StudyStore(tmp_path / "s.sqlite") as store:

        class Turns:
            """Asks for a task after the first result, as an executor with room does."""

            def run(self, function: Any, take: Callable[[], Any]) -> Iterator[Event[Any, Any]]:
                first = take()
                results = function(first)
                yield Event(first, next(results))
                with StudyStore(tmp_path / "s.sqlite") as other:
                    other.enter(plan)  # the same command again: what failed waits again
                second = take()
                for task, rest in ((first, results), (second, function(second))):
                    for result in rest:
                        yield Event(task, result)
                    yield Event(task, ended=True)

        def work(task: GroupTask) -> Iterator[Outcome]:
            for cell in task.cells:
                tries.append(cell.key)
                yield Outcome(cell.key, "failed" if tries.count(cells[0].key) < 2 else "done", {})

        patch.setattr(study_module, "run_group", work)
        store.enter(plan)
        study_module._work(store, plan, Turns(), GroupTask, None)
        assert {row["state"] for row in store.rows()} <= {"done", "failed"}
    assert len(tries) == 5


def test_a_category_whose_worker_died_once_is_fitted_by_the_same_call(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(small_dataset, tmp_path / "root" / name)
    died: list[str] = []

    def dies(task: Any, result: Any) -> bool:
        if task.name == "b" or (task.name == "a" and "a" not in died):
            died.append(task.name)
            return True
        return False

    def fit(task: Any) -> Iterator[Any]:
        yield {"category": task.name, "state": "done", "model": task.model, "fit": None, "error": None}

    monkeypatch.setattr(fit_many_module, "fit_category", fit)
    executor = Mortal(dies)
    monkeypatch.setattr(Where, "make", lambda _: executor)
    monkeypatch.chdir(tmp_path)
    counts: list[int] = []
    result = fit_many("root", "models", progress=lambda stage, done, total: counts.append(done))
    assert [(row["category"], row["state"], row["model"]) for row in result["categories"]] == [
        ("a", "done", "models/a.safetensors"),
        ("b", "failed", "models/b.safetensors"),
        ("c", "done", "models/c.safetensors"),
    ]
    assert sorted(died) == ["a", "b", "b"]
    assert counts == [1, 2, 3]
    assert {Path(task.source.path) for task in executor.begun} == {tmp_path / "root"}
    assert all(Path(task.model).is_absolute() for task in executor.begun)


# -- where -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"address": "auto"}, "address='auto' belongs to executor 'ray'"),
        ({"cpus": 2.0}, "cpus=2.0 belongs to executor 'ray'"),
        ({"gpus": 1.0}, "gpus=1.0 belongs to executor 'ray'"),
        ({"parallel": 0}, "workers=0"),
        ({"executor": "slurm"}, "executor='slurm'"),
        ({"executor": "ray", "cpus": 0.0, "memory_gb": 0.0}, "one of them above"),
        ({"executor": "ray", "cpus": -1.0}, "none of them below 0"),
        ({"executor": "ray", "gpus": float("nan")}, "none of them below 0"),
        ({"executor": "ray", "parallel": 0}, "0 Ray tasks at once"),
    ],
)
def test_a_place_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Where(**given).make()


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no.such.host.invalid:6379", "here:port", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Ray itself waits for minutes and ends the process."""

    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            return False

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens here
        port = free.getsockname()[1]
        monkeypatch.setitem(__import__("sys").modules, "ray", Ray)
        with pytest.raises(InputError, match="no Ray cluster at address="):
            next(RayExecutor(address.format(port=port)).run(iter, lambda: 1))  # type: ignore[arg-type, return-value]


def test_predict_in_chunks_is_predict(small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_BATCHES", 1)
    model = pg.PatchCore(weights="random", size=64).fit(small_dataset / "train", engine="torch")
    model.save(tmp_path / "m.safetensors")
    run = ComputeOptions(engine="torch", batch=3)
    images = [small_dataset / "test"]
    here, there = (
        predict(tmp_path / "m.safetensors", images, where=at, compute=run) for at in (None, Where(parallel=1))
    )
    for item in (*here["results"], *there["results"]):
        item["time"] = ""
    assert here == there
    assert len(here["results"]) == 8
