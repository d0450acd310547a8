"""The same images, settings and seed make the same model file, whatever else the process does."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.kills import content
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import pickglass as pg
from least_training import LEAST, few_methods
from pickglass.app.advise.advise import advise
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.distill import distill
from pickglass.app.fit import FitRequest, fit
from pickglass.data import load_dataset
from pickglass.data.painting.natural import natural_images
from pickglass.detectors.contamination import CleanCheck
from pickglass.features.distillation import DistillSettings
from pickglass.methods import METHODS
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

SIDE, N = 64, 8
IMAGES = textures(N, SIDE)
BETWEEN_THREADS = 1e-3  # of a score, relative: sums of other lengths round otherwise, and a training goes on with that


def short(method: str) -> pg.Detector:
    cls = METHODS[method]
    settings = {"size": SIDE, **cls.quick_settings(N, SIDE)}
    settings |= {name: value for name, value in LEAST.items() if name in settings}
    if method == "efficientad":
        settings["steps"] = 2
    return cls.configured(settings)


class Drawn(TorchDispatchMode):
    """Notes what this thread draws without a generator, of torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and given.get("generator") is None:
            self.by.add(func.name())
        return func(*args, **(kwargs or {}))


@contextmanager
def own_numbers() -> Iterator[None]:
    """What runs inside draws nothing from the generators that all threads share, and seeds none of them."""
    seeds: list[object] = []
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    with pytest.MonkeyPatch.context() as patch, Drawn() as drawn:
        # whoever puts a state back has drawn in between
        for module, name in ((torch, "manual_seed"), (torch, "set_rng_state"), (np.random, "seed"), (random, "seed")):
            patch.setattr(module, name, lambda *given, name=name: seeds.append(name))
        patch.setattr(torch.random, "set_rng_state", lambda *given: seeds.append("set_rng_state"))
        before = (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate())
        yield
        after = (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate())
    assert not drawn.by
    assert not seeds
    assert after == before


@contextmanager
def busy() -> Iterator[None]:
    """Two other threads compute, draw numbers from the generators of all threads, and seed them."""
    stop = threading.Event()

    def work(seed: int) -> None:
        while not stop.is_set():
            np.random.seed(seed)
            random.seed(seed)
            torch.manual_seed(seed)
            torch.rand(64, 64)
            torch.ones(64, 64) @ torch.ones(64, 64)
            stop.wait(0.002)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("method", few_methods("patchcore", "efficientad"))
def test_a_method_fitted_twice_makes_one_file(tmp_path: Path, method: str) -> None:
    with own_numbers():
        first = short(method).fit(IMAGES, seed=3, engine="torch")
    with busy():
        second = short(method).fit(IMAGES, seed=3, engine="torch")
    files = [model.save(tmp_path / f"{i}.safetensors") for i, model in enumerate((first, second))]
    header, tensors = content(files[0])
    again, same = content(files[1])
    assert tensors == same
    assert header == again
    assert first.model_id() == second.model_id()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["patchcore", "fastflow"])
def test_more_threads_change_no_score_by_more_than_is_stated(method: str) -> None:
    before = torch.get_num_threads()
    scores = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            scores.append(short(method).fit(IMAGES, engine="torch").predict(IMAGES, engine="torch").scores)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(scores[0], scores[1], rtol=BETWEEN_THREADS)


def test_the_order_of_images_changes_no_verdict_of_theirs() -> None:
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    bank = {"layers": ["stage2"], "size": SIDE, "ratio": 1.0}
    models = [pg.PatchCore(**bank).fit(IMAGES[places], engine="torch") for places in (range(N), order)]
    one, other = (model.predict(IMAGES, engine="torch").scores for model in models)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    shuffled = models[0].predict(IMAGES[order], engine="torch", batch=N)
    straight = models[0].predict(IMAGES, engine="torch", batch=N)
    np.testing.assert_allclose(shuffled.scores, straight.scores[order], rtol=1e-5)


def test_the_order_in_which_a_disk_lists_files_plays_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("train/good", "test/good", "test/hole"):
        (tmp_path / kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(IMAGES[i]).save(tmp_path / kind / f"{i}.png")
    straight = [row.path for row in load_dataset(tmp_path).table]
    scandir, listdir = os.scandir, os.listdir

    class Backwards:
        def __init__(self, *place: Any) -> None:
            with scandir(*place) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            """Nothing is open any more."""

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def close(self) -> None:
            """Nothing is open any more."""

    monkeypatch.setattr(os, "scandir", Backwards)
    monkeypatch.setattr(os, "listdir", lambda *place: listdir(*place)[::-1])
    assert [row.path for row in load_dataset(tmp_path).table] == straight


@pytest.mark.slow
@pytest.mark.parametrize("method", few_methods("patchcore", "fastflow", "efficientad"))
def test_an_update_draws_its_own_numbers(method: str) -> None:
    model = short(method) if method != "combined" else pg.Combined("patchcore+padim", size=SIDE)
    model.fit(IMAGES, seed=3, engine="torch")
    with own_numbers():
        model.update(textures(6, SIDE, seed=9), earlier=IMAGES, engine="torch", observers=[CleanCheck(drop=True)])


@pytest.mark.long
def test_use_cases_draw_their_own_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train" / "good"
    folder.mkdir(parents=True)
    for i, image in enumerate(textures(N, SIDE)):
        Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(natural_images(6, (96, 120))):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    torch_only = ComputeOptions(engine="torch")
    learning = DistillSettings(
        backbone="resnet18", layers=["layer2"], weights="random", model="tiny", steps=2, batch=2, crop=64
    )
    with own_numbers():
        distill(tmp_path / "photos", tmp_path / "t.safetensors", learning, compute=torch_only)
        fit(
            tmp_path / "data",
            tmp_path / "m.safetensors",
            FitRequest("patchcore", settings={"size": SIDE}, drop_suspicious=True),
            compute=torch_only,
        )
        advise(
            tmp_path / "data", AdviseRequest(24, kinds=("hole",), backbones=["efficientnet_lite0"]), compute=torch_only
        )
