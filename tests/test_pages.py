"""All pages: what comes from outside is text, one policy for all, nothing is asked for from elsewhere."""

from __future__ import annotations

import ast
import base64
import fnmatch
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

import pickglass
from page_reader import PageReader
from pickglass.app.pages import build, images
from pickglass.app.pages.advise import PaintedImage, ShownModel, write_advice
from pickglass.app.pages.bench import write_bench
from pickglass.app.pages.charts import Curves
from pickglass.app.pages.compare import write_compare
from pickglass.app.pages.explain import Crop, Explained, PlacePictures, write_explanation
from pickglass.app.pages.heckler2023 import draw_figures
from pickglass.app.pages.layers import Gradient, write_fields
from pickglass.app.pages.look import Channel, LayerView, Scene, write_look
from pickglass.app.pages.report import ReportImage, ReportWriter, TiledImage
from pickglass.app.pages.robustness import draw_samples, write_robustness
from pickglass.app.pages.sight import SeenDefect, write_sight
from pickglass.app.pages.study import JudgedImage, OpenWork, StudyPage, best_of, write_study
from pickglass.app.pages.tiles import TileMaps, draw_tiles
from pickglass.calibration import Calibration
from pickglass.data import Row
from pickglass.data.images.tiles import Tiling
from pickglass.data.painting.disturbances import DISTURBANCES, UNITS
from pickglass.errors import Failure
from pickglass.metrics.catalogue import METRICS, WITH_THRESHOLD, WITHOUT_THRESHOLD, shown
from pickglass.result import Found, Prediction
from source_trees import nodes_of, tree_of

ROOM = Path(build.__file__).parent
EVIL = """<script>alert(1)</script>"><img src=x onerror=alert(1)>'{{7*7}}{% if %}&amp;\udcff"""
SEEN = EVIL.replace("\udcff", "\\udcff")  # as a browser is to show it
WHOLE = (SEEN, SEEN.replace('"', '\\"'), SEEN.rpartition("/")[2])  # also in JSON, and as the name of a file
GREY = np.full((40, 60), 120, np.uint8)
HEAT = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
MASK = HEAT > 0.9
NUMBERS: dict[str, Any] = {key: 0.5 for key in METRICS} | {"n": 4, "intervals": None}


def report_page(folder: Path) -> Path:
    tiling = Tiling.over((40, 60), (20, 30), (20, 30))
    maps = TileMaps(np.arange(4.0), np.zeros((4, 5, 5), np.float32), HEAT, HEAT, tiling, "cosine")
    tiles = [TiledImage(EVIL, "", draw_tiles(np.zeros((3, 40, 60), np.float32), maps, (0, 1), MASK))]
    with ReportWriter(folder / "page.html", EVIL, (0.0, 1.0)) as writer:
        item = ReportImage(f"x/{EVIL}", EVIL, 1, 0.5, "good", GREY, HEAT, MASK, MASK, [[1, 2, 3, 4]], {EVIL: HEAT})
        writer.add(item)
        writer.add(ReportImage("b.png", None, 0, 2.5, "bad", GREY, HEAT, None, None, []))
        return writer.finish(
            metrics=NUMBERS,
            by_type={EVIL: NUMBERS},
            curves=Curves(*([np.array([0.0, 0.5, 1.0])] * 4), 0.3, *([np.array([0.0, 0.04, 0.1])] * 2)),
            configuration={EVIL: {EVIL: EVIL}},
            provenance={EVIL: [EVIL]},
            failed=[Failure(EVIL, EVIL)],
            threshold=1.0,
            notes=[EVIL],
            tiles=tiles,
        )


def compare_page(folder: Path) -> Path:
    rows = [Row(EVIL, label=1, defect=EVIL, pixels=GREY), Row("good.png", label=0, pixels=GREY)]
    found = tuple(Found(row, score, HEAT, (40, 60)) for row, score in zip(rows, (0.5, 2.5), strict=True))
    prediction = Prediction(found, (), Calibration("highest", 1.0, 0.5))
    models: Any = [{"name": f"{EVIL}{i}", "model": EVIL, **NUMBERS} for i in range(3)]
    failed: Any = [{"path": EVIL, "error": EVIL}]
    return write_compare(folder / "page.html", EVIL, models, [prediction] * 3, [0, 1], failed, [EVIL], 10**6)


