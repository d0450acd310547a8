"""The demo's data sets are what they say, and one run of it ends in two reports."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pickglass.app.advise.candidates import input_sizes
from pickglass.app.demo import (
    ON_CLOTH,
    ON_TEXTURES,
    SIZES,
    TEXTURES,
    demo,
    write_cloth,
    write_textures,
)
from pickglass.data import load_dataset
from pickglass.data.painting.cloth import weave
from pickglass.errors import InputError


@pytest.mark.parametrize(
    ("write", "n_train", "n_bad"),
    [
        (write_textures, 60, len(TEXTURES) * len(ON_TEXTURES) * len(SIZES)),
        (write_cloth, 40, 3 * len(ON_CLOTH) * len(SIZES)),
    ],
)
@pytest.mark.slow
def test_the_images_have_exact_masks_of_the_stated_size(
    tmp_path: Path, write: Callable[..., Path], n_train: int, n_bad: int
) -> None:
    write(tmp_path / "t", seed=1)
    dataset = load_dataset(write(tmp_path / "t", seed=0))  # another seed leaves nothing behind
    assert len(dataset.train) == n_train
    bad = [row for row in dataset.test if row.label == 1]
    assert len(bad) == n_bad
    for row in bad:
        mask = np.asarray(Image.open(row.mask or "")) > 0
        stated = int(Path(row.path).stem.rsplit("_", 1)[1].removesuffix("px"))
        ys, xs = mask.nonzero()
        corners = np.stack([ys, xs], 1)[:, None] - np.stack([ys, xs], 1)[None]
        assert abs(float(np.sqrt((corners**2).sum(2)).max()) + 1 - stated) <= 2.5


@pytest.mark.slow
def test_it_runs_and_says_where_everything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, fewer in (("TEXTURES", ("gravel",)), ("ON_TEXTURES", ("hole",)), ("ON_CLOTH", ("hole", "slub"))):
        monkeypatch.setattr(f"pickglass.app.demo.{name}", fewer)
    # half the cloth, and one size instead of three for the advisor, whose own tests try them all
    monkeypatch.setattr("pickglass.app.demo.weave", lambda cloth, size, seed: weave(cloth, (592, 512), seed))
    monkeypatch.setattr("pickglass.app.advise.advise._SHORT_LIST", 1)
    monkeypatch.setattr("pickglass.app.advise.advise.input_sizes", partial(input_sizes, most=1))
    result = demo(tmp_path / "demo")
    assert result["advice"]["command"] in [one["command"] for one in result["advice"]["ranking"]]
    assert Path(result["advice"]["report"] or "").is_file()
    assert Path(result["compared"]).is_file()
    for part, n_good, n_bad in ((result, 5, 3), (result["cloth"], 10, 18), (result["advised"], 10, 18)):
        assert Path(part["model"]).is_file()
        assert Path(part["test"]["report"] or "").is_file()
        assert part["test"]["n"] == n_good + n_bad
        assert (part["test"]["by_type"]["hole"]["image_auroc"] or 0) > 0.5
    assert result["model"] != result["cloth"]["model"]
    with pytest.raises(InputError, match="is a file"):
        demo(result["model"])
