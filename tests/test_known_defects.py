"""Known defects: how they are read, what they may and may not set, and that no test judges a model by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from pickglass.app.testing.selection import select, sentences
from pickglass.data import Dataset, Row, Table, as_defects, check_defects, defects_at, paint
from pickglass.detectors.known_defects import MOST_UNSURE, unsure_below
from pickglass.errors import DataError, InputError
from pickglass.testing import textures

SIDE = 64


def bad(n: int, contrast: float = 2.0, seed: int = 7) -> Table:
    rows = []
    for i, image in enumerate(textures(n, SIDE, seed)):
        painted = paint(image, "hole", 20, np.random.default_rng(i), contrast=contrast)
        mask = painted.mask * np.uint8(255)
        rows.append(Row(f"bad:{i}", "test", 1, "hole", mask=mask, pixels=painted.image, group=f"part{i // 2}"))
    return Table(rows)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_nothing_but_bad_parts_gives_its_types_and_masks(tmp_path: Path) -> None:
    image, mask = textures(1, 8)[0], np.full((8, 8), 255, np.uint8)
    for name in ("crack/1.png", "crack/2.png", "hole/1.png", "loose.png"):
        write(tmp_path / name, image)
    write(tmp_path / "masks/crack/1.png", mask)
    rows = {Path(row.path).relative_to(tmp_path).as_posix(): row for row in defects_at(tmp_path)}
    assert {name: row.defect for name, row in rows.items()} == {
        "crack/1.png": "crack",
        "crack/2.png": "crack",
        "hole/1.png": "hole",
        "loose.png": None,
    }
    assert {row.label for row in rows.values()} == {1}
    assert {row.role for row in rows.values()} == {"validate"}
    assert [name for name, row in rows.items() if row.has_mask] == ["crack/1.png"]


def test_a_folder_whose_name_means_bad_is_read_too(tmp_path: Path) -> None:
    write(tmp_path / "defective" / "1.png", textures(1, 8)[0])
    assert [row.defect for row in defects_at(tmp_path / "defective")] == [None]


def test_a_data_set_gives_its_defective_images_alone(tmp_path: Path) -> None:
    image = textures(1, 8)[0]
    for name in ("train/good/1.png", "test/good/2.png", "test/crack/3.png"):
        write(tmp_path / name, image)
    write(tmp_path / "ground_truth/crack/3_mask.png", np.full((8, 8), 255, np.uint8))
    (row,) = defects_at(tmp_path)
    assert (row.defect, row.has_mask, row.role) == ("crack", True, "validate")


def test_what_holds_no_bad_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder of known defects"):
        defects_at(tmp_path / "none")
    with pytest.raises(DataError, match="holds no image of a bad part, expected images, or folders TYPE"):
        defects_at(tmp_path)
    write(tmp_path / "good" / "1.png", textures(1, 8)[0])
    with pytest.raises(DataError, match=r"holds no defective image, and a folder 'good' of good ones: name the folder"):
        defects_at(tmp_path)
    with pytest.raises(InputError, match=r"1 of 2 known defects are labelled good, e\.g\. 'g'"):
        as_defects(Table([Row("g", label=0), Row("b", label=1)]))
    with pytest.raises(DataError, match="there are no known defects"):
        as_defects(Table())


def test_images_in_memory_are_bad_parts() -> None:
    rows = as_defects(textures(2, 8))
    assert [(row.label, row.role, row.defect) for row in rows] == [(1, "validate", None)] * 2


def test_all_that_cannot_be_used_is_listed_before_anything_is_learned(tmp_path: Path) -> None:
    good = Table([Row(f"g{i}", "train", 0, pixels=image) for i, image in enumerate(textures(3, SIDE))])
    (tmp_path / "broken.png").write_bytes(b"no image")
    image = textures(1, SIDE, 3)[0]
    rows = [
        Row(str(tmp_path / "broken.png"), label=1),
        Row("empty", label=1, pixels=image, mask=np.zeros((SIDE, SIDE), np.uint8)),
        Row("other size", label=1, pixels=image, mask=np.ones((8, 8), np.uint8)),
    ]
    with pytest.raises(DataError, match="3 of 3 known defects cannot be used") as error:
        check_defects(Table(rows), good)
    assert "its mask marks nothing" in str(error.value)
    both = Table([Row("again", label=1, pixels=good[1].pixels)])
    with pytest.raises(DataError, match=r"1 known defects are among the good images.*\n.*again"):
        pg.PatchCore(size=SIDE).fit(good, defects=both, engine="torch")


# -- what they set -----------------------------------------------------------------------------------------------------


def test_the_threshold_of_unsure_catches_missed_defects_within_a_tenth_of_the_good() -> None:
    good = tuple(float(i) for i in range(100))
    lower = unsure_below([150.0, 95.5], good, 99.0)
    assert lower is not None
    assert 95 <= lower < 95.5
    far = unsure_below([95.5, 20.0], good, 99.0)  # what lies among the bulk of good ones stays missed
    assert far == lower
    assert sum(score > far for score in good) <= MOST_UNSURE * len(good)
    assert unsure_below([150.0], good, 99.0) is None
    assert unsure_below([20.0], good, 99.0) is None
    assert unsure_below([1.0], (), 2.0) is None


def test_known_defects_set_unsure_and_never_the_threshold(tmp_path: Path) -> None:
    good = textures(20, SIDE)
    rows = Table([Row(f"g{i}", "train", 0, pixels=image) for i, image in enumerate(good)])
    plain = pg.PatchCore(size=SIDE).fit(rows, engine="torch")
    scores = sorted(plain.calibration.scores)  # type: ignore[union-attr]
    limit = plain.calibration.image_threshold  # type: ignore[union-attr]
    faint = Table([row for row in bad(40, 0.6) if scores[-2] < plain.predict([row], engine="torch").scores[0] < limit])
    assert faint, "no painted defect lies where a band can help: change the contrast"
    detector = pg.PatchCore(size=SIDE).fit(rows, defects=faint[:1], engine="torch")
    now = detector.calibration
    assert now is not None
    assert now.scores == plain.calibration.scores  # type: ignore[union-attr]
    assert now.image_threshold == limit
    assert now.unsure_threshold is not None
    (found,) = detector.predict(faint[:1], engine="torch")
    assert now.verdict(found.score) == "unsure"
    assert detector.predict(good, engine="torch").scores.tolist() == plain.predict(good, engine="torch").scores.tolist()
    known = detector.provenance.known_defects
    assert known is not None
    assert [(d["name"], d["defect"], d["use"]) for d in known] == [(faint[0].path, "hole", "unsure")]
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    assert loaded.provenance.known_defects == known


def test_defective_rows_for_validation_are_known_defects() -> None:
    rows = [Row(f"g{i}", "train", 0, pixels=image) for i, image in enumerate(textures(12, SIDE))]
    labelled = [Row(row.path, "validate", 1, "hole", pixels=row.pixels) for row in bad(2)]
    detector = pg.PatchCore(size=SIDE).fit(Table([*rows, *labelled]), engine="torch")
    assert [d["name"] for d in detector.provenance.known_defects or ()] == ["bad:0", "bad:1"]
    assert detector.provenance.n_validate == 0


# -- honesty -----------------------------------------------------------------------------------------------------------


def test_no_model_is_judged_by_what_it_was_shown_nor_by_the_same_part() -> None:
    rows = Table([Row(f"g{i}", "train", 0, pixels=image) for i, image in enumerate(textures(12, SIDE))])
    known = bad(6)
    detector = pg.PatchCore(size=SIDE).fit(rows, defects=known[:1], engine="torch")
    chosen = select(Dataset("set", "root", "folder", known), [detector.provenance])
    assert [row.path for row in chosen.table] == ["bad:2", "bad:3", "bad:4", "bad:5"]  # bad:1 shows the same part
    assert sentences(chosen.left_out) == [
        "2 images are not judged: that the model was shown as known defects, or of the same part or roll."
    ]


def test_known_defects_of_a_root_of_categories_are_refused(tmp_path: Path) -> None:
    from pickglass.app.fit import FitRequest
    from pickglass.app.fit_many import fit_many

    with pytest.raises(InputError, match=r"known defects are those of one category.*fit that category by itself"):
        fit_many(tmp_path, tmp_path / "models", FitRequest(defects=tmp_path))


@pytest.mark.slow
def test_the_command_shows_what_was_given(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pickglass.cli.main import app

    for i, image in enumerate(textures(12, SIDE)):
        write(tmp_path / "set/train/good" / f"{i}.png", image)
    for i, row in enumerate(bad(4)):
        where = "known" if i < 2 else "set/test"
        write(tmp_path / where / "hole" / f"{i}.png", np.asarray(row.pixels))
    write(tmp_path / "set/test/hole/same.png", np.asarray(bad(4)[0].pixels))
    write(tmp_path / "set/test/good/1.png", textures(1, SIDE, 5)[0])
    model = str(tmp_path / "m.safetensors")

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    args: list[Any] = ["fit", str(tmp_path / "set"), "-o", model, "--size", str(SIDE)]
    out = said(*args, "--defects", str(tmp_path / "known"))
    assert "known defects: 2 shown (2 hole)" in out
    assert "none set the threshold" in out
    assert "Known defects: 2 shown (2 hole)" in said("info", model)
    told = said("test", model, str(tmp_path / "set"))
    assert "1 image is not judged: that the model was shown as known defects" in told
