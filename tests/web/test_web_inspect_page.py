"""The page on which images are judged, in a browser: ways in, verdicts, places, keys, and the viewer."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect
from serving import Settings, live

from pickglass.app.predict import predict
from pickglass.app.results import ImageResult
from pickglass.data.tables.sources import DataSource
from pickglass.web.settings import ServeSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(exported_model: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that no test changes."""
    folder = tmp_path_factory.mktemp("page")
    with live(ServeSettings((exported_model,), DataSource(small_dataset), port=0, folder=folder)) as where:
        yield where


@pytest.fixture(scope="module")
def judged(exported_model: Path, small_dataset: Path) -> dict[str, ImageResult]:
    """What ``predict`` says of a bad and a good image, the hottest and the coldest of the data set, by file."""
    files = sorted((small_dataset / "test").glob("*/*.png"))
    results = sorted(predict(exported_model, files)["results"], key=lambda result: result["score"])
    assert (results[0]["verdict"], results[-1]["verdict"]) == ("good", "bad")
    return {"good": results[0], "bad": results[-1]}


def zoom(page: Page) -> int:
    return int(page.locator(".zoom").inner_text().rstrip(" %"))


def test_images_are_judged_as_predict_does(
    address: str, page: Page, judged: dict[str, ImageResult], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    page.goto(address)
    page.locator("#files").set_input_files([judged["bad"]["path"], judged["good"]["path"], broken])
    items = page.locator("#list button")
    expect(items.nth(0).locator(".verdict.bad")).to_have_text("bad")
    expect(items.nth(1).locator(".verdict.good")).to_have_text("good")
    expect(items.nth(2)).to_contain_text("not judged")
    verdict = page.get_by_label("Verdict", exact=True)
    expect(verdict.locator(".large")).to_have_text("bad")
    expect(verdict).to_contain_text(f"Score {judged['bad']['score']:#.4g}")
    expect(page.get_by_role("img", name="this image has")).to_be_visible()
    defects = judged["bad"]["defects"]
    expect(page.locator("#defects li")).to_have_count(len(defects))
    first = page.locator("#defects button").first
    x, y, width, height = defects[0]["box"]
    expect(first).to_contain_text(f"{defects[0]['area_px']:,} px")
    expect(first).to_contain_text(f"{width} × {height} px at x {x}, y {y}")
    # what is broken says why, and harms nothing else
    items.nth(2).click()
    expect(verdict).to_contain_text("broken.png")
    expect(verdict.get_by_role("button", name="Try again")).to_be_visible()
    page.get_by_role("button", name=re.compile("^good 1")).click()
    expect(page.locator("#list li:visible")).to_have_count(1)


def test_keys_move_through_images_and_places(address: str, page: Page, judged: dict[str, ImageResult]) -> None:
    page.goto(address)
    page.locator("#files").set_input_files([judged["bad"]["path"], judged["good"]["path"]])
    large = page.locator(".large.verdict")
    expect(page.locator("#list .verdict")).to_have_count(2)
    expect(large).to_have_text("bad")
    expect(page.locator(".stage img[alt]:not([alt=''])")).to_be_visible()
    fitted = zoom(page)
    page.keyboard.press("d")
    expect(page.locator("#defects [aria-current]")).to_have_count(1)
    expect(page.locator(".boxes .chosen")).to_have_count(1)
    page.keyboard.press("0")
    page.keyboard.press("+")
    assert zoom(page) > fitted
    page.keyboard.press("0")
    assert zoom(page) == fitted
    page.keyboard.press("h")
    expect(page.get_by_label("Heat")).to_have_value("0")
    expect(page.locator("canvas.heat")).to_be_hidden()
    page.keyboard.press("h")
    expect(page.locator("canvas.heat")).to_be_visible()
    page.keyboard.press("o")
    expect(page.get_by_label("Outlines")).not_to_be_checked()
    page.keyboard.press("n")
    expect(large).to_have_text("good")
    page.keyboard.press("ArrowLeft")
    expect(large).to_have_text("bad")


def test_the_mouse_pans_and_zooms(address: str, page: Page, judged: dict[str, ImageResult]) -> None:
    page.goto(address)
    page.locator("#files").set_input_files([judged["bad"]["path"]])
    expect(page.locator(".stage img[alt]:not([alt=''])")).to_be_visible()
    place = page.locator(".viewport").bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    expect(page.locator(".value")).to_contain_text("anomaly")
    before = zoom(page)
    page.mouse.wheel(0, -600)
    expect(page.locator(".viewer:not(.fitted)")).to_be_visible()
    assert zoom(page) > before
    stage = page.locator(".stage")
    at = stage.evaluate("stage => stage.getBoundingClientRect().left")
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 2 + 50, place["y"] + place["height"] / 2, steps=3)
    page.mouse.up()
    assert stage.evaluate("stage => stage.getBoundingClientRect().left") == pytest.approx(at + 50, abs=1)
    page.get_by_role("button", name="Fit the image in").click()
    assert zoom(page) == before


