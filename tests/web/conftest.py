"""What the tests of the inspection page share: a small exported model, a client, a live server, a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from serving import Settings, client_of

import pickglass as pg
from pickglass.app.export import export
from pickglass.data.tables.sources import DataSource
from pickglass.runtime.compute import ComputeOptions
from pickglass.web.settings import MAX_PIXELS, ServeSettings

CHROMIUM = os.environ.get("PICKGLASS_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def lab_model(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PatchCore model file of the small data set, with thresholds."""
    folder = tmp_path_factory.mktemp("served")
    detector = pg.PatchCore(size=64, layers=("stage2", "stage3"), ratio=0.05).fit(pg.load_dataset(small_dataset).train)
    return detector.save(folder / "tile.safetensors")


@pytest.fixture(scope="session")
def exported_model(lab_model: Path, small_dataset: Path) -> Path:
    """The same model, exported."""
    target = lab_model.with_suffix(".onnx")
    export(lab_model, target, small_dataset)
    return target


@pytest.fixture
def settings(exported_model: Path, small_dataset: Path, tmp_path: Path) -> Settings:
    """Make settings for a copy of the exported model, so that a test may change the file; arguments replace any.

    Exported models run in onnxruntime: the other servers of these tests measure which runtime is the fastest, and one
    server a test would spend half its time on that.
    """
    model = tmp_path / "models" / exported_model.name
    model.parent.mkdir()
    shutil.copy(exported_model, model)

    def make(**changed: Any) -> ServeSettings:
        usual: dict[str, Any] = {
            "models": (model,),
            "data": DataSource(small_dataset),
            "port": 0,
            "folder": tmp_path / "state",
        }
        if all(path.suffix == ".onnx" for path in changed.get("models", (model,))):
            usual["compute"] = ComputeOptions(engine="onnxruntime", max_pixels=MAX_PIXELS)
        return ServeSettings(**{**usual, **changed})

    return make


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of the server with its usual settings."""
    with client_of(settings()) as made:
        yield made


@pytest.fixture(scope="module")
def shared(exported_model: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a server that no test changes, and that takes requests of a megabyte."""
    folder = tmp_path_factory.mktemp("state")
    with client_of(ServeSettings((exported_model,), DataSource(small_dataset), folder=folder, max_bytes=2**20)) as made:
        yield made


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window; tests are skipped, and counted, where there is none (see requirements/browser.sh)."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: requirements/browser.sh installs it, PICKGLASS_CHROMIUM names another")
    with sync_playwright() as playwright:
        arguments = ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
        arguments.append("--use-fake-device-for-media-stream")  # a camera that shows a moving pattern
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            arguments.append("--no-sandbox")
        expect.set_options(timeout=20_000)  # machines may be busy
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield made
        made.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without cookies and storage of other tests."""
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    made.set_default_timeout(20_000)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab; an error in the page's script, or a message of its console that is an error, fails the test.

    Not so an answer with an error status: the page says what it means.
    """
    made = context.new_page()
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))

    def told(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource: the server responded"):
            wrong.append(message.text)

    made.on("console", told)
    yield made
    assert not wrong, "\n".join(wrong)
