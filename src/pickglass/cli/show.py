"""Results as people read them, and the progress bar, which goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from pickglass.app.results import (
    CompareResult,
    DemoWithCloth,
    FitResult,
    InfoResult,
    Metrics,
    PredictResult,
    RobustnessResult,
    TestResult,
    ThresholdResult,
)

__all__ = [
    "progress_bar",
    "show_compare",
    "show_demo",
    "show_fit",
    "show_info",
    "show_predict",
    "show_test",
    "show_threshold",
]

_COLUMNS = {
    "image_auroc": "image AUROC",
    "average_precision": "AP",
    "f1_max": "F1-max",
    "pixel_auroc": "pixel AUROC",
    "aupro_30": "AUPRO@0.3",
    "aupro_05": "AUPRO@0.05",
    "aupimo": "AUPIMO",
    "au_spro_05": "AU-sPRO@0.05",
}
_RARE = {"au_spro_05"}  # no column where no value is


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar with the time left for each stage; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield advance


def _console() -> Console:
    # paths and tables are never cut when the output goes to a file
    return Console(highlight=False, soft_wrap=True) if sys.stdout.isatty() else Console(highlight=False, width=160)


def show_fit(result: FitResult) -> None:
    """One line on what was learned, one on the file."""
    console = _console()
    held = f", {result['n_calibrate']} held back for the threshold" if result["n_calibrate"] else ", no threshold"
    console.print(f"fitted {result['method']} on {result['n_fit']} good images{held} in {result['fit_s']:.1f} s")
    console.print(", ".join(f"{key} {_value(value)}" for key, value in result["details"].items()))
    if result["adaptation"]:
        kept, auroc = result["adaptation"]["kept"], result["adaptation"]["auroc"]
        what = f"epoch {kept} of {len(auroc) - 1} kept" if kept else "left as it was, no epoch was better"
        console.print(
            f"backbone: {what}; cell AUROC on painted defects {auroc[0]:.4f}, then {max(auroc[1:]):.4f} at best"
        )
    if result["suspicious"]:
        named = ", ".join(f"{s['path']} ({s['score']:.1f} sd)" for s in result["suspicious"][:5])
        more = f" and {len(result['suspicious']) - 5} more" if len(result["suspicious"]) > 5 else ""
        verb = "were left out" if result["dropped"] else "were learned from all the same"
        remedy = "" if result["dropped"] else ": look at them, and use --drop-suspicious if they are defective"
        n = len(result["suspicious"])
        console.print(
            f"warning: {n} images look like none of the others and {verb}{remedy}. {named}{more}", markup=False
        )
    if result["auto"] is not None:
        _show_ablation(result["auto"])
    if result["foreground"] is not None:
        share = f"{result['foreground']['share']:.0%}"
        console.print(f"region of interest: found on good images, {share} of the image; nothing is seen outside it")
    console.print(f"model: {result['model']}", markup=False)


def _show_ablation(auto: dict[str, Any]) -> None:
    title = f"chosen on painted defects of {auto['defect_px']:g} px"
    table = Table("part", "best tried", title=title, title_justify="left")
    for name in ("gain", "95 %"):
        table.add_column(name, justify="right")
    table.add_column("taken")
    for part, row in auto["ablation"].items():
        known = row["gain"] is not None
        gain = f"{row['gain']:+.3f} {_COLUMNS[row['metric']]}" if known else "–"
        interval = f"{row['interval'][0]:+.3f} to {row['interval'][1]:+.3f}" if known else "–"
        table.add_row(part, row["best"] or "–", gain, interval, ("yes: " if row["taken"] else "no: ") + row["why"])
    _console().print(table, markup=False)


def show_test(result: TestResult) -> None:
    """The metrics, overall and per type."""
    console = _console()
    table = Table()
    table.add_column("defect type")
    table.add_column("n", justify="right")
    values: dict[str, Any] = dict(result)
    columns = [key for key in _COLUMNS if key not in _RARE or values[key] is not None]
    for key in columns:
        table.add_column(_COLUMNS[key], justify="right")
    for name, metrics in result["by_type"].items():
        table.add_row(name, *_row(metrics, columns))
    table.add_section()
    table.add_row("all", *_row(result, columns))
    console.print(table)
    console.print("F1-max picks its threshold on the test labels: it is optimistic.")
    each = [metrics["au_spro_05"] for metrics in result["by_type"].values() if metrics["au_spro_05"] is not None]
    if len(each) > 1:
        mean = sum(each) / len(each)
        console.print(f"AU-sPRO@0.05 as MVTec LOCO's tables give it, the mean of the types: {mean:.3f}")
    own = {"f1": "F1", "false_alarm_rate": "false alarms", "miss_rate": "missed", "pixel_f1": "pixel F1"}
    known = [f"{name} {values[key]:.3f}" for key, name in own.items() if values[key] is not None]
    if known:
        console.print(f"at the model's own thresholds: {', '.join(known)}")
    for key, (low, high) in (result["intervals"] or {}).items():
        console.print(f"{_COLUMNS.get(key, key)}: 95 % interval {low:.3f} to {high:.3f}")
    console.print(f"{result['images_per_s']:.1f} images/s")
    if result["report"]:
        console.print(f"report: {result['report']}", markup=False)
    if result["robustness"]:
        _show_robustness(result["robustness"])


def _show_robustness(result: RobustnessResult) -> None:
    table = Table(
        "disturbance", "strength in", title="under disturbances, at the model's own threshold", title_justify="left"
    )
    names = {"strength": "strength"} | {key: _COLUMNS[key] for key in ("image_auroc", "aupro_30", "aupro_05")}
    names |= {"false_alarm_rate": "false alarms", "miss_rate": "missed"}
    for name in names.values():
        table.add_column(name, justify="right")
    for one in (result["undisturbed"], *result["disturbed"]):
        values: dict[str, Any] = dict(one)
        numbers = ("–" if values[key] is None else f"{values[key]:.3f}" for key in list(names)[1:])
        kind = "as they are" if one["kind"] == "none" else one["kind"]
        table.add_row(kind, one["unit"], f"{one['strength']:g}", *numbers)
    console = _console()
    console.print(table)
    if result["page"]:
        console.print(f"robustness: {result['page']}", markup=False)


def _row(metrics: Metrics | TestResult, columns: list[str]) -> list[str]:
    values: dict[str, Any] = dict(metrics)
    return [str(values["n"]), *("–" if values[key] is None else f"{values[key]:.3f}" for key in columns)]


def show_compare(result: CompareResult) -> None:
    """A line a model, and where the page is."""
    columns = ["image_auroc", "aupro_30", "aupro_05", "pixel_auroc", "false_alarm_rate", "miss_rate"]
    table = Table("model", *(column.replace("_", " ") for column in columns), "images/s")
    for item in result["models"]:
        table.add_row(item["name"], *_row(item, columns)[1:], f"{item['images_per_s']:.1f}")
    console = _console()
    console.print(table, markup=False)
    if result["report"] is not None:
        console.print(f"report: {result['report']}", markup=False)


def show_predict(result: PredictResult) -> None:
    """A line an image."""
    console = _console()
    typed = any(item["type"] is not None for item in result["results"])
    heads = ["image", "score", "verdict", *(["type"] if typed else []), "p-value (~: beyond the calibration images)"]
    table = Table(*heads, "boxes (x y w h)")
    for item in result["results"]:
        p = item["p_value"]
        rarity = "–" if p is None else f"{'~' if item['p_value_extrapolated'] else ''}{p:.2g}"
        areas = [f" = {area:.3g} mm2" for area in item["areas_mm2"] or []] or [""] * len(item["boxes"])
        boxes = "; ".join(" ".join(map(str, box)) + area for box, area in zip(item["boxes"], areas, strict=True))
        kind = "–" if item["type_probability"] is None else f"{item['type']} ({item['type_probability']:.0%})"
        cells = [item["path"], f"{item['score']:.4g}", item["verdict"] or "–", *([kind] if typed else [])]
        table.add_row(*cells, rarity, boxes)
    console.print(table, markup=False)


def show_threshold(result: ThresholdResult) -> None:
    """The thresholds and the promise in words."""
    console = _console()
    pixel = "–" if result["pixel_threshold"] is None else f"{result['pixel_threshold']:.6g}"
    console.print(f"bad above {result['image_threshold']:.6g}, pixels above {pixel} ({result['promise']})")
    console.print(result["sentence"], markup=False)


def show_info(result: InfoResult) -> None:
    """Key by key, nested ones indented."""
    console = _console()
    console.print(f"{result['kind']}: {result['path']}", markup=False)
    _tree(console, result["about"], 1)


def _tree(console: Console, values: dict[str, Any], depth: int) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            console.print(f"{'  ' * depth}{key}", markup=False)
            _tree(console, value, depth + 1)
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            console.print(f"{'  ' * depth}{key}: {len(value)}", markup=False)
            for item in value[:6]:
                console.print(f"{'  ' * (depth + 1)}{item}", markup=False)
        else:
            console.print(f"{'  ' * depth}{key}: {_value(value)}", markup=False)


def show_demo(result: DemoWithCloth) -> None:
    """Fit, metrics, and where everything is, for the photographs and for the cloth."""
    for title, part in (("photographs of brick, gravel and grass", result), ("woven cloth", result["cloth"])):
        _console().rule(title, align="left")
        show_fit(part["fit"])
        show_test(part["test"])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_value(v) for v in value[:6])
        return shown if len(value) <= 6 else f"{shown}, ... ({len(value)})"
    return "–" if value is None else str(value)