def test_an_unsure_image_is_neither_missed_nor_a_false_alarm_where_models_are_compared(tmp_path: Path) -> None:
    rows = [Row("bad.png", label=1, defect="hole", pixels=GREY), Row("good.png", label=0, pixels=GREY)]
    found = tuple(Found(row, 0.8, HEAT, (40, 60)) for row in rows)
    words = {}
    for lower in (None, 0.5):
        prediction = Prediction(found, (), Calibration("fixed", 1.0, None, unsure_threshold=lower))
        models: Any = [{"name": "m", "model": "m", **NUMBERS}] * 2
        page = write_compare(tmp_path / "page.html", "t", models, [prediction] * 2, [0, 1], [], [], 10**6)
        words[lower] = [
            word for word in PageReader(page.read_text()).words if word.startswith("m: ") or "missed" in word
        ]
    assert words[None].count("missed") == 3  # the head of the column, and both models' bad image
    assert words[0.5].count("missed") == 1
    assert [word.strip() for word in words[0.5] if word.startswith("m: ")] == ["m: 0.8, unsure"] * 4


def robustness_page(folder: Path) -> Path:
    def disturbed(kind: str, strength: float) -> Any:
        return {"kind": kind, "strength": strength, "unit": UNITS.get(kind, ""), **NUMBERS, "miss_rate": None}

    result: Any = {
        "page": None,
        "n": 4,
        "seed": 0,
        "undisturbed": disturbed("none", 0.0),
        "disturbed": [disturbed(kind, strength) for kind, steps in DISTURBANCES.items() for strength in steps],
        "failed": [{"path": EVIL, "error": EVIL}],
    }
    return write_robustness(
        folder / "page.html",
        EVIL,
        result,
        Calibration("fixed", 1.0, None, unsure_threshold=0.5),
        draw_samples(lambda kind, strength: GREY),
    )


def advise_page(folder: Path) -> Path:
    candidate: Any = {
        "method": EVIL,
        "backbone": EVIL,
        "layers": [EVIL],
        "size": [64, 64],
        "tile": [32, 32],
        "aupro_05": 0.9999,
        "aupro_05_interval": [0.4, 0.6],
        "gain": None,
        "gain_interval": None,
        "image_auroc": 0.5,
        "image_auroc_interval": [0.4, 0.6],
        "by_contrast": {EVIL: 0.5},
        "latency_ms": 3.0,
        "measured": False,
        "model_mb": 0.3,
        "peak_mb": None,
        "too_slow": True,
        "command": EVIL,
    }
    result: Any = {
        "command": EVIL,
        "why": EVIL,
        "ranking": [candidate] * 30,
        "ruled_out": [{"layers": EVIL, "size": [1, 1], "why": EVIL}],
        "limits": [EVIL],
        "defect_px": 8.0,
        "defect_mm": 0.4,
        "width_px": 2.0,
        "half_contrast": {EVIL: None},
        "spread_px": 1.0,
        "part": None,
        "image": [40, 60],
        "n_fit": 1,
        "n_held": 1,
        "n_painted": 1,
        "seconds": 1.0,
        "report": None,
    }
    painted = PaintedImage(EVIL, 0.5, GREY, MASK, [HEAT])
    return write_advice(folder / "page.html", EVIL, result, [ShownModel(EVIL, (0.0, 1.0))], [painted])