def test_images_that_browsers_do_not_show(
    address: str, page: Page, judged: dict[str, ImageResult], tmp_path: Path
) -> None:
    pixels = np.asarray(Image.open(judged["bad"]["path"]).convert("L"))
    deep = Image.fromarray(pixels.astype(np.uint16) * 16)  # 12 bits in 16: black, for a browser
    deep.save(tmp_path / "deep.png")
    deep.save(tmp_path / "deep.tif")
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    page.goto(address)
    page.locator("#files").set_input_files([tmp_path / name for name in ("deep.png", "deep.tif", "turned.jpg")])
    expect(page.locator("#list .verdict")).to_have_count(3)
    height, width = pixels.shape
    brightest = """async picture => {
      const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
      const context = canvas.getContext("2d");
      context.drawImage(picture, 0, 0);
      return [canvas.height, canvas.width, Math.max(...context.getImageData(0, 0, canvas.width, canvas.height).data
        .filter((_, at) => at % 4 === 0))];
    }"""
    for name, size in (("deep.png", [height, width]), ("deep.tif", [height, width]), ("turned.jpg", [width, height])):
        page.locator("#list button", has_text=name).click()
        picture = page.locator(f".stage img[alt='{name}']")
        expect(picture).to_be_visible()
        *shown, white = picture.evaluate(brightest)
        assert shown == size, name
        assert white > 150, name


def test_dropped_pasted_and_filmed_images(address: str, page: Page, judged: dict[str, ImageResult]) -> None:
    page.context.grant_permissions(["camera"])
    page.goto(address)
    content = base64.b64encode(Path(judged["good"]["path"]).read_bytes()).decode()
    send = """([type, content, names]) => {
      const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
      const given = new DataTransfer();
      const typeOf = name => (name.endsWith(".txt") ? "text/plain" : "image/png");
      for (const name of names) given.items.add(new File([bytes], name, {type: typeOf(name)}));
      const event = type === "drop"
        ? new DragEvent("drop", {dataTransfer: given, bubbles: true, cancelable: true})
        : new ClipboardEvent("paste", {clipboardData: given, bubbles: true, cancelable: true});
      document.body.dispatchEvent(event);
    }"""
    page.evaluate(send, ["drop", content, ["a.png", "b.png", "notes.txt"]])
    expect(page.locator("#list .verdict.good")).to_have_count(2)
    expect(page.locator("#messages")).to_contain_text("notes.txt")
    page.evaluate(send, ["paste", content, ["image.png"]])
    expect(page.locator("#list button", has_text="pasted").locator(".verdict")).to_have_count(1)
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator("#video")).to_be_visible()
    page.get_by_role("button", name="Take a picture").click()
    expect(page.locator("#list button", has_text="camera").locator(".verdict")).to_have_count(1)
    page.get_by_role("button", name="Stop the camera").click()
    expect(page.locator("#video")).to_be_hidden()


def test_arrivals_of_the_watched_folder(
    settings: Settings, page: Page, judged: dict[str, ImageResult], tmp_path: Path
) -> None:
    arriving = tmp_path / "arriving"
    arriving.mkdir()
    with live(settings(watch=arriving)) as address:
        page.goto(address)
        shutil.copy(judged["bad"]["path"], arriving / "first.png")
        expect(page.locator("#list .verdict.bad")).to_have_count(1)
        expect(page.locator(".stage img[alt='first.png']")).to_be_visible()
        expect(page.locator("#defects li")).to_have_count(len(judged["bad"]["defects"]))
        shutil.copy(judged["good"]["path"], arriving / "second.png")
        expect(page.locator(".large.verdict")).to_have_text("good")


def test_the_page_says_why(address: str, page: Page, judged: dict[str, ImageResult]) -> None:
    page.goto(address)
    page.locator("#files").set_input_files([judged["bad"]["path"], judged["good"]["path"]])
    expect(page.locator("#list .verdict")).to_have_count(2)
    page.get_by_text("Why?").click()
    places = page.locator("#because article")
    expect(places.first).to_contain_text("times the pixel threshold")
    expect(places.first.locator("img")).to_be_visible()
    page.locator(".viewport").focus()
    for _ in range(3):
        page.keyboard.press("+")
    before = zoom(page)
    page.get_by_role("button", name="Go to place 1").click()
    assert zoom(page) != before
    told = places.first.text_content()
    assert told
    page.keyboard.press("n")  # the next one is explained, too
    expect(places.first).to_contain_text("not marked")
    page.keyboard.press("p")
    expect(places.first).to_have_text(told)


