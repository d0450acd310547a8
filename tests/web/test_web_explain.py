"""The page See and its API: explanations with pictures, layers, fields; what is put away; bad requests; a browser."""

from __future__ import annotations

import base64
import io
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import Page, expect
from serving import Settings, client_of, live

from pickglass.app.explain import explained
from pickglass.app.testing.test import test as run_test
from pickglass.errors import InputError
from pickglass.web.explorers import Explorers

PNG = {"content-type": "image/png"}


@pytest.fixture
def bad(small_dataset: Path) -> Path:
    """An image with a hole."""
    return sorted((small_dataset / "test" / "hole").glob("*.png"))[0]


@pytest.fixture
def lab(settings: Settings, lab_model: Path, tmp_path: Path) -> Any:
    """Settings that serve the model file of the lab."""
    model = tmp_path / "models" / lab_model.name
    shutil.copy(lab_model, model)
    return settings(models=(model,))


def pixels_of(address: str) -> np.ndarray:
    kind, _, content = address.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_an_explanation_is_that_of_the_command_with_pictures(lab: Any, lab_model: Path, bad: Path) -> None:
    with client_of(lab) as client:
        answer = client.post("/api/explain", params={"name": "../part.png"}, content=bad.read_bytes(), headers=PNG)
    assert answer.status_code == 200
    told = answer.json()
    own = explained(lab_model, bad).result
    result = told["result"]
    assert result["path"] == "part.png"
    assert result["sentence"] == own["sentence"]
    for mine, other in zip(result["places"], own["places"], strict=True):
        assert (mine["x"], mine["y"], mine["box"]) == (other["x"], other["y"], other["box"])
        assert [near["image"] for near in mine["nearest"]] == [near["image"] for near in other["nearest"]]
    assert pixels_of(told["image"]).shape == pixels_of(told["heat"]).shape == (80, 96, 3)
    for place, pictures in zip(result["places"], told["places"], strict=True):
        assert pixels_of(pictures["own"]).ndim == 3
        assert len(pictures["nearest"]) == len(place["nearest"]) == 3
        assert all(near["found"] for near in place["nearest"])  # in the data set that is served
        assert all(pixels_of(picture).ndim == 3 for picture in pictures["nearest"])
    assert str(bad.parents[2]) not in answer.text  # nobody is told where things lie


def test_an_exported_model_explains_and_says_what_it_hides(client: TestClient, bad: Path) -> None:
    told = client.post("/api/explain", content=bad.read_bytes(), headers=PNG).json()
    assert told["result"]["places"]
    assert "exported model" in told["result"]["notes"][0]
    opened = client.post("/api/see", content=bad.read_bytes(), headers=PNG).json()
    assert (opened["id"], opened["result"], opened["layers"]) == (None, None, [])
    assert "hides its layers" in opened["note"]
    assert pixels_of(opened["image"]).shape == (80, 96, 3)


def test_an_image_is_opened_and_asked_about(lab: Any, bad: Path) -> None:
    with client_of(lab) as client:
        opened = client.post("/api/see", params={"box": "20,10,30,30"}, content=bad.read_bytes(), headers=PNG).json()
        result = opened["result"]
        assert [layer["layer"] for layer in result["layers"]] == ["stage2", "stage3"]
        assert all(layer["verdict"] is not None for layer in result["layers"])
        assert result["size"] == [80, 96]
        for layer, pictures in zip(result["layers"], opened["layers"], strict=True):
            for kind in ("colours", "map"):
                assert pixels_of(pictures[kind]).shape == (*layer["grid"], 3)
        fields = client.get(f"/api/see/{opened['id']}/fields", params={"x": 50, "y": 40}).json()
        assert [field["layer"] for field in fields] == ["stage2", "stage3"]
        left, top, width, height = fields[0]["cell"]
        assert left <= 50 < left + width
        assert top <= 40 < top + height
        outside = client.get(f"/api/see/{opened['id']}/fields", params={"x": 96, "y": 40})
        assert outside.status_code == 400
        assert client.get("/api/see/nobody/fields", params={"x": 1, "y": 1}).status_code == 404
        for _ in range(4):
            client.post("/api/see", content=bad.read_bytes(), headers=PNG)
        assert client.get(f"/api/see/{opened['id']}/fields", params={"x": 1, "y": 1}).status_code == 404


