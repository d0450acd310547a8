"""Shared by all tests: where the real images are, and small data sets made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pickglass.data import paint
from pickglass.testing import textures

REAL = Path(os.environ.get("PICKGLASS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


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
