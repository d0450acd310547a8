"""One detector, many callers: threads, copies, spawned and forked processes get the scores that one thread gets."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.methods import METHODS
from pickglass.nn.maps import exact_float32
from pickglass.testing import textures

RESNET: dict[str, Any] = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "weights": "random", "size": 64}
SMALL: dict[str, dict[str, Any]] = {
    "patchcore": {**RESNET, "ratio": 0.05},
    "stfpm": {**RESNET, "epochs": 1},
    "efficientad": {"backbone": "pdn_tiny", "size": 64, "steps": 2, "natural": "none"},
}
THREADS = 6


def images(n: int = 6) -> list[np.ndarray]:
    """Some good, some with a dark spot, so that no score passes for another."""
    made = list(textures(n, 64, seed=7))
    for i in range(0, n, 2):
        made[i][10 : 20 + 4 * i, 20:40] //= 2
    return made


@pytest.fixture(
    scope="module",
    # a bank, a network that judges in torch and one that has engines of its own; test_conformance has every method
    params=["patchcore", *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL if name != "patchcore")],
)
def fitted(request: pytest.FixtureRequest) -> pg.Detector:
    return METHODS[request.param](**SMALL[request.param]).fit(textures(12, 64), engine="torch")


@pytest.fixture(scope="module")
def bank() -> pg.Detector:
    return pg.PatchCore(**SMALL["patchcore"]).fit(textures(12, 64), engine="torch")


def from_threads(detector: pg.Detector, rounds: int, **compute: Any) -> np.ndarray:
    """The score of each image, judged alone, (rounds, n); all threads begin at once."""
    judged = images()
    together = threading.Barrier(THREADS)

    def one(i: int) -> float:
        if i < THREADS:
            together.wait(timeout=60)
        return float(detector.predict(judged[i % len(judged)], batch=1, workers=1, **compute).scores[0])

    with ThreadPoolExecutor(THREADS) as pool:
        return np.array(list(pool.map(one, range(rounds * len(judged))))).reshape(rounds, len(judged))


@pytest.mark.parametrize(
    ("fitted", "engine"),
    [
        pytest.param("patchcore", "torch", id="patchcore-torch"),  # where nothing is compiled all methods are alike
        *(pytest.param(name, "openvino", id=name, marks=pytest.mark.slow) for name in SMALL),
        *(
            pytest.param(name, "torch", id=f"{name}-torch", marks=pytest.mark.long)
            for name in SMALL
            if name != "patchcore"
        ),
    ],
    indirect=["fitted"],
)
def test_threads_get_the_scores_of_one_thread(fitted: pg.Detector, engine: str) -> None:
    alone = np.array([fitted.predict(image, engine=engine).scores[0] for image in images()])
    again = copy.deepcopy(fitted)  # so that the first thread compiles while the others come
    scores = from_threads(again, 2, engine=engine)
    np.testing.assert_allclose(scores, np.tile(alone, (2, 1)), rtol=1e-4)


@pytest.mark.slow
def test_threads_on_tiles(bank: pg.Detector) -> None:
    tiled = pg.STFPM(**SMALL["stfpm"]).tiled(size=96, tile=64, stride=32).fit(textures(8, 96), engine="torch")
    alone = np.array([tiled.predict(image).scores[0] for image in images()])
    np.testing.assert_allclose(from_threads(tiled, 2), np.tile(alone, (2, 1)), rtol=1e-4)


def test_threads_keep_the_precision_of_products_that_they_found() -> None:
    before = torch.get_float32_matmul_precision()
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with exact_float32():
            inside.set()
            leave.wait(timeout=60)

    try:
        torch.set_float32_matmul_precision("medium")
        thread = threading.Thread(target=first)
        thread.start()
        inside.wait(timeout=60)
        with exact_float32():
            leave.set()
            thread.join()
            assert torch.get_float32_matmul_precision() == "highest"  # the other thread left
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def through_pickle(detector: pg.Detector) -> pg.Detector:
    copied: pg.Detector = pickle.loads(pickle.dumps(detector))
    return copied


COPIES: list[Callable[[pg.Detector], pg.Detector]] = [copy.copy, copy.deepcopy, through_pickle]
# each method by one way, and the quickest by all: all three take them by the code of nn.Module and of Detector
PAIRS = [
    *(pytest.param("patchcore", make, id=f"patchcore-{make.__name__}") for make in COPIES),
    pytest.param("stfpm", copy.copy, id="stfpm-copy", marks=pytest.mark.slow),
    pytest.param("efficientad", through_pickle, id="efficientad-pickle", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fitted", "make"), PAIRS, indirect=["fitted"])
def test_copies_leave_the_engine_behind(fitted: pg.Detector, make: Callable[[pg.Detector], pg.Detector]) -> None:
    scores = fitted.predict(images()).scores  # compiles the backbone, and what the method learned
    copied = make(fitted)
    np.testing.assert_allclose(copied.predict(images()).scores, scores, rtol=1e-6)
    assert copied.calibration == fitted.calibration


@pytest.mark.parametrize("make", [*(pytest.param(make, marks=pytest.mark.long) for make in COPIES[:2]), through_pickle])
@pytest.mark.slow
def test_copies_at_every_stage(make: Callable[[pg.Detector], pg.Detector], tmp_path: Path) -> None:
    unfitted = make(pg.PatchCore(**SMALL["patchcore"]))
    assert repr(unfitted) == repr(pg.PatchCore(**SMALL["patchcore"]))
    tiled = pg.PatchCore(**SMALL["patchcore"]).tiled(size=96, tile=64, stride=32)
    tiled.fit(textures(8, 96), progress=lambda *_: None)  # which cannot be pickled, and is not kept
    scores = tiled.predict(images()).scores
    loaded = pg.load(tiled.save(tmp_path / "m.safetensors"))
    for detector in (tiled, loaded, make(loaded)):
        np.testing.assert_allclose(make(detector).predict(images()).scores, scores, rtol=1e-6)


def test_a_refitted_copy_leaves_the_other_alone(bank: pg.Detector) -> None:
    scores = bank.predict(images()).scores
    copied = copy.copy(bank)
    copied.fit(textures(12, 64, seed=3) // 2, engine="torch")
    assert (bank.predict(images()).scores == scores).all()


def judged_elsewhere(detector: pg.Detector, shown: list[np.ndarray], queue: Any) -> None:
    queue.put(detector.predict(shown).scores.tolist())


@pytest.mark.slow
def test_a_spawned_process_takes_a_detector_that_has_judged(bank: pg.Detector) -> None:
    scores = bank.predict(images()).scores
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=judged_elsewhere, args=(bank, images(), queue))
    process.start()
    try:
        np.testing.assert_allclose(queue.get(timeout=120), scores, rtol=1e-4)
    finally:
        process.join(timeout=60)


FORKED = """
import multiprocessing, sys
import numpy as np, torch
import pickglass as pg
from pickglass.testing import textures

