"""The HTML report: one file, whole or not at all, with every image in it."""

from __future__ import annotations

import base64
import io
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from page_reader import PageReader
from pickglass.app.pages import charts, images
from pickglass.app.pages.charts import Curves
from pickglass.app.pages.images import display
from pickglass.app.pages.report import Marking, ReportImage, ReportWriter, draw_panels
from pickglass.errors import Failure, InputError

DATA = Path(os.environ.get("PICKGLASS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
NONE = np.empty(0)
NO_CURVES = Curves(NONE, NONE, NONE, NONE, 0.3)
CURVES = Curves(np.array([0, 0, 1.0]), np.array([0, 0.5, 1.0]), np.array([0, 0.2, 0.4]), np.array([0, 0.8, 1.0]), 0.3)
METRICS = {"image_auroc": 0.9876, "average_precision": 0.99996, "f1_max": 1.0, "pixel_auroc": None,
           "aupro_30": float("nan"), "images_per_s": 123.45}  # fmt: skip


def item(path: str = "a.png", label: int | None = 1, score: float = 2.0, size: tuple[int, int] = (60, 80),
         **changes: Any) -> ReportImage:  # fmt: skip
    mask = np.zeros(size, bool)
    mask[: size[0] // 3, : size[1] // 3] = True
    values = {
        "path": path,
        "defect": "hole" if label else None,
        "label": label,
        "score": score,
        "verdict": "bad" if score >= 1 else "good",
        "image": np.full(size, 100, np.uint8),
        "map": mask.astype(np.float32),
        "mask": mask if label else None,
        "predicted": mask,
        "boxes": [[0, 0, size[1] // 3, size[0] // 3]],
    }
    return ReportImage(**(values | changes))


def finish(report: ReportWriter, **changes: Any) -> str:
    values: dict[str, Any] = {
        "metrics": METRICS,
        "by_type": {"hole": {"n": 2, **METRICS}},
        "curves": CURVES,
        "configuration": {"method": "patchcore", "size": {"height": 256}},
        "provenance": {"weights": "sha256:00"},
        "failed": [Failure("broken.png", "truncated")],
        "threshold": 1.0,
        "notes": ["a note"],
    }
    return report.finish(**(values | changes)).read_text(encoding="utf-8")


def write(folder: Path, items: list[ReportImage], **changes: Any) -> str:
    with ReportWriter(folder / "report.html", "A title", (0.0, 1.0)) as report:
        for one in items:
            report.add(one)
        return finish(report, **changes)


def decode(source: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))))


def near(pixels: np.ndarray[Any, Any], colour: str) -> np.ndarray[Any, Any]:
    target = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.asarray(np.abs(pixels.astype(int) - target).max(axis=-1) < 60)


def test_page_is_one_file_with_every_image(tmp_path: Path) -> None:
    names = [f"part{i}.png" for i in range(7)]
    page = PageReader(write(tmp_path, [item(name, label=i % 2, score=i / 2) for i, name in enumerate(names)]))
    assert {attrs["data-name"] for attrs in page.all("article")} == set(names)
    sources = [attrs["src"] for attrs in page.pictures()]
    assert len(sources) == 7 * 3 + 3  # ground truth only for the three bad ones
    for source in sources:
        assert decode(source).shape == (60, 80, 3)
    assert all(attrs["loading"] == "lazy" and attrs["alt"] for attrs in page.pictures())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>&\'.png'
    one = item(f"x/{evil}", defect='ho"le<b>', label=1)
    text = write(tmp_path, [one, item("bad\udcffbytes.png")], notes=[evil], failed=[Failure(evil, evil)],
                 by_type={evil: {}}, configuration={evil: {evil: evil}}, provenance={evil: [evil]})  # fmt: skip
    assert "<script>alert" not in text
    page = PageReader(text)
    assert {"x/" + evil, "bad\\udcffbytes.png"} == {attrs["data-name"] for attrs in page.all("article")}
    assert 'ho"le<b>' in {attrs["data-type"] for attrs in page.all("article")}
    assert page.words.count(evil) == 6  # the note, the failure's two cells, the type, its key-value ends


def test_absent_numbers_are_a_dash_with_a_reason(tmp_path: Path) -> None:
    text = write(tmp_path, [item()])
    tiles = dict(re.findall(r"<dt[^>]*>(.*?)</dt>\s*<dd[^>]*>(.*?)</dd>", text))
    assert tiles == {
        "image AUROC": "0.988",
        "average precision": "&gt;0.999",  # never rounded up to perfect
        "F1-max": "1.000",
        "pixel AUROC": "–",
        "AUPRO@0.3": "–",
        "AUPRO@0.05": "–",
        "AUPIMO": "–",
        "images/s": "123.5",
    }
    assert len(re.findall(r'title="needs ground truth masks"[^>]*>–<', text)) == 8  # four tiles and four cells
    assert not re.search(r"\b(nan|None)\b", " ".join(PageReader(text).words))
    assert text.count("optimistic: threshold chosen on test labels") == 2


def test_worst_mistakes_come_first(tmp_path: Path) -> None:
    items = [item("right", 1, 3.0), item("close", 1, 1.01), item("alarm", 0, 1.4), item("missed", 1, 0.2),
             item("unknown", None, 9.0), item("calm", 0, 0.1)]  # fmt: skip
    page = PageReader(write(tmp_path, items))
    cards = page.all("article")
    assert [card["data-name"] for card in cards] == ["missed", "alarm", "close", "calm", "right", "unknown"]
    assert [card["data-outcome"] for card in cards] == ["missed", "false alarm", "right", "right", "right", ""]


def test_the_verdict_comes_first_and_figures_are_folded(tmp_path: Path) -> None:
    text = write(tmp_path, [item(), item("b", 1, 0.2), item("c", 0, 0.1)], verdict="Missed 1 of 2 <b>.",
                 facts=[("Model", "PatchCore & id")],
                 steps=[("Look & see.", "pickglass advise 'a b'"), ("More.", None)])  # fmt: skip
    order = [text.index(word) for word in (
        "Missed 1 of 2 &lt;b&gt;.", "PatchCore &amp; id", "By defect type", "Look &amp; see.", 'class="signature"',
        "<details><summary>Figures and curves", "image AUROC</dt>", '<svg viewBox', "a note", "<article",
    )]  # fmt: skip
    assert order == sorted(order)
    assert text.count('<code class="command">') == 1
    assert re.search(r'<th scope="row">hole</th><td>1 of 2</td>', text)  # not of the three images compared
    assert "with all good ones (1)" in text


def test_images_with_a_digest_can_be_marked(tmp_path: Path) -> None:
    marking = Marking("0123456789ab", 2, ("path", "sha256", "mark"))
    items = [item("a.png", digest="a" * 64), item("b.png", digest="b" * 64, defect='o"dd'), item("memory")]
    page = PageReader(write(tmp_path, items, marking=marking))
    assert [card.get("data-sha256") for card in page.all("article")] == ["a" * 64, "b" * 64, None]
    (panel,) = [tag for tag in page.all("div") if tag.get("id") == "marking"]
    assert panel["data-columns"] == "path,sha256,mark"
    assert (panel["data-model-id"], panel["data-model-version"]) == ("0123456789ab", "2")
    assert {tag["value"] for tag in page.all("option")} >= {"hole", 'o"dd'}
    again = PageReader(write(tmp_path, items[::-1], marking=marking))
    other = PageReader(write(tmp_path, items[1:], marking=marking))
    names = [tag["data-report"] for one in (page, again, other) for tag in one.all("div") if "data-report" in tag]
    assert names[0] == names[1] != names[2]  # what a browser keeps is for the same images and model
    for unmarked in (write(tmp_path, items), write(tmp_path, [item("memory")], marking=marking)):
        assert 'id="marking"' not in unmarked
        assert 'id="ticks"' not in unmarked


def test_an_unsure_image_is_told_apart(tmp_path: Path) -> None:
    items = [
        item("right", 1, 3.0),
        item("bad between", 1, 0.8, verdict="unsure"),
        item("good between", 0, 0.9, verdict="unsure"),
        item("missed", 1, 0.2),
        item("calm", 0, 0.1),
        item("unknown", None, 0.7, verdict="unsure"),
    ]
    text = write(tmp_path, items, unsure=0.5)
    page = PageReader(text)
    cards = {card["data-name"]: card["data-outcome"] for card in page.all("article")}
    assert list(cards) == ["missed", "bad between", "good between", "calm", "right", "unknown"]
    assert list(cards.values()) == ["missed", "unsure", "unsure", "right", "right", "unsure"]
    assert text.count("? to be looked at") == 3
    assert '<option value="unsure">' in text
    assert re.search(r"<td>1 of 3</td>\s*<td>1 of 3</td>", text)  # of holes missed, and unsure
    assert "unsure above 0.5" in text
    assert "bad above 1" in text
    assert text.count('class="limit lower"') == 2  # the line and its key
    assert "unsure" not in " ".join(PageReader(write(tmp_path, [item("right", 1, 3.0)])).words)


def test_data_without_labels_masks_or_threshold(tmp_path: Path) -> None:
    items = [item(str(i), None, float(i), mask=None, predicted=None, boxes=[], verdict=None) for i in range(4)]
    text = write(tmp_path, items, metrics={}, by_type={}, curves=NO_CURVES, threshold=None, failed=[], notes=[])
    page = PageReader(text)
    assert [card["data-name"] for card in page.all("article")] == ["3", "2", "1", "0"]
    assert 'class="curve"' not in text
    assert "no curve: needs good and bad images with labels" in text
    assert "No threshold, so no verdicts." in text
    assert 'id="gallery" class="unmasked unpredicted"' in text
    assert len(page.pictures()) == 4 * 2


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (33, 1), (500, 700)])
@pytest.mark.parametrize("colour", [False, True])
def test_one_image_of_any_size(tmp_path: Path, size: tuple[int, int], colour: bool) -> None:
    pixels = np.zeros((*size, 3) if colour else size, np.uint16)
    text = write(tmp_path, [item(size=size, image=pixels)])
    assert len(PageReader(text).all("article")) == 1


