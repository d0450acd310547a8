"""Marks: what people say of images is kept, whoever else says something, and finds its way back into a model."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pickglass.app.marking.images import locate
from pickglass.app.marking.layout import write_layout
from pickglass.app.marking.mask import draw_shapes, png_of, size_of
from pickglass.app.marking.store import Mark, MarkStore, checked
from pickglass.app.marking.table import COLUMNS, read_marks, read_table, write_table
from pickglass.data import load_dataset
from pickglass.errors import DataError, InputError

ONE, TWO = "1" * 64, "2" * 64


def mark(digest: str = ONE, word: Any = "good", **more: Any) -> Mark:
    return Mark(more.pop("path", "a.png"), digest, word, **more)


def png(size: tuple[int, int] = (8, 6)) -> bytes:
    marked = np.zeros(size, np.bool_)
    marked[2:4, 1:3] = True
    return png_of(marked)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with MarkStore(tmp_path / "marks.sqlite") as opened:
        yield opened


def image(path: Path, value: int, size: tuple[int, int] = (8, 6)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- the store ---------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_and_the_last_mark_counts(store: MarkStore) -> None:
    first = store.add(mark(word="good", user=" Ann ", score=1.5, model_id="m", model_version=3), seen=0)
    assert (first.version, first.user, first.disputed) == (1, "Ann", False)
    second = store.add(mark(word="bad", type="scratch", note="left edge"), seen=1, png=png())
    (now,) = store.current()
    assert (now.version, now.counts_as, now.type, now.latest) == (2, "bad", "scratch", 2)
    assert store.mask(str(now.mask)) == png()
    assert [one.mark for one in store.history(ONE)] == ["good", "bad"]
    store.add(mark(word=None), seen=second.version)
    assert store.current() == []
    taken_back = store.get(ONE)
    assert taken_back is not None
    assert taken_back.mark is None
    assert len(store.everything()) == 3


def test_two_people_at_once_are_both_kept_and_told(store: MarkStore) -> None:
    store.add(mark(word="good", user="Ann"), seen=0)
    agreed = store.add(mark(word="good", user="Bob"), seen=0)
    assert not agreed.disputed
    conflict = store.add(mark(word="bad", type="hole", user="Cem"), seen=1)
    assert conflict.disputed
    (now,) = store.current()
    assert (now.mark, now.counts_as, now.latest) == ("bad", "unsure", 3)
    assert [one.user for one in store.history(ONE)] == ["Ann", "Bob", "Cem"]
    settled = store.add(mark(word="bad", user="Dan"), seen=3)
    assert (settled.disputed, settled.counts_as) == (False, "bad")
    with pytest.raises(InputError, match=r"seen=9: 'a.png' has 4 marks"):
        store.add(mark(), seen=9)
    store.add(mark(word=None), seen=4)
    again = store.add(mark(word="good"), seen=0)  # a page lists no mark of this image: nothing stands against it
    assert (again.disputed, again.counts_as) == (False, "good")


def test_a_moved_image_keeps_its_mark_and_an_image_that_changed_has_none(store: MarkStore, tmp_path: Path) -> None:
    digest = image(tmp_path / "a.png", 7)
    store.add(mark(digest, path=str(tmp_path / "a.png")))
    (tmp_path / "old").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "old" / "b.png")
    image(tmp_path / "a.png", 9)
    assert store.get(hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()) is None
    lost = locate(store.current())
    assert [(one.path, one.error) for one in lost.failed] == [
        (str(tmp_path / "a.png"), "its content is another than when it was marked: mark it again")
    ]
    found = locate(store.current(), roots=[tmp_path / "old"])
    assert found.paths == {digest: str(tmp_path / "old" / "b.png")}
    assert found.moved == [(str(tmp_path / "a.png"), str(tmp_path / "old" / "b.png"))]
    windows = [replace(one, path="C:\\line\\b.png") for one in store.current()]
    assert locate(windows, roots=[tmp_path / "old"], renamed=False).paths == found.paths
    assert locate(store.current(), roots=[tmp_path / "old"], renamed=False).paths == {}
    with pytest.raises(DataError, match="is a folder"):
        read_marks(tmp_path / "old")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"word": "fine"}, "mark 'fine' of 'a.png': expected good, bad or unsure"),
        ({"digest": "12"}, "expected the SHA-256"),
        ({"digest": "G" * 64}, "expected the SHA-256"),
        ({"type": "hole"}, "has the type 'hole' of a defect"),
        ({"word": None, "type": "hole"}, "marked as nothing"),
        ({"word": "bad", "type": "../../etc"}, "becomes a folder"),
        ({"word": "bad", "type": "a\nb"}, "becomes a folder"),
        ({"word": "bad", "type": "Con"}, "becomes a folder"),
        ({"word": "bad", "type": ".hidden"}, "becomes a folder"),
        ({"word": "bad", "type": "Good"}, "good is no type of defect"),
        ({"note": "n" * 2001}, "more than 2000 characters"),
        ({"score": float("nan")}, "expected a finite number"),
        ({"model_version": 0}, "expected a whole number from 1 on"),
        ({"time": "yesterday"}, "expected a time such as"),
        ({"path": ""}, "without a path"),
        ({"word": "bad", "mask": ONE}, "is not stored"),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(store: MarkStore, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        store.add(mark(**wrong))
    assert len(str(caught.value)) < 500
    assert store.everything() == []


def test_times_are_utc_whoever_wrote_them() -> None:
    for text in ("2026-01-02T03:04:05.678Z", "2026-01-02T05:04:05.678+02:00", "2026-01-02T03:04:05.678"):
        assert checked(mark(time=text)).time == "2026-01-02T03:04:05.678+00:00"


def test_another_file_is_no_store(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as other, other:
        other.execute("CREATE TABLE t (x)")
    (tmp_path / "text.sqlite").write_text("no database, but quite long " * 100)
    for name in ("other.sqlite", "text.sqlite"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match=r"name another file"):
            MarkStore(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(InputError, match="no such file of marks"):
        MarkStore(tmp_path / "absent.sqlite", create=False)


MANY = """
import sys
from pickglass.app.marking.store import Mark, MarkStore
with MarkStore(sys.argv[1]) as store:
    for i in range(25):
        store.add(Mark("a.png", f"{i % 5:064x}", "good", user=sys.argv[2]))