def sight_page(folder: Path) -> Path:
    def of_size(size: float, contrast: float | None) -> Any:
        return {
            "size_px": size,
            "width_px": 2.0,
            "size_mm": 0.2,
            "n_painted": 2,
            "seen": 0.9999,
            "contrast": contrast,
            "by_kind": {EVIL: contrast},
        }

    result: Any = {
        "model": EVIL,
        "method": EVIL,
        "image": [40, 60],
        "n_images": 2,
        "n_fresh": 1,
        "n_flagged": 1,
        "kinds": [EVIL],
        "sizes": [of_size(4.0, None), of_size(8.0, 0.25)],
        "smallest_px": 8.0,
        "smallest_mm": 0.4,
        "spread_px": 1.0,
        "part": None,
        "limits": [EVIL],
        "seconds": 1.0,
        "report": None,
    }
    seen = SeenDefect(EVIL, 8.0, MASK, [(GREY, 0.2, False), (GREY, 0.4, True)])
    return write_sight(folder / "page.html", EVIL, result, [seen])


def study_page(folder: Path) -> Path:
    rows = []
    for place, (state, layers) in enumerate([("done", "a"), ("done", "b"), ("failed", EVIL), ("missing", "c")]):
        names = {"dataset": EVIL, "method": f"{EVIL}{place}", "backbone": EVIL, "weights": EVIL, "size": EVIL}
        cell = json.dumps({"root": EVIL, "dataset": EVIL})
        known = {"place": place, "key": str(place), "seed": 0, "state": state, "error": EVIL, "cell": cell}
        rows.append({**names, **known, "layers": layers, **NUMBERS})
    picture = folder / "part.png"
    Image.fromarray(GREY).save(picture)
    known_row = Row(str(picture), label=1, defect=EVIL)
    judged = [JudgedImage(Found(known_row, 0.5, HEAT, (40, 60)), 1.0)]
    judged.append(JudgedImage(Found(Row(f"gone/{EVIL}", label=0), 0.5, HEAT, (40, 60)), 0.1))  # cannot be read any more
    figures = draw_figures(rows, {"resnet50": {EVIL: 10, "b": 20}})
    study = StudyPage(rows, lambda key: judged if key == "0" else [], {EVIL: [OpenWork(EVIL, EVIL, EVIL)]}, [EVIL],
                      figures, 10**6)  # fmt: skip
    return write_study(folder / "page.html", study)


def look_page(folder: Path) -> Path:
    facts: Any = {"layer": EVIL, "grid": [4, 6], "stride": 10, "channels": 3, "contrast_sd": 1.5, "verdict": "lost"}
    cells = np.arange(24.0).reshape(4, 6)
    channel = Channel(2, cells, 1.5)
    view = LayerView(facts, cells, np.zeros((4, 6, 3), np.uint8), [channel], cells > 20, 100, 0.9)
    canvas = np.repeat(GREY[..., None], 3, axis=2)
    scene = Scene(EVIL, GREY, canvas, MASK, MASK, 0, 4.0, 2.0)
    result: Any = {"backbone": EVIL, "weights": EVIL, "size": [40, 60], "layers": [facts], "page": None}
    return write_look(folder / "page.html", result, scene, [view], [np.zeros((3, 3, 3), np.uint8)] * 5)


def explain_page(folder: Path) -> Path:
    near: Any = {"distance": 1.5, "image": EVIL, "x": 3, "y": 4, "canvas_x": 3, "canvas_y": 4, "turned": 90}
    place: Any = {"x": 30, "y": 20, "value": 0.9, "over": 1.8, "box": [28, 18, 5, 5], "area_px": 20, "named": True}
    place |= {"sentence": EVIL, "shares": [{"name": EVIL, "share": 1.0}], "nearest": [near, {**near, "image": None}]}
    place["layers"] = [{"layer": EVIL, "contrast_sd": None, "verdict": "unclear"}]
    below = {**place, "box": None, "named": False, "over": None, "shares": [], "nearest": [], "layers": []}
    result: Any = {"path": f"x/{EVIL}", "model_id": EVIL, "model_version": 1, "method": EVIL, "sentence": EVIL}
    result |= {"verdict": "bad", "score": 1.0, "threshold": 0.5, "unsure_threshold": 0.4, "ratio": 2.0, "spread": 0.1}
    result |= {"spreads": 5.0, "p_value": 1e-9, "p_value_log10": 9.0, "p_value_extrapolated": True}
    result |= {"pixel_threshold": 0.5, "places": [place, below], "notes": [EVIL], "page": None}
    result["similar"] = {"image": EVIL, "distance": 1.0, "usual": 0.5, "found": True}
    crop = Crop(np.repeat(GREY[..., None], 3, axis=2), (5, 5, 10, 10))
    pictures = [PlacePictures(crop, [crop, None]), PlacePictures(crop, [])]
    return write_explanation(folder / "page.html", Explained(result, GREY, HEAT, MASK, pictures, GREY, (0.1, 0.2, 0.3)))


