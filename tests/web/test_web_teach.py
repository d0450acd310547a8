"""People tick a report, mark on the page, and teach the model, in a real browser."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect
from serving import Settings, client_of, live

import pickglass as pg
from pickglass.app.marking.table import read_table
from pickglass.app.testing.test import test as judge
from pickglass.runtime.compute import ComputeOptions

pytestmark = pytest.mark.slow
expect.set_options(timeout=30_000)
STATIC = Path(pg.__file__).parent / "web" / "static"


@pytest.fixture(scope="session")
def report(exported_model: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a test of the exported model."""
    target = tmp_path_factory.mktemp("report") / "report.html"
    judge(exported_model, small_dataset, target, compute=ComputeOptions(engine="onnxruntime"))
    return target


def test_a_report_is_ticked_and_saved_as_a_table(
    report: Path, context: BrowserContext, page: Page, tmp_path: Path, client: TestClient
) -> None:
    page.goto(report.as_uri())
    page.get_by_label("marked by").fill("=Ann")
    page.get_by_label("marked by").blur()
    cards = page.locator("#gallery article")
    names = [str(cards.nth(i).get_attribute("data-name")) for i in range(8)]
    cards.nth(0).hover()
    page.keyboard.press("g")
    page.keyboard.press("b")  # of the next one
    cards.nth(2).get_by_role("button", name="unsure", exact=True).click()
    cards.nth(3).get_by_role("button", name="bad", exact=True).click()
    cards.nth(3).get_by_label("type of defect").fill('+a: "hole", long ')
    cards.nth(3).get_by_label("type of defect").blur()
    cards.nth(4).get_by_role("button", name="good", exact=True).click()
    cards.nth(4).get_by_role("button", name="good", exact=True).click()  # and takes it back
    cards.nth(5).locator(".pics button").first.click()
    page.keyboard.press("u")
    expect(page.locator("#zoom p")).to_contain_text("Marked unsure.")
    page.keyboard.press("Escape")
    expect(page.locator("#said")).to_have_text("5 of 8 images marked: 1 good, 2 bad, 2 unsure")

    other = context.new_page()
    other.goto(report.as_uri())
    expect(other.locator("#said")).to_have_text("5 of 8 images marked: 1 good, 2 bad, 2 unsure")
    other.locator("#gallery article").nth(6).get_by_role("button", name="good", exact=True).click()
    expect(page.locator("#said")).to_have_text("6 of 8 images marked: 2 good, 2 bad, 2 unsure")  # by the other tab
    page.locator("#marked").select_option("bad")
    expect(page.locator("#count")).to_have_text("2 of 8 images shown")

    with page.expect_download() as download:
        page.get_by_role("button", name="save marks as CSV").click()
    table = tmp_path / "marks.csv"
    download.value.save_as(table)
    rows = read_table(table)
    assert {row.mark.path: row.mark.mark for row in rows} == {
        names[0]: "good", names[1]: "bad", names[2]: "unsure", names[3]: "bad", names[5]: "unsure", names[6]: "good",
    }  # fmt: skip
    (typed,) = [row.mark for row in rows if row.mark.type is not None]
    assert typed.type == "+a hole , long"
    assert {row.mark.user for row in rows} == {"=Ann"}
    assert all(row.mark.score is not None and row.mark.model_version == 1 for row in rows)
    brought = client.post("/api/marks/table", content=table.read_bytes()).json()  # the page reads it back
    assert brought == {"added": 6, "known": 0, "disputed": []}
    assert {mark["place"] for mark in client.get("/api/marks").json()["marks"]} == {"data"}


@pytest.mark.long
def test_marks_are_looked_at_and_teach(
    settings: Settings, lab_model: Path, context: BrowserContext, page: Page
) -> None:
    made = settings(compute=ComputeOptions(engine="onnxruntime"))
    lab = Path(shutil.copy(lab_model, made.models[0].with_suffix(".safetensors")))
    with client_of(made) as client:
        for i in range(4):
            image = {"place": "data", "name": f"test/good/0{i}.png"}
            client.post("/api/marks", json={"image": image, "mark": "good", "user": "Ann"})
        image = {"place": "data", "name": "test/hole/05.png"}
        client.post("/api/marks", json={"image": image, "mark": "bad"})
    page.on("dialog", lambda dialog: dialog.accept())
    with live(made) as address:
        page.goto(f"{address}/teach")
        counted = "4 images marked good to learn, 1 bad to watch over it, 0 unsure and left alone."
        expect(page.locator("#usable")).to_have_text(counted)
        page.get_by_label("Your name").fill("Bob")
        page.get_by_label("Your name").blur()
        hole = page.locator("#marks li").filter(has_text="05.png")
        hole.get_by_placeholder("type of defect").fill("hole")
        hole.get_by_placeholder("type of defect").blur()
        expect(hole).to_contain_text("by Bob")

        other = context.new_page()
        other.goto(f"{address}/teach")
        other.locator("#marks li").filter(has_text="03.png").get_by_role("button", name="unsure").click()
        expect(other.locator("#usable")).to_contain_text("3 images marked good")
        mine = page.locator("#marks li").filter(has_text="03.png")
        mine.get_by_role("button", name="bad").click()  # without having seen that
        expect(page.locator("#messages")).to_contain_text("Both marks are kept")
        expect(page.locator("#disputed")).to_contain_text("test/good/03.png")
        page.locator("#marks li").filter(has_text="03.png").get_by_role("button", name="good", exact=True).click()
        expect(page.locator("#disputed")).to_be_hidden()

        page.get_by_role("button", name="Update tile with 4 images").click()
        expect(page.locator("#job-state")).to_contain_text("is being updated")
        expect(page.locator("#job-state")).to_contain_text("ready", timeout=300_000)
        expect(page.locator("#outcome tbody tr")).to_have_count(5)
        page.locator("#take").click()
        expect(page.locator("#job-state")).to_contain_text("The update was taken by Bob")
        page.locator("#log summary").click()
        expect(page.locator("#log tbody tr")).to_have_count(1)
        expect(page.locator("#log tbody tr")).to_contain_text("version 2")
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    now = pg.load(made.models[0])
    assert (now.model_id(), now.model_version) == (pg.load(lab).model_id(), 2)


@pytest.mark.skipif(not (STATIC / "viewer.js").is_file(), reason="there is no viewer to draw in yet")
def test_a_defect_is_outlined(settings: Settings, page: Page) -> None:
    made = settings()
    with client_of(made) as client:
        image = {"place": "data", "name": "test/hole/05.png"}
        digest = client.post("/api/marks", json={"image": image, "mark": "bad"}).json()["sha256"]
    with live(made) as address:
        page.goto(f"{address}/teach")
        page.get_by_role("button", name="Outline the defect").click()
        expect(page.locator('#outline img[alt="test/hole/05.png"]')).to_be_visible()
        box = page.locator("#outline .viewport").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 20, y)
        page.mouse.down()
        page.mouse.move(x + 20, y, steps=4)
        page.mouse.up()
        page.get_by_role("button", name="Save the outline").click()
        expect(page.get_by_role("button", name="Outlined: draw again")).to_be_visible()
    with client_of(made) as client:
        mask = np.asarray(Image.open(io.BytesIO(client.get(f"/api/marks/{digest}/mask").content)))
    assert mask.shape == (80, 96)
    assert mask[30:50, 40:56].any()
    assert not mask[:20].any()