"""


def test_processes_and_threads_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "marks.sqlite"  # nobody has made it yet
    processes = [subprocess.Popen([sys.executable, "-c", MANY, str(path), f"process {i}"]) for i in range(3)]
    with MarkStore(path) as store:

        def write(user: str) -> None:
            for i in range(25):
                store.add(mark(f"{i % 5:064x}", user=user))

        threads = [threading.Thread(target=write, args=(f"thread {i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [process.wait() for process in processes] == [0, 0, 0]
        assert [one.latest for one in store.current()] == [30] * 5
        assert len({(one.digest, one.version) for one in store.everything()}) == 150


KILLED = """
import sys
from pickglass.app.marking.store import Mark, MarkStore
store = MarkStore(sys.argv[1])
for i in range(1_000_000):
    stored = store.add(Mark(f"{i}.png", f"{i:064x}", "good"))
    store.log("thresholds", "m", after={"n": i})
    print(i, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_what_was_answered_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "marks.sqlite"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        answered = 20 + len(process.stdout.read().split())
    with MarkStore(path) as store:
        marks = store.current()
        assert len(marks) in (answered, answered + 1)
        assert [one.path for one in marks] == [f"{i}.png" for i in range(len(marks))]
        assert len(store.audit()) in (answered, answered + 1)
        store.add(mark())


def test_the_log_says_what_was_done_to_models(store: MarkStore) -> None:
    entry = store.log("thresholds", "m.onnx", {"image": 1.0}, {"image": 2.0}, user="Ann", note="too many alarms")
    store.log("leave", "m.onnx")
    assert store.audit()[0] == entry
    assert (entry.number, entry.before, entry.after) == (1, {"image": 1.0}, {"image": 2.0})
    assert store.audit()[1].before is None


# -- masks -------------------------------------------------------------------------------------------------------------


def test_strokes_and_polygons_become_a_mask_of_the_size_of_the_image() -> None:
    polygon = {"kind": "polygon", "points": [[10, 10], [30, 10], [30, 20], [10, 20]]}
    stroke = {"kind": "stroke", "points": [[50, 50], [70, 50]], "radius": 5}
    mask = draw_shapes([polygon, stroke], (80, 100))
    assert mask[10:20, 10:30].all()
    assert mask[:40].sum() == 200
    y, x = np.mgrid[:80, :100] + 0.5
    distance = np.hypot(x - np.clip(x, 50, 70), y - 50)
    np.testing.assert_array_equal(mask[40:], (distance <= 5)[40:])
    erased = draw_shapes(
        [polygon, {**polygon, "points": [[0, 0], [20, 0], [20, 80], [0, 80]], "erase": True}], (80, 100)
    )
    assert erased.sum() == 100
    assert size_of(png_of(mask)) == (80, 100)


def test_a_stroke_that_leaves_the_image_marks_nothing_elsewhere() -> None:
    out = {"kind": "stroke", "points": [[5, 5], [5, -400], [-400, -400], [-400, 5], [5, 5.5]], "radius": 2}
    mask = draw_shapes([out], (40, 40))
    y, x = np.mgrid[:40, :40] + 0.5
    assert not mask[(np.abs(x - 5) > 2) & (np.abs(y - 5.25) > 3)].any()
    assert mask[:4, 3:7].all()
    assert mask[4:6, :4].all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"kind": "circle"}, "expected a polygon or a stroke"),
        ("stroke", "expected a polygon or a stroke"),
        ({"kind": "polygon", "points": [[1, 2], [3, 4]]}, "at least 3 pairs"),
        ({"kind": "polygon", "points": [[1, 2], [3]]}, "at least 3 pairs"),
        ({"kind": "stroke", "points": [[1, "x"]], "radius": 1}, "at least 1 pairs"),
        ({"kind": "stroke", "points": [[1, float("nan")]], "radius": 1}, "at least 1 pairs"),
        ({"kind": "stroke", "points": [[1, 1]], "radius": 0}, "expected pixels above 0"),
        ({"kind": "stroke", "points": [[1, 1]]}, "expected pixels above 0"),
        ({"kind": "stroke", "points": [[1, 1]], "radius": 1, "erase": "no"}, "expected true or false"),
        ({"kind": "stroke", "points": [[100, 1]], "radius": 1}, "outside the image of 30 x 20 pixels"),
        ({"kind": "stroke", "points": [[1, 1]] * 60_000, "radius": 1}, "fewer strokes"),
        ({"kind": "stroke", "points": [[1, 1]] * 1000, "radius": 5000}, "fewer strokes"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(shape: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_shapes([shape], (20, 30))


def test_an_empty_mask_is_none() -> None:
    with pytest.raises(InputError, match="marks no pixel"):
        png_of(np.zeros((4, 4), np.bool_))


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_table_brings_everything_back(store: MarkStore, tmp_path: Path) -> None:
    evil = "=cmd|' /C calc'!A0.png"
    store.add(mark(path=evil, user="@Ann", note='a, "quoted"\nline; \'x', score=-0.25, model_id="-m", model_version=2))
    store.add(mark(TWO, "bad", type="+scratch", path="'b\udcff.png"), png=png())
    store.add(mark("3" * 64, "unsure", path="c.png"))
    table = tmp_path / "out" / "marks.csv"
    table.parent.mkdir()
    write_table(store, table)
    with table.open(newline="", encoding="utf-8") as lines:
        cells = list(csv.reader(lines))
    assert tuple(cells[0]) == COLUMNS
    assert not [cell for row in cells[1:] for cell in row if cell.startswith(("=", "+", "@", "-m"))]
    with read_marks(table) as back:
        there, here = store.current(), back.current()
        there[1] = replace(there[1], path="'b\\udcff.png")  # bytes that are no text are escaped
        assert here == there
        assert back.mask(str(here[1].mask)) == png()
    brought = store.bring(read_table(table))
    assert (brought.added, brought.known) == (0, 3)
    spreadsheet = table.with_name("saved.csv")  # as a spreadsheet may save it
    with spreadsheet.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows([row[:4] + row[5:] for row in cells])
    assert [row.mark.path for row in read_table(spreadsheet)] == [one.path for one in there]


def test_a_disputed_image_is_unsure_in_a_table(store: MarkStore, tmp_path: Path) -> None:
    store.add(mark(user="Ann"), seen=0)
    store.add(mark(word="bad", user="Bob"), seen=0)
    write_table(store, tmp_path / "marks.csv")
    assert [row.mark.mark for row in read_table(tmp_path / "marks.csv")] == ["unsure"]


def test_marks_from_elsewhere_never_overwrite(store: MarkStore) -> None:
    early, late = "2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z"
    store.add(mark(word="bad", type="hole", user="Ann", time=late))
    same = mark(word="bad", user="Bob", time=early)
    assert store.bring([(same, None)]).disputed == []
    assert store.current()[0].type == "hole"  # the later one counts
    assert store.bring([(same, None)]).known == 1
    other = mark(word="good", user="Bob", time="2026-01-01T12:00:00Z")
    assert store.bring([(other, None)]).disputed == ["a.png"]
    assert store.current()[0].counts_as == "unsure"
    assert len(store.history(ONE)) == 3
    corrected = [(mark(TWO, word, user="Ann", time=when), None) for word, when in (("good", early), ("bad", late))]
    assert store.bring(corrected).disputed == []  # one person who thought better of it
    found = store.get(TWO)
    assert found is not None
    assert found.counts_as == "bad"


def test_a_table_is_brought_whole_or_not_at_all(store: MarkStore) -> None:
    with pytest.raises(InputError):
        store.bring([(mark(), None), (mark(TWO, "perhaps"), None)])
    assert store.everything() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,sha256\na.png," + ONE, "expected path and sha256 and mark"),
        (f"path,sha256,mark\na.png,{ONE},ok\nb.png,{ONE},\nc.png,{TWO},good", "2 of 3 rows"),
        (f"path,sha256,mark,score\na.png,{ONE},good,high", "score 'high': expected a number"),
        (f"path,sha256,mark,mask\na.png,{ONE},bad,none.png", "no such file"),
        (f"path,sha256,mark,colour\na.png,{ONE},bad,red", "has the column 'colour'"),
    ],
)
def test_a_wrong_table_names_its_rows(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "marks.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "marks.csv")


def test_files_that_an_uploaded_table_names_are_not_opened(store: MarkStore, tmp_path: Path) -> None:
    store.add(mark(word="bad"), png=png())
    write_table(store, tmp_path / "marks.csv")
    with pytest.raises(DataError, match="cannot be read from here"):
        read_table(tmp_path / "marks.csv", masks=False)


# -- the layout of MVTec AD --------------------------------------------------------------------------------------------


@pytest.fixture
def marked(store: MarkStore, tmp_path: Path) -> MarkStore:
    places = {
        "lot1/a.png": mark(word="good"),
        "lot2/A.png": mark(word="good"),
        "lot1/b.png": mark(word="bad", type="scratch"),
        "lot2/b.png": mark(word="bad", type="scratch"),
        "lot1/c.png": mark(word="bad"),
        "lot1/d.png": mark(word="unsure"),
        "lot1/gone.png": mark(word="good"),
    }
    for i, (name, one) in enumerate(places.items()):
        digest = image(tmp_path / name, 10 * i)
        mask = png() if name == "lot2/b.png" else None
        store.add(replace(one, path=str(tmp_path / name), digest=digest), png=mask)
    (tmp_path / "lot1" / "gone.png").unlink()
    return store


@pytest.mark.parametrize("link", [False, True])
def test_marks_become_a_data_set(marked: MarkStore, tmp_path: Path, link: bool) -> None:
    result = write_layout(marked, tmp_path / "set", link=link)
    assert (result["good"], result["bad"], result["masks"], result["unsure"]) == (2, 3, 1, 1)
    assert result["renamed"] == [
        {"path": str(tmp_path / "lot2" / "A.png"), "name": "train/good/A-2.png"},
        {"path": str(tmp_path / "lot2" / "b.png"), "name": "test/scratch/b-2.png"},
    ]
    assert [one["path"] for one in result["failed"]] == [str(tmp_path / "lot1" / "gone.png")]
    dataset = load_dataset(tmp_path / "set")
    assert dataset.layout == "mvtec"
    assert len(dataset.train) == 2
    assert sorted((Path(row.path).name, row.defect) for row in dataset.test) == [
        ("b-2.png", "scratch"), ("b.png", "scratch"), ("c.png", "bad"),
    ]  # fmt: skip
    (with_mask,) = [row for row in dataset.test if row.has_mask]
    truth = with_mask.truth((8, 6))
    assert truth is not None
    assert truth.sum() == 4
    assert (tmp_path / "set" / "train" / "good" / "a.png").samefile(tmp_path / "lot1" / "a.png") == link
    with pytest.raises(InputError, match="holds something"):
        write_layout(marked, tmp_path / "set")


def test_a_data_set_is_written_whole_or_not_at_all(
    marked: MarkStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "not permitted")))
    with pytest.raises(InputError, match="leave out the links"):
        write_layout(marked, tmp_path / "set", link=True)
    assert sorted(tmp_path.iterdir()) == before


