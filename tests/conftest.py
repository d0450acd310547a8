"""What all tests share: one thread a process, the seed offset, the folder of real images, and a small data set."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Read by OpenMP when torch and numpy are loaded, so it is set before they are. One thread a process and a process a
# core (pytest-xdist) is several times faster than processes whose threads fight for the same cores.
THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))
# All processes of a run, and what the tests start, share the graphs that OpenVINO compiled. They lie in a folder of
# this run, so that tests neither read nor fill the cache of whoever runs them.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
COMPILED = os.environ["PICKGLASS_COMPILED"] if IS_WORKER else tempfile.mkdtemp(prefix="pickglass-compiled-")
os.environ["PICKGLASS_COMPILED"] = COMPILED

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from pickglass.data import paint
from pickglass.testing import textures
from remembered_networks import fresh_or_remembered, remember_networks

REAL = Path(os.environ.get("PICKGLASS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
SEED_OFFSET = int(os.environ.get("PICKGLASS_SEED_OFFSET", "0"))

# The same examples on each run and machine, whatever the time that one of them takes.
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("suite")


def pytest_configure() -> None:
    torch.set_num_threads(THREADS)
    remember_networks()
    if SEED_OFFSET:
        shift_seeds(SEED_OFFSET)


def pytest_unconfigure() -> None:
    if not IS_WORKER:
        shutil.rmtree(COMPILED, ignore_errors=True)


def shift_seeds(offset: int) -> None:
    """Add an offset to every whole-number seed, of tests and of pickglass alike, in this process.

    A test that passes with several offsets does not hang on the luck of one seed.
    """
    numpy_generator, torch_generator, torch_seed = np.random.default_rng, torch.Generator, torch.manual_seed

    class ShiftedGenerator(torch_generator):  # type: ignore[misc, valid-type]
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + offset)

    def shifted(seed: Any = None) -> np.random.Generator:
        if isinstance(seed, (int, np.integer)):
            seed = int(seed) + offset
        elif isinstance(seed, (tuple, list)):
            seed = (*seed, offset)
        return numpy_generator(seed)

    np.random.default_rng = shifted  # type: ignore[assignment]
    torch.Generator = ShiftedGenerator  # type: ignore[misc, assignment]
    torch.manual_seed = lambda seed: torch_seed(seed + offset)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, and count, what this machine or this run cannot do."""
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    other_numbers = pytest.mark.skip(reason="expects the numbers of seed offset 0")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if item.get_closest_marker("golden") and SEED_OFFSET:
            item.add_marker(other_numbers)


def pytest_collection_finish() -> None:
    """Leave what is there by now out of Python's searches for cycles: a search of all modules takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    os.environ["PICKGLASS_COMPILED"] = "off" if fresh_or_remembered(item) else COMPILED


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it are skipped, and counted, where it is absent."""
    if not REAL.is_dir():
        pytest.skip(f"no real images: set PICKGLASS_TEST_DATA ({REAL} is not there)")
    return REAL


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVTec AD layout: 16 good training images, 4 good and 4 defective test images of 80 x 96 pixels, with masks."""
    root = tmp_path_factory.mktemp("small") / "tile"
    rng = np.random.default_rng(0)

    def write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for i, image in enumerate(textures(16, 96)[:, :80]):
        write(root / "train" / "good" / f"{i:02d}.png", image)
    for i, image in enumerate(textures(8, 96, seed=1)[:, :80]):
        if i < 4:
            write(root / "test" / "good" / f"{i:02d}.png", image)
        else:
            kind = "hole" if i % 2 else "scratch"
            painted = paint(np.ascontiguousarray(image), kind, 24, rng, contrast=2.0)
            write(root / "test" / kind / f"{i:02d}.png", painted.image)
            write(root / "ground_truth" / kind / f"{i:02d}_mask.png", painted.mask.astype(np.uint8) * 255)
    return root