def test_images_of_floats_are_stretched_to_be_seen(tmp_path: Path) -> None:
    pixels = np.linspace(0.2, 0.3, 60 * 80, dtype=np.float32).reshape(60, 80)
    page = PageReader(write(tmp_path, [item(image=pixels)]))
    assert "original, 32 bit stretched: black is 0.2001, white 0.2999" in page.words
    original = decode(page.pictures()[0]["src"])
    assert original[0, 0, 0] < 10
    assert original[-1, -1, 0] > 245


@pytest.mark.parametrize("pixels", [np.full((9, 9), 0.5, np.float32), np.full((9, 9), 32768, np.uint16)])
def test_an_image_of_one_grey_level_is_drawn_grey(pixels: np.ndarray) -> None:
    assert np.unique(display(pixels)).tolist() == [127]


def test_no_image_at_all(tmp_path: Path) -> None:
    assert "all good ones (0)" in write(tmp_path, [], curves=NO_CURVES)


def test_constant_scores_and_a_far_threshold(tmp_path: Path) -> None:
    for threshold in (2.0, 1e6, float("inf")):
        assert "threshold" in write(tmp_path, [item(), item("b", 0)], threshold=threshold)


def test_an_error_leaves_the_old_report(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    with ReportWriter(target, "t", (0, 1)) as report:
        report.add(item())  # and never finished
    assert target.read_text() == "old"
    with ReportWriter(target, "t", (0, 1)) as report:
        report.add(item())
        report._cards.close()  # the page breaks off after its head, as on a full disk
        with pytest.raises(ValueError, match="closed file"):
            finish(report)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (320, 320, 3), np.uint8)
    with ReportWriter(tmp_path / "report.html", "t", (0, 1)) as report:
        report.add(item(size=(320, 320), image=noise))
        card = report._records[0].length
        tracemalloc.start()
        for i in range(12):
            report.add(item(str(i), size=(320, 320), image=noise))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        finish(report)
    assert card > 200_000
    assert kept < card / 4  # twelve cards are in the file, not one of them here
    assert (tmp_path / "report.html").stat().st_size > 13 * card * 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"map": np.zeros((5, 5), np.float32)}, "a.png: map of shape"),
        ({"mask": np.zeros((5, 5), bool)}, "a.png: mask of shape"),
        ({"predicted": np.zeros((5, 5), bool)}, "a.png: predicted of shape"),
        ({"image": np.zeros((60, 80), np.float64)}, "float64: expected"),
        ({"image": np.zeros((60, 80, 4), np.uint8)}, "a.png: image of shape"),
        ({"score": float("nan")}, "not finite"),
        ({"map": np.full((60, 80), np.nan, np.float32)}, "not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with ReportWriter(tmp_path / "r.html", "t", (0, 1)) as report, pytest.raises(InputError, match=message):
        report.add(item(**changes))


def test_target_and_scale_are_checked_before_the_first_image(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "absent" / "r.html"):
        with pytest.raises(InputError, match=r"name another file, e\.g\. report\.html"):
            ReportWriter(target, "t", (0, 1))
    for scale in ((1.0, 0.0), (0.0, float("nan"))):
        with pytest.raises(InputError, match="two finite numbers"):
            ReportWriter(tmp_path / "r.html", "t", scale)


def test_a_defect_of_one_pixel_is_found_in_a_long_strip() -> None:
    size = (256, 4096)
    mask = np.zeros(size, bool)
    mask[100, 3000] = True
    far = np.zeros(size, np.float32)
    far[200, 50] = 1.0
    one = item(size=size, map=far, mask=mask, predicted=mask, boxes=[[3000, 100, 1, 1]])
    panels = {panel.caption: panel for panel in draw_panels(one, (0.0, 1.0))}
    assert list(panels) == ["original", "heat map", "prediction", "ground truth", "close-up: highest value",
                            "close-up: ground truth"]  # fmt: skip
    assert panels["original"].size == (80, 1280)
    drawn = {name: decode(panel.source or "") for name, panel in panels.items()}
    for name, colour in (("prediction", images.PREDICTED), ("ground truth", images.TRUTH)):
        rows, columns = np.nonzero(near(drawn[name], colour))
        assert abs(np.mean(columns) - 3000 * 1280 / 4096) < 3
        assert abs(np.mean(rows) - 100 * 80 / 256) < 3
    assert np.ptp(np.nonzero(near(drawn["prediction"], images.PREDICTED))[1]) >= 10
    assert near(drawn["close-up: ground truth"], images.TRUTH).any()
    assert near(drawn["heat map"], "#fcffa4")[200 * 80 // 256, 50 * 1280 // 4096]  # the top colour, not averaged away


def test_a_missed_peak_is_marked_and_shown_on_its_own_scale(tmp_path: Path) -> None:
    map_ = np.zeros((60, 80), np.float32)
    map_[40, 50] = 0.2  # far below the scale of all images, 1 to 2
    missed = item(score=0.2, map=map_, mask=None, predicted=None, boxes=[])
    panel = next(panel for panel in draw_panels(missed, (1.0, 2.0)) if panel.kind == "heat")
    common, own = (decode(source or "") for source in (panel.source, panel.own))
    for picture in (common, own):
        white = np.argwhere(near(picture, "#ffffff"))
        assert len(white) >= 4
        assert abs(white.mean(axis=0) - (40, 50)).max() < 2  # strokes all around
    assert not near(common, "#fcffa4")[40, 50]
    assert near(own, "#fcffa4")[40, 50]
    text = write(tmp_path, [missed])
    (shown,) = [tag for tag in PageReader(text).pictures() if "data-own" in tag]
    assert decode(shown["data-own"]).shape == own.shape
    assert 'id="own"' in text


def test_heat_is_drawn_to_one_scale_and_held_at_its_ends() -> None:
    image = np.full((1, 4, 3), 128, np.uint8)
    drawn = images.heat(image, np.array([[-5.0, 0.0, 10.0, 99.0]]), (0.0, 10.0))
    assert drawn[0, 0].tolist() == drawn[0, 1].tolist() == [128, 128, 128]
    assert drawn[0, 2].tolist() == drawn[0, 3].tolist() != [128, 128, 128]
    same = images.heat(image, np.array([[0.0, 1.0, 2.0, 3.0]]), (1.0, 1.0))  # an empty range is a step
    assert (same[0, :2] == 128).all()
    assert (same[0, 2:] != 128).any()


def test_shrinking_keeps_the_highest_value() -> None:
    values = np.zeros((7, 5), np.float32)
    values[6, 4], values[0, 1] = 3, 2
    assert images.shrink_max(values, (2, 2)).tolist() == [[2, 0], [0, 3]]
    assert np.array_equal(images.shrink_max(values, (7, 5)), values)


def test_contours_run_outside_and_two_kinds_are_told_apart() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    image = np.full((9, 9, 3), 200, np.uint8)
    drawn = images.draw_contours(image, truth=mask)
    assert drawn[4, 4].tolist() == [200, 200, 200]
    assert near(drawn, images.TRUTH).sum() == 8
    assert (drawn == 66).all(axis=2).sum() == 16  # the dark edge
    assert (image == 200).all()
    assert near(images.draw_contours(image, predicted=mask), images.PREDICTED).sum() == 8


def test_a_curve_of_a_million_points_stays_small() -> None:
    x = np.linspace(0, 1, 1_000_000)
    curves = Curves(x, np.sqrt(x), x, np.sqrt(x), 0.3)
    assert sum(len(path.d) for path in charts.roc_chart(curves).paths) < 20_000
    points = charts.pro_chart(curves).paths[-1].d.removeprefix("M").split()
    assert points[0] == "56,254"  # the origin of the chart
    x_end, y_end = map(float, points[-1].split(","))
    assert x_end == 426
    assert abs(y_end - (254 - 244 * np.sqrt(0.3))) <= 0.5


def test_a_line_is_interrupted_where_a_value_is_missing() -> None:
    axes = charts.Axis("x", 0, 4), charts.Axis("y", 0, 1)
    line = charts.Line(np.arange(5.0), np.array([0.0, 0.5, np.nan, 1.0, np.nan]), "line", marked=True)
    (path,) = charts.line_chart("t", *axes, [line]).paths
    assert path.d == "M56,254 148.5,132M333.5,10"
    assert path.marks == [(56.0, 254.0), (148.5, 132.0), (333.5, 10.0)]


def test_histogram_gives_each_kind_in_percent() -> None:
    chart = charts.histogram(np.array([0.0, 0.0, 0.0, 1.0]), [0, 0, 0, 1], 0.5)
    assert [key.text for key in chart.keys] == ["good (3)", "bad (1)", "threshold 0.5"]
    areas = [path.d for path in chart.paths if path.style.startswith("area")]
    heights = [{point.split(",")[1] for point in d.removeprefix("M").split()} for d in areas]
    assert heights[0] == heights[1]  # both kinds reach 100 %


@pytest.mark.skipif(not (DATA / "magnetic_tile").is_dir(), reason=f"no real images in {DATA}")
def test_real_images_are_small_and_their_heat_lies_on_the_defect(tmp_path: Path) -> None:
    files = sorted((DATA / "magnetic_tile/test/blowhole").glob("*"))[:3]
    files += sorted((DATA / "aitex_fabric04/test/defect").glob("*"))[:2]
    items = []
    for file in files:
        truth = file.parents[2] / "ground_truth" / file.parent.name / f"{file.stem}_mask.png"
        image, mask = np.asarray(Image.open(file).convert("L")), np.asarray(Image.open(truth).convert("L")) > 0
        items.append(ReportImage(str(file), file.parent.name, 1, 1.0, "bad", image, mask.astype(np.float32), mask,
                                 mask, []))  # fmt: skip
    for one in items:
        panels = draw_panels(one, (0.0, 1.0))
        heat = decode(panels[1].source or "").astype(int)
        hot = (heat[..., 0] - heat[..., 2] > 50) & (heat[..., 1] > 150)  # the yellow end of the colours
        inside = images.shrink_max(one.map, panels[1].size) > 0
        assert (hot & images.grow(inside)).sum() > 0.5 * inside.sum()
        assert not (hot & ~images.grow(images.grow(inside))).any()
    assert len(write(tmp_path, items)) < 1_500_000


def test_the_colours_span_what_is_shown_around_the_threshold() -> None:
    def shown(*peaks: float) -> tuple[float, float]:
        return images.colour_range(10.0, [np.array([[1.0, peak]]) for peak in peaks])

    assert shown(4.0, 5.0) == (7.5, 12.5)  # good images do not glow
    assert shown(4.0, 16.0) == (7.5, 16.0)
    assert shown(16.0, 400.0) == (7.5, 20.0)  # one glaring defect leaves the others their colour
    assert shown() == (7.5, 15.0)
    assert images.colour_range(None, [np.array([[1.0, 5.0]])])[1] == 5.0