def child(detector, images, queue, engine):
    queue.put(detector.predict(images, engine=engine).scores)

if __name__ == "__main__":
    images = textures(3, 64, seed=7)
    torch.ones(300, 300) @ torch.ones(300, 300)  # starts the threads that do not survive a fork
    context = multiprocessing.get_context("fork")
    for engine, before in (("openvino", "fresh"), ("openvino", "used"), ("torch", "used")):
        detector = pg.load(sys.argv[1])
        expected = detector.predict(images, engine=engine).scores if before == "used" else None
        queue = context.Queue()
        process = context.Process(target=child, args=(detector, images, queue, engine))
        process.start()
        scores = queue.get(timeout=100)
        process.join(timeout=10)
        after = detector.predict(images, engine=engine).scores
        np.testing.assert_allclose(scores, after, rtol=1e-4)
        assert expected is None or (expected == after).all()
        print(engine, before, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.slow
@pytest.mark.long
def test_a_forked_process_makes_its_own_engine(bank: pg.Detector, tmp_path: Path) -> None:
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    model = bank.save(tmp_path / "m.safetensors")
    run = subprocess.run(
        [sys.executable, script, model],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2", "PICKGLASS_COMPILED": "off"},  # the child is to compile
    )
    assert run.stdout.split("\n") == ["openvino fresh", "openvino used", "torch used", ""], run.stderr