def layers_page(folder: Path) -> Path:
    node: Any = {
        "node": EVIL,
        "name": EVIL,
        "grid": [4, 6],
        "stride": 10,
        "channels": 3,
        "rf_gradient": 20,
        "rf_at_least": True,
        "rf_image": EVIL,
        "rf_theoretical": None,
        "rf_effective": 10,
        "rrf": 0.3,
        "macs": 10**8,
        "probe": None,
    }
    result: Any = {"backbone": EVIL, "weights": EVIL, "weights_info": {}, "size": [40, 60], "nodes": [node, node]}
    gradient = Gradient(np.eye(100), (40, 40, 20, 20), EVIL)
    return write_fields(folder / "page.html", result, [gradient] * 2, GREY)


def bench_page(folder: Path) -> Path:
    times: Any = {"n": 3, "mean_ms": 2.0, "median_ms": 2.0, "p95_ms": None, "p99_ms": None}
    run: Any = {key: EVIL for key in ("model", "name", "method", "runtime", "device", "precision")} | {
        "canvas": [40, 60],
        "first_s": 1.0,
        "latency": times,
        "stages": {"decode": times, "graph": times},
        "times_ms": [1.0, 2.0, 3.0],
        "batch": 8,
        "images_per_s": 3.0,
        "stage_images_per_s": {"decode": 5.0, "graph": 4.0},
        "file_mb": 1.0,
        "peak_mb": None,
        "gflop": None,
        "peak_share": None,
        "n_judged": 0,
        "image_auroc": 0.5,
        "aupro_30": None,
        "failed": [],
    }
    result: Any = {
        "protocol": "files",
        "warm_up": 1,
        "repeat": 3,
        "batch": 8,
        "workers": 2,
        "time": EVIL,
        "images": EVIL,
        "machine": {"cpu": EVIL, "cores": 2, "threads": None, "gpu": EVIL, "versions": {EVIL: EVIL}},
        "runs": [run] * 9,
        "notes": [EVIL],
        "failed": [{"path": EVIL, "error": EVIL}],
        "written": [],
    }
    return write_bench(folder / "page.html", result)


PAGES: dict[str, Callable[[Path], Path]] = {
    "report": report_page,
    "compare": compare_page,
    "robustness": robustness_page,
    "advise": advise_page,
    "sight": sight_page,
    "study": study_page,
    "look": look_page,
    "explain": explain_page,
    "layers": layers_page,
    "bench": bench_page,
}
WITH_PICTURES = [name for name in PAGES if name != "bench"]  # which has charts alone


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pages = {}
    for name, write in PAGES.items():
        folder = tmp_path_factory.mktemp(name)
        pages[name] = write(folder).read_text(encoding="utf-8")
    return pages


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@pytest.mark.parametrize("name", PAGES)
def test_what_comes_from_outside_is_shown_as_text(name: str, written: dict[str, str]) -> None:
    page = PageReader(written[name])
    assert len(page.all("script")) == 1
    assert [attrs for attrs in page.all("img") if not attrs.get("src", "data:").startswith("data:")] == []
    for tag, attrs in page.tags:
        for attribute in attrs:
            assert re.fullmatch("[a-z-]+", attribute, re.IGNORECASE), f"<{tag} {attribute}>"
            assert not attribute.startswith("on"), f"<{tag} {attribute}>"
    assert SEEN in " ".join(page.words)
    texts = [*page.words, *(value for _, attrs in page.tags for value in attrs.values())]
    for text in texts:
        for whole in WHOLE:
            text = text.replace(whole, "")
        assert "alert" not in text, text


