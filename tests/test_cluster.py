"""Many machines: a study, a fit of many categories and ``predict`` on a Ray cluster of two nodes, and what it may lose.

A worker, a node and the asking process are killed; no cell, model or image is lost or counted twice, and the results
are those of one process to the last bit.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import pickglass as pg
from pickglass.app import fit_many as fit_many_module
from pickglass.app import spread
from pickglass.app.fit import FitRequest
from pickglass.app.fit_many import fit_many
from pickglass.app.jobs.executors import RayExecutor, Where
from pickglass.app.predict import predict
from pickglass.app.study import study as study_module
from pickglass.app.study.store import StudyStore
from pickglass.app.study.study import StudyRequest, study
from pickglass.errors import InputError
from pickglass.metrics.catalogue import WITHOUT_THRESHOLD
from pickglass.runtime.compute import ComputeOptions

ray = pytest.importorskip("ray", reason="needs the extra 'cluster'")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    # files that Ray itself leaves open, and what older ones call
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

QUICK = ComputeOptions(engine="torch", batch=4)
RAY = Where("ray", memory_gb=0.5)
CELLS = StudyRequest(methods=["padim"], layers=["stage2", "stage3"], weights=["random"], sizes=[64, 96])
NODE = {"num_cpus": 1, "memory": 1_000_000_000, "object_store_memory": 100_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False)  # at the head, for the other node is to be lost
    made.add_node(**NODE)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def local_rows(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The cells of the study as one process computes them."""
    file = tmp_path_factory.mktemp("local") / "s.sqlite"
    study([small_dataset], file, CELLS, compute=QUICK)
    return rows_of(file)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """What a study found, without what hangs on time and place."""
    with StudyStore(file, create=False) as store:
        rows = store.rows()
        pictures = {row["key"]: [tuple(picture) for picture in store.pictures(row["key"])] for row in rows}
    names = ("key", "state", "n", "n_unread", *WITHOUT_THRESHOLD)
    return [{**{name: row[name] for name in names}, "pictures": pictures[row["key"]]} for row in rows]


def by_value(source: str, name: str, **given: Any) -> Callable[..., Any]:
    """A function that Ray sends whole: its workers cannot import the tests."""
    own: dict[str, Any] = {"__name__": "__main__", **given}
    exec(textwrap.dedent(source), own)
    function: Callable[..., Any] = own[name]
    return function


DIES_ONCE = """
    import os, signal
    from pathlib import Path

    def dies_once(task):
        for i, result in enumerate(function(task)):
            if i == at:
                try:
                    Path(marker).touch(exist_ok=False)
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            yield result
"""
WAITS = """
    import os, time
    from pathlib import Path

    def waits(task):
        Path(folder, f"begun-{os.getpid()}").touch()
        while not Path(folder, "lost").exists():
            time.sleep(0.05)
        yield from function(task)
"""


