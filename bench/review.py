"""Does the Review page follow a dragged threshold at once, also with 10,000 images?

    python -m bench run review [--images 10000] [--steps 200] [--chromium /usr/bin/chromium] [--folder FOLDER]

Makes so many small images and scores for them (nothing is judged: scores are written where a server keeps them),
serves them with a small exported PatchCore, opens the page in Chromium and moves the threshold of bad from end to
end. A step is timed in the page from the key to the end of all that follows from it (figures, filters, cards), with
the layout of the page, by ``performance.now()``. It is done with all images in the grid, with a cell of the matrix as
a filter, sorted by the distance to the threshold, and beside a second model. Milliseconds, and ``of_50_ms``, the 95th
percentile as a share of the 50 ms that the page may take.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.harness import Case, Suite
from pickglass.app.export import export
from pickglass.app.models import load
from pickglass.app.review.store import Judged, JudgedStore, SmallMap
from pickglass.data import DataSource, Row, image_digest
from pickglass.methods import PatchCore
from pickglass.testing import textures
from pickglass.web.server import serve_on
from pickglass.web.settings import ServeSettings

SIDE = 32

# Moves the threshold by keys and times each step with the layout that it makes; runs in the page.
TIMED = """async steps => {
  const handle = document.querySelector(".handle.bad");
  handle.focus();
  const press = key => handle.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
  press("Home");
  const times = [];
  for (let i = 0; i < steps; i++) {
    await new Promise(requestAnimationFrame);
    const began = performance.now();
    press(i % 100 < 99 ? "ArrowRight" : "Home");
    document.getElementById("grid").getBoundingClientRect();
    times.push(performance.now() - began);
  }
  return times;
}"""


def made(folder: Path, n: int) -> Path:
    """Make a data set: nine of ten test images are good."""
    rng = np.random.default_rng(0)
    data = folder / "data"
    for kind in ("train/good", "test/good", "test/hole", "test/scratch"):
        (data / kind).mkdir(parents=True)
    for i, pixels in enumerate(textures(12, SIDE)):
        Image.fromarray(pixels).save(data / "train/good" / f"{i:05d}.png")
    for i in range(n):
        kind = "good" if i % 10 else ("hole", "scratch")[i // 10 % 2]
        pixels = rng.integers(0, 255, (SIDE, SIDE), np.uint8)
        Image.fromarray(pixels).save(data / "test" / kind / f"{i:05d}.png", compress_level=0)
    return data


def judged(folder: Path, data: Path, models: list[Path]) -> None:
    """Write scores as if the models had judged all images."""
    store = JudgedStore(folder / "judged.sqlite")
    files = sorted(data.rglob("*.png"))
    digests = {path: image_digest(Row(str(path))) for path in files}
    known = [(str(path), path.stat().st_size, path.stat().st_mtime_ns, digest) for path, digest in digests.items()]
    store.keep_digests(known)
    cells = SmallMap(np.zeros((8, 8), np.uint8), 0.0, 1.0)
    for seed, model in enumerate(models):
        rng = np.random.default_rng(seed)
        key = load(model).model_id()
        store.begin(key)
        good = {path: 20 + 2 * rng.standard_normal() for path in files}
        scores = {path: value + (6 if "/good/" not in path.as_posix() else 0) for path, value in good.items()}
        store.keep(key, {digests[path]: Judged(float(score), float(score), cells) for path, score in scores.items()})
    store.close()


@contextmanager
def served(settings: ServeSettings) -> Iterator[str]:
    with serve_on(settings) as (address, run):
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield address
    thread.join(20)


def spread(times: list[float]) -> dict[str, float]:
    median, high = np.percentile(times, [50, 95])
    return {
        "median_ms": round(float(median), 2),
        "p95_ms": round(float(high), 2),
        "max_ms": round(max(times), 2),
        "of_50_ms": round(float(high) / 50, 3),
    }


def measured(address: str, chromium: str, steps: int, other: str) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        began = time.perf_counter()
        page.goto(address + "/review")
        page.get_by_text("all are judged").wait_for()
        result: dict[str, Any] = {"opened_s": round(time.perf_counter() - began, 2)}
        result["cards"] = page.locator(".image-card").count()
        page.get_by_role("button", name="All images", exact=True).click()
        result["all"] = spread(page.evaluate(TIMED, steps))
        page.locator("#verdict").select_option("bad")
        result["filtered"] = spread(page.evaluate(TIMED, steps))
        page.locator("#verdict").select_option("")
        page.locator("#sort").select_option("near")
        result["by_distance"] = spread(page.evaluate(TIMED, steps))
        page.locator("#sort").select_option("high")
        page.get_by_label("Compare with").select_option(other)
        page.locator("#cross button").first.wait_for()
        result["two_models"] = spread(page.evaluate(TIMED, steps))
        result["scroll_cards"] = scrolled(page)
        browser.close()
    return result


def scrolled(page: Any) -> dict[str, Any]:
    """Scroll to the end of the grid; only what is in sight exists as elements."""
    began = time.perf_counter()
    page.locator("#grid").press("End")
    page.locator(".image-card[aria-selected=true]").wait_for()
    seconds = time.perf_counter() - began
    return {"to_the_end_s": round(seconds, 2), "elements": page.locator(".image-card").count()}


def compared(given: argparse.Namespace) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        data = made(folder, given.images)
        models = []
        for number in (1, 2):
            detector = PatchCore(size=SIDE, layers=("stage2",), ratio=0.1 * number)
            lab = detector.fit(list(textures(12, SIDE))).save(folder / f"model{number}.safetensors")
            export(lab, lab.with_suffix(".onnx"))
            models.append(lab.with_suffix(".onnx"))
        state = folder / "state"
        state.mkdir()
        judged(state, data, models)
        settings = ServeSettings(tuple(models), DataSource(data), port=0, folder=state)
        with served(settings) as address:
            return measured(address, given.chromium, given.steps, "model2")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--folder", type=Path)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    yield Case({"images": given.images, "steps": given.steps}, lambda: compared(given))


SUITE = Suite(cases, arguments)