@pytest.mark.parametrize("name", PAGES)
def test_every_page_has_the_one_policy_and_obeys_it(name: str, written: dict[str, str]) -> None:
    page = PageReader(written[name])
    (policy,) = [attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"]
    (style,), (script,) = page.code["style"], page.code["script"]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src '{digest(style)}'; script-src '{digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    first = [tag for tag, _ in page.tags if tag in ("meta", "style", "script", "link", "img")]
    assert first[:2] == ["meta", "meta"]  # before anything that it governs
    for tag, attrs in page.tags:
        assert "style" not in attrs, f"<{tag} style> is not allowed by the policy"
        for attribute in ("src", "href", "action", "srcset"):
            assert attrs.get(attribute, "data:").startswith("data:")
    assert "http:" not in written[name]
    assert "https:" not in written[name]
    for outside in ("url(", "@import", "fetch(", "innerHTML"):
        assert outside not in style + script


@pytest.mark.parametrize("name", WITH_PICTURES)
def test_every_picture_has_a_text_and_a_size(name: str, written: dict[str, str]) -> None:
    pictures = PageReader(written[name]).pictures()
    assert pictures
    for picture in pictures:
        assert picture["alt"].split(" of ")[0]  # what it shows, not only of what
        pixels = Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",")[1])))
        assert pixels.size == (int(picture["width"]), int(picture["height"]))


def test_classes_that_pages_use_are_in_the_style_sheet(written: dict[str, str]) -> None:
    style = (ROOM / "page.css").read_text()
    known = set(re.findall(r"\.([a-z]+\d*)", style))
    used = {
        name
        for text in written.values()
        for _, attrs in PageReader(text).tags
        for name in attrs.get("class", "").split()
    }
    scripted = {"aside", "original", "heat", "part", "parts", "map", "cells", "colours", "channel"}
    assert used - known - scripted == set()


def test_both_ways_into_the_dark_have_the_same_colours() -> None:
    style = (ROOM / "page.css").read_text()
    chosen, preferred = re.findall(
        r':root(?:\[data-theme="dark"\]|:not\(\[data-theme="light"\]\)) \{(.*?)\}', style, re.S
    )
    assert chosen.split() == preferred.split()
    light = re.search(r"^:root \{(.*?)\}", style, re.DOTALL | re.MULTILINE)
    assert light is not None
    assert re.findall(r"--[a-z]+", light[1]) == re.findall(r"--[a-z]+", chosen)


def test_the_legend_has_the_colours_of_the_pictures() -> None:
    style = (ROOM / "page.css").read_text()
    assert f".swatch.predicted {{ background: {images.PREDICTED}; }}" in style
    assert f".swatch.truth {{ background: {images.TRUTH}; }}" in style


def test_heat_colours_are_inferno() -> None:
    colours = images.HEAT_COLOURS.astype(int)
    assert colours[[0, 64, 128, 192, 255]].tolist() == [
        [0, 0, 3], [87, 15, 109], [187, 55, 84], [249, 142, 8], [252, 254, 164],
    ]  # fmt: skip
    lightness = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > -0.8).all()  # as far as whole numbers allow


# -- how pages are made ------------------------------------------------------------------------------------------------


def test_a_name_that_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'path' is undefined"):
        build.render("card.html.j2", {"shape": ""})


def test_an_error_in_a_page_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    with pytest.raises(UndefinedError):
        build.write_page(target, "layers.html.j2", {"title": "half of it is written by now"})
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_templates_style_and_script_are_installed() -> None:
    """They lie beside the modules, so a package without them would be noticed by users only."""
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    (listed,) = re.findall(r"package-data\]\npickglass = \[(.*?)\]", project, re.DOTALL)
    patterns = re.findall(r'"([^"]+)"', listed)
    needed = [path for path in ROOM.rglob("*") if path.suffix in (".j2", ".css", ".js")]
    assert len(needed) > 10
    for path in needed:
        name = path.relative_to(Path(pickglass.__file__).parent).as_posix()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), f"{name} is not in package-data"


def strings(path: Path) -> list[str]:
    """The string constants of a module that are no docstrings."""
    tree = tree_of(path)
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    ]


