"""The demo's pieces are what they say, and one run of it ends in three models and one page."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pickglass.app import demo as module
from pickglass.app.advise.candidates import input_sizes
from pickglass.app.advise.painted import paint_set
from pickglass.app.demo import demo, write_pieces
from pickglass.app.pages.demo import own_folder
from pickglass.cli.main import app
from pickglass.data import load_dataset
from pickglass.errors import InputError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and smaller pieces, a weaker promise, and one size for the advisor, whose own tests try them all."""
    for name, value in {
        "PIECE": 96,
        "SQUEEZED": 64,
        "KINDS": ("hole", "slub"),
        "SIZES": (8,),
        "TAUGHT": 6,
        "PROMISED": 14,
        "FRESH": 4,
        "FALSE_ALARM": 0.2,
    }.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("pickglass.app.advise.advise._SHORT_LIST", 1)
    monkeypatch.setattr("pickglass.app.advise.advise.input_sizes", partial(input_sizes, most=1))
    monkeypatch.setattr("pickglass.app.advise.advise.paint_set", partial(paint_set, painted=7))


def test_the_pieces_have_exact_masks_of_the_stated_size(small: None, tmp_path: Path) -> None:
    write_pieces(tmp_path / "t", seed=1)
    data, more = write_pieces(tmp_path / "t", seed=0)  # another seed leaves nothing behind
    dataset = load_dataset(data)
    assert (len(dataset.train), len(load_dataset(more).train)) == (6, 14)
    bad = [row for row in dataset.test if row.label == 1]
    assert len(dataset.test) - len(bad) == 4
    assert len(bad) == 4
    for row in bad:
        mask = np.asarray(Image.open(row.mask or "")) > 0
        stated = int(Path(row.path).stem.rsplit("_", 1)[1].removesuffix("px"))
        ys, xs = mask.nonzero()
        corners = np.stack([ys, xs], 1)[:, None] - np.stack([ys, xs], 1)[None]
        assert abs(float(np.sqrt((corners**2).sum(2)).max()) + 1 - stated) <= 2.5


def test_no_piece_is_woven_twice(small: None, tmp_path: Path) -> None:
    write_pieces(tmp_path / "t")
    seen = {path.read_bytes() for path in tmp_path.rglob("*.png") if "ground_truth" not in path.parts}
    assert len(seen) == 28


@pytest.mark.slow
@pytest.mark.long
def test_it_ends_in_three_models_and_one_page(small: None, tmp_path: Path) -> None:
    result = demo(tmp_path / "demo")
    squeezed, default, advised = result["models"]
    assert [model["name"] for model in (squeezed, default, advised)] == ["squeezed", "default", "advised"]
    assert squeezed["fit"]["canvas"] == [64, 64]
    chosen = next(one for one in result["advice"]["ranking"] if one["command"] == result["advice"]["command"])
    assert (advised["fit"]["layers"], advised["fit"]["canvas"]) == (chosen["layers"], chosen["size"])
    for model in result["models"]:
        assert Path(model["model"]).is_file()
        assert (model["n_good"], model["n_defective"]) == (4, 4)
        assert model["fit"]["n_fit"] == 6
        assert model["threshold"]["n_calibrate"] == 14
        assert model["threshold"]["false_alarm_bound"] <= 0.2
        assert model["missed"] == round(4 * (model["metrics"]["miss_rate"] or 0))
        assert model["flagged"] == round(4 * (model["metrics"]["false_alarm_rate"] or 0))
    page = Path(result["page"]).read_text()
    for model in result["models"]:
        assert f"<td>{model['missed']} of 4</td><td>{model['flagged']} of 4</td>" in page
    for layer in result["layers"]["advised"]:
        assert f"{layer['layer']}, " in page
    assert str(result["advice"]["command"]) in page
    for command, _ in own_folder():
        assert command in page
        assert command.split()[1] in {str(registered.name) for registered in app.registered_commands}


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        demo(tmp_path / "file")
