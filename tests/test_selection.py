"""``test`` judges what the model was not fitted on, with or without training images, and says what it leaves out."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.layouts import TREES, image, save

from pickglass.app.testing.selection import select, sentences
from pickglass.data import Dataset, image_digest, load_dataset, split_roles
from pickglass.data.tables.rows import fingerprint
from pickglass.runtime.provenance import Provenance


def fitted(dataset: Dataset) -> Provenance:
    """The provenance of a model that was fitted on a data set, a tenth of it held back."""
    split = split_roles(dataset.train, 0.0, 0.1, 0)
    images = tuple(image_digest(row)[:16] for row in split.role("fit"))
    counts = {"n_fit": len(images), "n_calibrate": len(split.role("calibrate"))}
    return Provenance(**counts, data_sha256=fingerprint(split), fitted_images=images)


def counted(table: object) -> tuple[int, int]:
    labels = [row.label for row in table]  # type: ignore[attr-defined]
    return labels.count(0), labels.count(1)


@pytest.fixture
def model(tmp_path: Path) -> Provenance:
    return fitted(load_dataset(TREES["MVTec AD"](tmp_path / "first")))


def test_a_test_part_is_judged_and_the_rest_is_counted(tmp_path: Path, model: Provenance) -> None:
    root = TREES["MVTec AD"](tmp_path)
    chosen = select(load_dataset(root), [model])
    assert counted(chosen.table) == (3, 3)
    assert sentences(chosen.left_out) == [
        "8 images are not judged: for training or validation, as the data set divides them."
    ]
    shutil.rmtree(root / "train")
    chosen = select(load_dataset(root, training=False), [model])
    assert (counted(chosen.table), chosen.left_out) == ((3, 3), {})


def test_folders_of_new_images_are_all_judged(tmp_path: Path, model: Provenance) -> None:
    for i in range(20):
        save(tmp_path / f"new/good/{i}.png", image(5000 + i))
    for i in range(4):
        save(tmp_path / f"new/bad/{i}.png", image(6000 + i, True))
    chosen = select(load_dataset(tmp_path / "new", training=False), [model])
    assert (counted(chosen.table), chosen.left_out) == ((20, 4), {})
    assert {row.role for row in chosen.table} == {"test"}
    shutil.copy(tmp_path / "first/bottle/train/good/003.png", tmp_path / "new/good/old.png")
    seen = image_digest(load_dataset(tmp_path / "first/bottle").table[3])[:16]
    assert seen in (model.fitted_images or ())
    chosen = select(load_dataset(tmp_path / "new", training=False), [model])
    assert (counted(chosen.table), list(chosen.left_out.values())) == ((20, 4), [1])


def test_the_folder_that_a_model_was_fitted_on_gives_its_test_share_only(tmp_path: Path) -> None:
    dataset = load_dataset(TREES["folders"](tmp_path))
    chosen = select(dataset, [fitted(dataset)])
    assert counted(chosen.table) == (2, 3)
    assert list(chosen.left_out.values()) == [6]
    other = replace(fitted(dataset), fitted_images=None)
    assert "does not tell" in " ".join(select(dataset, [other]).left_out)


def test_several_models_are_judged_on_what_none_was_fitted_on(tmp_path: Path, model: Provenance) -> None:
    mine = load_dataset(TREES["folders"](tmp_path / "mine"))
    rows = mine.table
    others = [replace(model, fitted_images=(image_digest(rows[i])[:16],)) for i in (0, 1)]
    chosen = select(mine, others)
    assert len(chosen.table) == len(rows) - 2
