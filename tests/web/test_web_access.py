"""Each page, light and dark, wide and on a phone: axe-core finds nothing, and nothing sticks out to the side."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from serving import Settings, live

from pickglass.web.pages import PAGES

pytestmark = pytest.mark.slow

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def findings(page: Page) -> list[str]:
    """Return what axe-core finds, with the elements."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [
        f"{page.url}: {one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]
    ]


@pytest.mark.long
def test_pages_are_for_everybody(settings: Settings, page: Page, small_dataset: Path) -> None:
    images = sorted((small_dataset / "test").glob("*/*.png"))
    wrong: list[str] = []
    with live(settings()) as address:
        for where in [*PAGES, "/login"]:
            page.set_viewport_size({"width": 1280, "height": 900})
            page.emulate_media(color_scheme="light")
            page.goto(address + where)
            page.wait_for_load_state("networkidle")
            if where == "/":
                page.locator("#files").set_input_files(images)
                expect(page.locator("#list .verdict")).to_have_count(len(images))
                page.locator("#list .verdict.bad").first.click()
                page.keyboard.press("d")
                expect(page.locator("#defects [aria-current]")).to_have_count(1)
                page.keyboard.press("b")
                expect(page.get_by_role("button", name="Outline the defect")).to_be_visible()
                page.get_by_role("button", name="Outline the defect").click()
                page.get_by_text("Why?").click()
                expect(page.locator("#because article").first).to_be_visible()
                page.get_by_text("Keys", exact=True).click()
            elif where == "/teach":
                expect(page.locator("#marks li")).to_have_count(1)
            elif where == "/see":
                page.locator("#file").set_input_files(images[0])
                expect(page.locator("#why article").first).to_be_visible()
            wrong += findings(page)
            page.set_viewport_size({"width": 390, "height": 844})
            page.emulate_media(color_scheme="dark")
            wrong += findings(page)
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > 390:
                wrong.append(f"{where} is {wide} px wide on a screen of 390")
    assert not wrong, "\n".join(wrong)
