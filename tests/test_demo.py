"""The demo's data set is what it says, and one run of it ends in a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pickglass.app.demo import SIZES, TEXTURES, demo, write_textures
from pickglass.data import load_dataset
from pickglass.errors import InputError


def test_the_textures_have_exact_masks_of_the_stated_size(tmp_path: Path) -> None:
    dataset = load_dataset(write_textures(tmp_path / "t"))
    assert len(dataset.train) == 60
    bad = [row for row in dataset.test if row.label == 1]
    assert len(bad) == len(TEXTURES) * 4 * len(SIZES)
    for row in bad:
        mask = np.asarray(Image.open(row.mask or "")) > 0
        stated = int(Path(row.path).stem.rsplit("_", 1)[1].removesuffix("px"))
        ys, xs = mask.nonzero()
        corners = np.stack([ys, xs], 1)[:, None] - np.stack([ys, xs], 1)[None]
        assert abs(float(np.sqrt((corners**2).sum(2)).max()) + 1 - stated) <= 2.5


def test_it_runs_and_says_where_everything_is(tmp_path: Path) -> None:
    result = demo(tmp_path / "demo")
    assert Path(result["model"]).is_file()
    assert Path(result["test"]["report"] or "").is_file()
    assert result["test"]["n"] == 51
    assert (result["test"]["by_type"]["hole"]["image_auroc"] or 0) > 0.9
    with pytest.raises(InputError, match="is a file"):
        demo(result["model"])