def test_markup_is_in_templates_only() -> None:
    source = Path(pickglass.__file__).parent
    found = [
        f"{path.relative_to(source)}: {text[:60]!r}"
        for path in sorted((source / "app").rglob("*.py"))
        for text in strings(path)
        if re.search(r"</[a-z]|<(p|b|br|td|tr|th|div|span|svg|img|h\d|section|figure)\b", text)
    ]
    assert found == []


def test_pages_know_neither_torch_nor_the_use_cases() -> None:
    allowed = ("app.pages", "app.results", "data", "metrics", "calibration", "result", "errors")
    for path in sorted(ROOM.glob("*.py")):
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pickglass"):
                module = str(node.module).removeprefix("pickglass.")
                assert module.startswith(allowed), f"{path.name} imports {node.module}"
    modules = sorted(f"pickglass.app.pages.{path.stem}" for path in ROOM.glob("*.py") if path.stem != "__init__")
    code = f"import {', '.join(modules)}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "timm", "matplotlib", "skimage"} & set(done.stdout.split())


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_each_metric_is_named_once() -> None:
    assert list(METRICS) == [metric.key for metric in METRICS.values()]
    for names in ([m.label for m in METRICS.values()], [m.short for m in METRICS.values()]):
        assert len(names) == len(set(names))
    for metric in METRICS.values():
        assert len(metric.short) <= 10
        assert metric.what[0].isupper()
        assert metric.what.endswith(".")
        assert metric.missing
    assert set(WITHOUT_THRESHOLD).isdisjoint(WITH_THRESHOLD)
    assert set(WITHOUT_THRESHOLD) | set(WITH_THRESHOLD) < set(METRICS)


def test_no_other_module_names_metrics() -> None:
    labels = {metric.label for metric in METRICS.values() if metric.label not in ("missed", "false alarms", "F1")}
    labels |= {"AUPRO@0.30", "misses"}
    source = Path(pickglass.__file__).parent
    found = [
        f"{path.relative_to(source)}: {text!r}"
        for path in sorted((source / "app").rglob("*.py"))
        for text in strings(path)
        if text in labels
    ]
    assert found == []


def test_rare_metrics_are_shown_where_they_are() -> None:
    assert "au_spro_05" not in {metric.key for metric in shown(WITHOUT_THRESHOLD, [NUMBERS | {"au_spro_05": None}])}
    keys = [metric.key for metric in shown(WITHOUT_THRESHOLD, [{"au_spro_05": None}, {"au_spro_05": 0.5}])]
    assert keys == list(WITHOUT_THRESHOLD)


def test_the_best_of_a_metric_goes_by_its_direction() -> None:
    assert METRICS["image_auroc"].better([0.2, 0.7]) == 0.7
    assert METRICS["miss_rate"].better([0.2, 0.7]) == 0.2
    assert METRICS["miss_rate"].better([]) is None


def test_a_study_names_its_best_combinations_first() -> None:
    def row(
        layers: str, size: str, seed: int, aupro: float | None, auroc: float, state: str = "done"
    ) -> dict[str, Any]:
        names = {"method": "padim", "backbone": "net", "weights": "default", "layers": layers, "size": size}
        return {**names, "seed": seed, "state": state, "aupro_30": aupro, "image_auroc": auroc}

    rows = [row("a", "64", 0, 0.8, 0.5), row("a", "64", 1, 0.6, 0.5), row("b", "64", 0, 0.75, 0.4)]
    rows += [row("b", "128", 0, 0.1, 0.9), row("c", "64", 0, 0.99, 0.99, "failed")]
    assert best_of(rows) == [
        "Best AUPRO@0.3: 0.750, padim on net, b, 64 px.",  # by the mean over the seeds
        "Best image AUROC: 0.900, padim on net, b, 128 px.",
    ]
    assert best_of([row("a", "64", 0, None, 0.5), row("b", "64", 0, None, 0.4)]) == [
        "Best image AUROC: 0.500, padim on net, a, 64 px."
    ]
    assert best_of(rows[:2]) == []  # nothing to compare