def test_a_type_that_is_called_like_a_folder_of_good_images_stays_a_defect(store: MarkStore, tmp_path: Path) -> None:
    for i, name in enumerate(("ok", "train", "mask", "Normal")):
        digest = image(tmp_path / f"{i}.png", i)
        store.add(mark(digest, "bad", path=str(tmp_path / f"{i}.png"), type=name))
    store.add(mark(image(tmp_path / "g.png", 99), path=str(tmp_path / "g.png")))
    result = write_layout(store, tmp_path / "set")
    assert len(result["renamed"]) == 4
    dataset = load_dataset(tmp_path / "set")
    assert [row.label for row in dataset.test] == [1, 1, 1, 1]
    assert len(dataset.train) == 1


def test_a_mask_of_another_size_is_told(store: MarkStore, tmp_path: Path) -> None:
    for name, value in (("a.png", 1), ("b.png", 2)):
        digest = image(tmp_path / name, value, (9, 9) if name == "a.png" else (8, 6))
        store.add(mark(digest, "bad", path=str(tmp_path / name)), png=png())
    result = write_layout(store, tmp_path / "set")
    assert result["bad"] == result["masks"] == 1
    (failed,) = result["failed"]
    assert "the mask is 8x6 (height x width) but its image is 9x9" in failed["error"]


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pickglass", "marks", *map(str, arguments)], capture_output=True, text=True
    )


def test_the_command_brings_tables_together_and_writes_a_data_set(marked: MarkStore, tmp_path: Path) -> None:
    done = run(marked.path, "--csv", tmp_path / "out.csv", "--mvtec", tmp_path / "set")
    assert done.returncode == 1  # an image is missing
    assert "3 good, 3 bad (2 scratch), 1 unsure" in done.stdout
    assert "gone.png: there is no such file any more" in done.stderr
    assert "A.png is train/good/A-2.png there" in done.stdout
    added = run(tmp_path / "out.csv", "--into", tmp_path / "page.sqlite", "--json")
    assert added.returncode == 0
    result = json.loads(added.stdout)
    assert (result["added"], result["known"], result["masks"]) == (7, 0, 1)
    with MarkStore(tmp_path / "page.sqlite") as page:
        assert page.current() == marked.current()
    wrong = run(marked.path, "--into", tmp_path / "page.sqlite")
    assert wrong.returncode == 2
    assert "marks are added from a table" in wrong.stderr
