"""``pickglass predict``: score, verdict and boxes of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import Progress, run
from pickglass.cli.console import percent, print_table
from pickglass.cli.options import AnyModelFile, Cluster, Compute, Json, Place, check_order
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import DefectResult, ImageResult, PredictResult

__all__ = ["predict"]


def predict(
    model: AnyModelFile,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Images, or folders of them.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write heat maps, masks, results.csv (a row an image) and defects.csv (a row a defect) to this "
            "folder.",
        ),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            help="Write maps and masks of the private images of a category of MVTec AD 2 to this folder, as the "
            "evaluation server wants them; IMAGES is the category's folder."
        ),
    ] = None,
    fail_on_bad: Annotated[
        bool, typer.Option("--fail-on-bad", help="Exit with code 1 if any image is judged bad, or unsure.")
    ] = False,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Judge in so many processes of this machine; on Ray in as many as there is room for."),
    ] = None,
    memory_gb: Annotated[float, typer.Option(help="Gigabytes that a Ray task needs.")] = 4.0,
    *,
    place: Place,
    cluster: Cluster,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Judge images: score, verdict and boxes of the defects. Nothing is written without -o."""
    check_order("predict", [model], images)
    from pickglass.app.predict import predict as use_case

    where = cluster.where(parallel, memory_gb)
    apart = parallel is not None or cluster != Cluster()  # what belongs to Ray alone is refused where it is made

    def judged(progress: Progress | None) -> PredictResult:
        result = use_case(
            model,
            images,
            out,
            submission=submission,
            roi=place.roi,
            pixel_mm=place.pixel_mm,
            where=where if apart else None,
            compute=compute.options(),
            progress=progress,
        )
        if fail_on_bad and result["threshold"] is None:
            raise InputError(
                f"--fail-on-bad, but {model} has no threshold and calls no image bad: "
                "'pickglass threshold MODEL DATA' sets one"
            )
        return result

    run(
        judged,
        _show,
        as_json,
        wanting=lambda result: fail_on_bad and any(item["verdict"] != "good" for item in result["results"]),
        notes=_notes,
    )


def _notes(result: PredictResult) -> list[str]:
    notes = [_STALE] if result["stale"] else []
    if result["runtime"] is not None:
        notes.append(f"run by {result['runtime']}")
    return notes


_STALE = "the settings were changed after the threshold was set: run 'pickglass threshold MODEL DATA' again"


def _show(result: PredictResult) -> None:
    if not result["results"]:
        return
    typed = any(item["type"] is not None for item in result["results"])
    heads = ["image", "score", "verdict", *(["type"] if typed else []), "p", "boxes (x y w h)"]
    rows = [_cells(item, typed) for item in result["results"]]
    print_table(heads, rows, text=("verdict", "type", "boxes (x y w h)"))
    if any(item["p_value"] is not None for item in result["results"]):
        typer.echo("p: share of good images with such a score or a higher one; ~: beyond all calibration images")


def _cells(item: ImageResult, typed: bool) -> list[str]:
    p = item["p_value"]
    rarity = "–" if p is None else f"{'~' if item['p_value_extrapolated'] else ''}{p:.2g}"
    boxes = "; ".join(_box(defect) for defect in item["defects"])
    probability = item["type_probability"]
    kind = "–" if probability is None else f"{item['type']} ({percent(round(probability, 2))})"
    return [
        item["path"],
        f"{item['score']:.4g}",
        item["verdict"] or "–",
        *([kind] if typed else []),
        rarity,
        boxes,
    ]


def _box(defect: DefectResult) -> str:
    area = "" if defect["area_mm2"] is None else f" = {defect['area_mm2']:.3g} mm2"
    return " ".join(map(str, defect["box"])) + area