@pytest.mark.parametrize(
    ("path", "params", "content", "headers", "status"),
    [
        ("/api/explain", {}, b"", PNG, 400),
        ("/api/explain", {}, b"no image", PNG, 400),
        ("/api/explain", {}, b"x", {"content-type": "text/html"}, 415),
        ("/api/explain", {"model": "none"}, None, PNG, 404),
        ("/api/explain", {"box": "1,2,3"}, None, PNG, 422),
        ("/api/explain", {"box": "90,70,50,50"}, None, PNG, 400),
        ("/api/explain", {"name": "x" * 500}, None, PNG, 422),
        ("/api/see", {"x": 1}, None, PNG, 400),
        ("/api/see", {"x": -1, "y": 2}, None, PNG, 422),
        ("/api/see", {}, b"no image", PNG, 400),
    ],
)
def test_bad_requests_get_a_sentence(
    client: TestClient, bad: Path, path: str, params: Any, content: bytes | None, headers: Any, status: int
) -> None:
    answer = client.post(path, params=params, content=bad.read_bytes() if content is None else content, headers=headers)
    assert answer.status_code == status
    assert str(bad.parents[2]) not in answer.text


def test_too_many_at_once_are_turned_away() -> None:
    explorers = Explorers()
    inside, leave = threading.Barrier(2), threading.Event()

    def first() -> None:
        with explorers.turn():
            inside.wait(10)
            leave.wait(10)

    def waits() -> None:
        with explorers.turn():
            pass

    threads = [threading.Thread(target=first)]
    threads[0].start()
    inside.wait(10)
    threads += [threading.Thread(target=waits) for _ in range(8)]
    for thread in threads[1:]:
        thread.start()
    while explorers._asking < 9:
        pass
    with pytest.raises(HTTPException) as refused, explorers.turn():
        pass
    assert refused.value.status_code == 503
    assert refused.value.headers is not None
    assert "Retry-After" in refused.value.headers
    leave.set()
    for thread in threads:
        thread.join(10)
    with explorers.turn():
        assert explorers._asking == 1


@pytest.mark.slow
def test_the_page_in_a_browser(lab: Any, page: Page, bad: Path) -> None:
    with live(lab) as address:
        page.goto(address + "/see")
        page.set_input_files("#file", bad)
        page.wait_for_selector("#why article")
        assert page.locator("#rows tr").count() == 2
        assert page.locator("#why .pics img").count() >= 4
        assert page.locator("#why p").first.inner_text().startswith(("bad:", "good:", "unsure:"))
        # the cell under the pointer
        stage = page.locator("#stage")
        area = stage.bounding_box()
        assert area is not None
        page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
        expect(page.locator("#fields")).to_contain_text("the cell is")
        assert page.locator("#cell").is_visible()
        before = page.locator("#fields").inner_text()
        stage.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#fields")).not_to_have_text(before)
        # another layer is drawn
        shown = page.locator("#layer").get_attribute("href")
        page.locator("#which").select_option("stage3")
        assert page.locator("#layer").get_attribute("href") != shown
        # a defect is marked by dragging: its layers are judged, and it is explained first
        page.mouse.move(area["x"] + area["width"] * 0.4, area["y"] + area["height"] * 0.4)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] * 0.6, area["y"] + area["height"] * 0.6, steps=4)
        page.mouse.up()
        page.wait_for_selector("#why h3:has-text('the defect that was named')")
        assert page.locator("#rows .badge").count() == 2
        assert page.locator("#marked").is_visible()
        page.get_by_role("button", name="No mark").click()
        page.wait_for_selector("#rows .badge", state="detached")


@pytest.mark.slow
def test_the_page_of_an_exported_model_explains(settings: Settings, page: Page, bad: Path) -> None:
    with live(settings()) as address:
        page.goto(address + "/see")
        page.set_input_files("#file", bad)
        page.wait_for_selector("#why article")
        assert not page.locator("#layers").is_visible()
        assert page.locator("#layers-note").inner_text().startswith("an exported model hides its layers")


@pytest.mark.slow
def test_pages_that_pickglass_wrote_are_offered(
    settings: Settings, lab_model: Path, small_dataset: Path, tmp_path: Path, page: Page
) -> None:
    report = tmp_path / "last week.html"
    run_test(lab_model, small_dataset, report)
    for wrong in (tmp_path / "absent.html", lab_model):
        with pytest.raises(InputError, match="a page that pickglass wrote"):
            settings(pages=(wrong,))
    with live(settings(pages=(report,))) as address:
        page.goto(address + "/see")
        with page.expect_popup() as opened:
            page.get_by_role("link", name="last week").click()
        shown = opened.value
        expect(shown.get_by_role("heading", level=1)).to_contain_text("tile")
        shown.locator("#theme").click()  # its script runs
        expect(shown.locator("html")).to_have_attribute("data-theme", "dark")
        assert shown.evaluate("self.origin") == "null"  # and belongs to no site
        assert page.request.get(address + "/see/pages/1").status == 404
        assert page.request.get(address + "/see/pages/x").status == 422