@contextmanager
def losing(what: str, cluster: Any, folder: Path, module: Any, name: str, at: int = 0) -> Iterator[None]:
    """Meanwhile a worker dies before its result number ``at``, or a node once both of them have begun a task."""
    function, marker = getattr(module, name), folder / "lost"
    if what == "worker":
        lost = by_value(DIES_ONCE, "dies_once", function=function, marker=str(marker), at=at)
    else:
        lost = by_value(WAITS, "waits", function=function, folder=str(folder))

    def remove_node() -> None:
        until = time.monotonic() + 60
        while len(list(folder.glob("begun-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        cluster.remove_node(next(node for node in cluster.list_all_nodes() if not node.is_head()), False)
        marker.touch()

    thread = threading.Thread(target=remove_node if what == "node" else bool)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, lost)
        yield
    thread.join()
    assert marker.exists()
    if what == "node":
        assert len(list(folder.glob("begun-*"))) >= 2
        cluster.add_node(**NODE)


@pytest.mark.parametrize("what", ["worker", pytest.param("node", marks=pytest.mark.long)])
def test_a_study(
    cluster: Any, small_dataset: Path, tmp_path: Path, local_rows: list[dict[str, Any]], what: str
) -> None:
    counts: list[int] = []
    with losing(what, cluster, tmp_path, study_module, "run_group", at=1):
        result = study(
            [small_dataset],
            tmp_path / "s.sqlite",
            CELLS,
            where=RAY,
            compute=QUICK,
            progress=lambda *at: counts.append(at[1]),
        )
    assert counts == [1, 2, 3, 4] == [*range(1, result["n"] + 1)]
    assert rows_of(tmp_path / "s.sqlite") == local_rows


KILLED = """
    import os, signal, sys
    from pickglass.app.jobs.executors import Where
    from pickglass.app.study.study import StudyRequest, study
    from pickglass.runtime.compute import ComputeOptions
    def progress(stage, done, total):
        if done == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    request = StudyRequest(methods=["padim"], layers=["stage2", "stage3"], weights=["random"], sizes=[64, 96])
    where = Where("ray", address=sys.argv[3], memory_gb=0.5)
    study([sys.argv[1]], sys.argv[2], request, where=where, compute=ComputeOptions(engine="torch", batch=4),
          progress=progress)
"""


@pytest.mark.long
def test_the_asking_process_is_killed_and_started_again(
    cluster: Any, small_dataset: Path, tmp_path: Path, local_rows: list[dict[str, Any]]
) -> None:
    file = tmp_path / "s.sqlite"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(small_dataset), str(file), cluster.address]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    with StudyStore(file) as store:
        before = [row for row in store.rows() if row["state"] == "done"]
    assert len(before) == 1
    counts: list[int] = []
    study([small_dataset], file, CELLS, where=RAY, compute=QUICK, progress=lambda *at: counts.append(at[1]))
    assert counts == [2, 3, 4]
    with StudyStore(file) as store:
        assert [row for row in store.rows() if row["key"] == before[0]["key"]] == before
    assert rows_of(file) == local_rows


@pytest.mark.parametrize("what", ["worker", "node"])
@pytest.mark.long
def test_many_categories_under_relative_paths(
    cluster: Any, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(small_dataset / "train", tmp_path / "root" / name / "train")
        shutil.copytree(small_dataset / "test", tmp_path / "root" / name / "test")
    monkeypatch.chdir(tmp_path)
    wish = FitRequest(settings={"weights": "random", "size": 64}, memory_gb=0.5)
    here = fit_many("root", "here", wish, compute=QUICK)
    counts: list[int] = []
    with losing(what, cluster, tmp_path, fit_many_module, "fit_category"):
        there = fit_many("root", "there", wish, where=RAY, compute=QUICK, progress=lambda *at: counts.append(at[1]))
    assert (here["done"], there["done"], there["failed"]) == (3, 3, 0)
    assert counts == [1, 2, 3]
    assert [row["model"] for row in there["categories"]] == [f"there/{name}.safetensors" for name in "abc"]
    for mine, theirs in zip(here["categories"], there["categories"], strict=True):
        assert mine["fit"] is not None
        assert theirs["fit"] is not None
        assert mine["fit"]["model_id"] == theirs["fit"]["model_id"]
        one, other = load_file(mine["model"]), load_file(theirs["model"])
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("what", [pytest.param("worker", marks=pytest.mark.long), "node"])
def test_predict_over_a_folder(
    cluster: Any, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i, path in enumerate(sorted(small_dataset.glob("t*/*/*.png"))):
        shutil.copy(path, images / f"{i:02d}.png")
    (images / "05.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spread, "_BATCHES", 1)  # six chunks of four images
    pg.PatchCore(weights="random", size=64).fit(small_dataset / "train", engine="torch").save("m.safetensors")
    here = predict("m.safetensors", ["images"], "here", compute=QUICK)
    counts: list[int] = []
    with losing(what, cluster, tmp_path, spread, "judge_chunk", at=1):
        there = predict(
            "m.safetensors", ["images"], "there", where=RAY, compute=QUICK, progress=lambda *at: counts.append(at[1])
        )
    assert counts == [*range(1, 25)]
    for result in (here, there):
        assert [failed["path"] for failed in result["failed"]] == ["images/05.png"]
        for item in result["results"]:
            item["time"] = ""
    assert here == there
    pictures = sorted(path.name for path in Path("here").glob("*.png"))
    assert pictures == sorted(path.name for path in Path("there").glob("*.png"))
    assert len(pictures) == 2 * 23
    assert all((Path("here") / name).read_bytes() == (Path("there") / name).read_bytes() for name in pictures)


def test_a_task_that_dies_and_one_that_fails_leave_the_others_alone(cluster: Any) -> None:
    source = """
        import os, time
        def count(task):
            yield 10 * task
            if task == 1:
                time.sleep(1)  # Ray sends results on the side
                os._exit(7)
            if task == 2:
                raise ValueError("task 2")
            yield 10 * task + 1
    """
    waiting = [0, 1, 2]
    found: dict[int, list[Any]] = {}
    executor = RayExecutor(memory_gb=0.1)
    for event in executor.run(by_value(source, "count"), lambda: waiting.pop(0) if waiting else None):
        found.setdefault(event.task, []).append((event.error, event.died) if event.ended else event.result)
    assert found[0] == [0, 1, (None, False)]
    assert found[2] == [20, ("ValueError: task 2", False)]
    first, (error, died) = found[1]
    assert (first, died) == (10, True)
    assert error.startswith("the Ray task died")
    assert len(error) < 500


def test_workers_have_the_variables_of_the_asking_process_and_the_texts_of_errors(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICKGLASS_DOWNLOAD", "1")
    source = """
        import os
        from pickglass.errors import InputError
        def ask(task):
            yield os.environ.get("PICKGLASS_DOWNLOAD")
            raise InputError("says it by itself")
    """
    waiting = [0]
    events = [*RayExecutor(memory_gb=0.1).run(by_value(source, "ask"), lambda: waiting.pop() if waiting else None)]
    assert [(event.result, event.error, event.died) for event in events] == [
        ("1", None, False),
        (None, "says it by itself", False),
    ]


@pytest.mark.parametrize("needs", [{"cpus": 2.0}, {"gpus": 1.0}, {"memory_gb": 1.5}])
def test_what_fits_two_machines_together_and_neither_alone_is_refused(cluster: Any, needs: dict[str, float]) -> None:
    with pytest.raises(InputError, match="no machine of the Ray cluster has that"):
        next(RayExecutor(**{"memory_gb": 0.1, **needs}).run(iter, lambda: 1))  # type: ignore[arg-type, return-value]


def test_no_more_tasks_at_once_than_asked_for(cluster: Any) -> None:
    source = """
        import time
        def when(task):
            began = time.time()
            time.sleep(0.2)
            yield began, time.time()
    """
    waiting = [0, 1, 2]
    executor = RayExecutor(memory_gb=0.1, most=1)
    events = executor.run(by_value(source, "when"), lambda: waiting.pop() if waiting else None)
    spans: Any = sorted(event.result for event in events if event.result is not None)
    assert len(spans) == 3
    assert all(np.diff(np.ravel(spans)) > 0)  # none begins before the last has ended