def test_images_are_marked_and_outlined(settings: Settings, page: Page, judged: dict[str, ImageResult]) -> None:
    with live(settings()) as address:
        page.goto(address)
        page.locator("#files").set_input_files([judged["bad"]["path"], judged["good"]["path"]])
        expect(page.locator("#list .verdict")).to_have_count(2)
        items = page.locator("#list button")
        page.keyboard.press("u")
        expect(items.nth(0)).to_contain_text("marked unsure")
        page.keyboard.press("n")
        page.keyboard.press("g")
        expect(items.nth(1)).to_contain_text("marked good")
        expect(page.get_by_role("button", name="Outline the defect")).to_be_hidden()
        page.keyboard.press("p")
        page.get_by_role("button", name="bad", exact=True).click()
        expect(items.nth(0)).to_contain_text("marked bad")
        page.get_by_role("button", name="Outline the defect").click()
        page.locator(".viewport").focus()
        page.keyboard.press("Space")
        page.keyboard.press("n")  # what was drawn is saved
        expect(page.locator(".large.verdict")).to_have_text("good")
        page.keyboard.press("p")
        expect(page.get_by_role("button", name="Draw more of the outline")).to_be_visible()
        expect(page.locator(".marked path").last).to_have_attribute("d", re.compile("^M"))
        # the same files in another tab: their marks are there
        other = page.context.new_page()
        other.goto(address)
        other.locator("#files").set_input_files([judged["bad"]["path"]])
        expect(other.get_by_role("button", name="bad", exact=True)).to_have_attribute("aria-pressed", "true")
        other.close()


def test_a_full_server_loses_no_image(address: str, page: Page, judged: dict[str, ImageResult]) -> None:
    asked = 0

    def busy(route: Route) -> None:
        nonlocal asked
        asked += 1
        if asked in (1, 2, 4):
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "too many images wait"})
        else:
            route.continue_()

    page.goto(address)
    page.route("**/inspect?*", busy)
    content = Path(judged["good"]["path"]).read_bytes()
    names = [f"{n}.png" for n in range(5)]
    page.locator("#files").set_input_files(
        [{"name": name, "mimeType": "image/png", "buffer": content} for name in names]
    )
    expect(page.locator("#list .verdict.good")).to_have_count(5)
    assert asked >= 8
    assert [text.split()[0] for text in page.locator("#list .name").all_inner_texts()] == names


def test_a_rough_mask_is_drawn_in_pixels_of_the_image(address: str, page: Page) -> None:
    """On an image of 400 x 200 that is shown at half its size, with each tool, by mouse and by key."""
    page.goto(address)
    buffer = io.BytesIO()
    Image.new("L", (400, 200), 90).save(buffer, "PNG")
    page.evaluate(
        """async image => {
          const {Viewer} = await import("/static/viewer.js");
          const place = document.createElement("div");
          place.id = "drawing";
          place.style.cssText = "position: fixed; inset: 0 auto auto 0; width: 200px; height: 400px";
          document.body.append(place);
          window.viewer = new Viewer(place, {onshapes: shapes => window.drawn = structuredClone(shapes)});
          await viewer.show({name: "grey", image});
          viewer.draw(true);
          for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame); // the tools take their room
        }""",
        "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
    )
    drawing = page.locator("#drawing")
    left, top, scale = drawing.locator(".stage").evaluate(
        "stage => { const at = stage.getBoundingClientRect(); return [at.left, at.top, at.width / 400]; }"
    )
    assert scale == pytest.approx(0.5, abs=0.01)

    def drag(*points: tuple[float, float]) -> None:
        for n, (x, y) in enumerate(points):
            page.mouse.move(left + x * scale, top + y * scale, steps=1 if n == 0 else 3)
            if n == 0:
                page.mouse.down()
        page.mouse.up()

    drag((40, 40), (160, 40))
    drawing.get_by_label("Rub out").check()
    drag((100, 20), (100, 60))
    drawing.get_by_label("Outline", exact=True).check()
    drag((200, 100), (300, 100), (300, 160))
    drag((20, -30), (60, -30))  # beside the image: nothing
    drawing.get_by_label("Brush").check()
    drawing.locator(".viewport").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    brush, rubbed, outline, dot = page.evaluate("drawn")
    radius = brush["radius"]
    assert radius == pytest.approx(14 / scale, abs=0.1)
    assert brush["kind"] == "stroke"
    assert brush["points"][0] == pytest.approx([40, 40], abs=2)
    assert brush["points"][-1] == pytest.approx([160, 40], abs=2)
    assert (rubbed["kind"], rubbed["erase"]) == ("stroke", True)
    assert outline["kind"] == "polygon"
    assert "radius" not in outline
    assert outline["points"][-1] == pytest.approx([300, 160], abs=2)
    assert dot == {"kind": "stroke", "points": [pytest.approx([200 + 10 / scale, 100], abs=0.2)], "radius": radius}
    page.get_by_role("button", name="Take back the last stroke").last.click()
    assert len(page.evaluate("drawn")) == 3
    page.get_by_role("button", name="Clear the drawing").last.click()
    assert page.evaluate("viewer.shapes") == []


def test_outlines_follow_the_edges_of_pixels(address: str, page: Page) -> None:
    page.goto(address)
    path = page.evaluate(
        """async () => {
          const {outlineOf} = await import("/static/viewer.js");
          const grey = Uint8Array.from([0, 0, 0, 0,  0, 9, 9, 0,  0, 5, 0, 0]);
          return outlineOf({grey, width: 4, height: 3}, 5);
        }"""
    )
    assert path == "M1 1H3M1 2H3M1 1V2M3 1V2"
