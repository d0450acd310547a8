"""``pickglass test``: metrics and a report of one model, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import run
from pickglass.cli.console import print_metrics, print_table, say
from pickglass.cli.options import Compute, Folder, Json, Place, check_order
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import CompareResult, RobustnessResult, TestResult

__all__ = ["show_test", "test"]


def test(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Model file, or several to compare.")],
    data: Annotated[Path, typer.Argument(help="Folder with test images.")],
    report: Annotated[Path | None, typer.Option("-o", "--output", help="Write this HTML report.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write scores, maps, truth and curves to this .npz file.")] = None,
    intervals: Annotated[
        int, typer.Option(min=0, help="Bootstrap so many times for 95 % intervals, e.g. 1000; 0: no intervals.")
    ] = 0,
    robustness: Annotated[
        Path | None,
        typer.Option(
            help="Write an HTML page on the metrics under light, blur, noise, JPEG, shift and turn; takes 29 times as "
            "long."
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Show so many images on the page that compares several models.")
    ] = 10,
    *,
    folder: Folder,
    place: Place,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Judge a model on test images: metrics and a report. Several models: the same images side by side."""
    check_order("test", models, [data])
    if len(models) > 1:
        if intervals or robustness is not None:
            raise InputError("--intervals and --robustness judge one model: leave them out, or name one model")
        from pickglass.app.testing.compare import compare

        run(
            lambda progress: compare(
                models,
                place.source(data, folder),
                report,
                save=save,
                images=images,
                compute=compute.options(),
                progress=progress,
            ),
            _show_compare,
            as_json,
        )
        return
    from pickglass.app.testing.test import test as use_case

    run(
        lambda progress: use_case(
            models[0],
            place.source(data, folder),
            report,
            save=save,
            intervals=intervals,
            robustness=robustness,
            compute=compute.options(),
            progress=progress,
        ),
        show_test,
        as_json,
    )


def show_test(result: TestResult) -> None:
    """Print the metrics overall and by defect type, what the threshold does, and where the report is."""
    from pickglass.metrics.catalogue import METRICS, WITH_THRESHOLD, WITHOUT_THRESHOLD

    say(result["verdict"])
    sets = {**result["by_type"], "all": result}
    print_metrics("defect type", sets, ("miss_rate", *WITHOUT_THRESHOLD))
    say(f"the other figures of a type compare it with all good images ({result['n_good']})")
    say(f"F1-max: {METRICS['f1_max'].remark}")
    each = [metrics["au_spro_05"] for metrics in result["by_type"].values() if metrics["au_spro_05"] is not None]
    if len(each) > 1:
        label = METRICS["au_spro_05"].label
        say(f"{label} as MVTec LOCO's tables give it, the mean of the types: {sum(each) / len(each):.3f}")
    if result["intervals"]:
        for key, (low, high) in result["intervals"].items():
            if key in METRICS:
                say(f"{METRICS[key].label}: 95 % interval {low:.3f} to {high:.3f}")
    texts = {key: METRICS[key].cell(result) for key in WITH_THRESHOLD}
    known = [f"{METRICS[key].label} {text}" for key, text in texts.items() if text is not None]
    if known:
        say(f"at the model's own thresholds: {', '.join(known)}")
    _show_left_out(result["left_out"])
    for note in result["notes"]:
        say(note)
    for step in result["next"]:
        say(f"next: {step['text']}" + ("" if step["command"] is None else f"\n  {step['command']}"))
    say(f"{result['images_per_s']:.1f} images/s")
    if result["report"] is not None:
        say(f"report: {result['report']}")
    if result["robustness"]:
        _show_robustness(result["robustness"])


def _show_left_out(left_out: dict[str, int]) -> None:
    from pickglass.app.testing.selection import sentences

    for sentence in sentences(left_out):
        say(sentence)


def _show_robustness(result: RobustnessResult) -> None:
    from pickglass.metrics.catalogue import shown

    conditions = (result["undisturbed"], *result["disturbed"])
    rates = ("false_alarm_rate", "miss_rate", "unsure_good_rate", "unsure_defective_rate")
    metrics = shown(("image_auroc", "aupro_30", "aupro_05", *rates), conditions)
    rows = []
    for condition in conditions:
        kind = "as they are" if condition["kind"] == "none" else condition["kind"]
        cells = [metric.text(condition[metric.key]) or "–" for metric in metrics]  # type: ignore[literal-required]
        rows.append([kind, condition["unit"], f"{condition['strength']:g}", *cells])
    heads = ["disturbance", "strength in", "strength", *(metric.short for metric in metrics)]
    print_table(heads, rows, text=("strength in",), title="under disturbances, at the model's own threshold")
    if result["page"]:
        say(f"robustness: {result['page']}")


def _show_compare(result: CompareResult) -> None:
    rates = ("false_alarm_rate", "miss_rate", "unsure_good_rate", "unsure_defective_rate")
    keys = ("image_auroc", "aupro_30", "aupro_05", "pixel_auroc", *rates, "images_per_s")
    print_metrics("model", {item["name"]: item for item in result["models"]}, keys)
    _show_left_out(result["left_out"])
    if result["report"] is not None:
        say(f"report: {result['report']}")
