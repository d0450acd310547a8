"""``pickglass export``: a model as one ONNX file, with a certificate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pickglass.cli.command import run
from pickglass.cli.console import say
from pickglass.cli.options import Folder, Force, Json, ModelFile, Roi, check_new

if TYPE_CHECKING:
    from pickglass.app.results import ExportResult

__all__ = ["certificate_lines", "export"]


def export(
    model: ModelFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="Write this file, .onnx.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with good images for the certificate, e.g. the one the model was fitted on; test images are "
            "not read. Without it the certificate rests on pictures that come with pickglass."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="The file takes so many images at once; by default any number.")
    ] = None,
    input_form: Annotated[
        Literal["float32", "uint8"],
        typer.Option("--input", help="float32: (B, 3, H, W) RGB in 0..1; uint8: (B, H, W, 3) RGB as decoders give it."),
    ] = "float32",
    map_form: Annotated[
        Literal["grid", "full"],
        typer.Option("--map", help="grid: the map on the model's grid; full: enlarged to the canvas, bilinear."),
    ] = "grid",
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="The file takes a region of interest with each image, also if the model needs none."
        ),
    ] = False,
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(
            help="float16: weights and banks stored in half the bytes; int8: convolutions quantised as well, with "
            "ranges from --data."
        ),
    ] = "float32",
    test: Annotated[
        Path | None,
        typer.Option(help="Folder with labelled images: image AUROC and AUPRO of the model and of the file on them."),
    ] = None,
    max_loss: Annotated[
        float, typer.Option(help="Refuse a file that loses more image AUROC or AUPRO on the images of --test.")
    ] = 0.01,
    roi: Roi = None,
    force: Force = False,
    *,
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Write a model as one ONNX file that answers as the model does, which a certificate in it says."""
    check_new(output, force)
    from pickglass.app.export import export as use_case

    source = None if data is None else folder.source(data, roi)
    labelled = None if test is None else folder.source(test, roi)
    run(
        lambda progress: use_case(
            model,
            output,
            source,
            batch=batch,
            input_form=input_form,
            map_form=map_form,
            keep=keep,
            precision=precision,
            test=labelled,
            max_loss=max_loss,
            progress=progress,
        ),
        _show,
        as_json,
    )


def _show(result: ExportResult) -> None:
    h, w = result["canvas"]
    batch = "B" if result["batch"] is None else str(result["batch"])
    image = f"({batch}, 3, {h}, {w}) float32" if result["input"] == "float32" else f"({batch}, {h}, {w}, 3) uint8"
    keep = f", keep ({batch}, {h}, {w}) bool" if result["keep"] else ""
    precision, opset = result["precision"], result["opset"]
    say(f"written: {result['path']} ({result['megabytes']:.1f} MB, {precision}, ONNX opset {opset})")
    say(f"in: image {image}{keep}; out: score ({batch},), map {'(h, w)' if result['map'] == 'grid' else '(H, W)'} each")
    for line in certificate_lines(result["certificate"]):
        say(line)
    if precision != "float32" and result["sentence"] is not None:
        say(f"About the threshold: {result['sentence']}")
    for what in result["missing"]:
        say(f"The file does not have {what}.")


def certificate_lines(certificate: Mapping[str, Any]) -> Iterator[str]:
    """Yield the certificate in sentences."""
    kind = (
        f"{certificate['good']} good images"
        if certificate["images"] == "given"
        else f"{certificate['good']} generated pictures, none of the product (--data names good images)"
    )
    bad = "no threshold" if certificate["bad"] is None else f"{certificate['bad']} judged bad"
    yield f"Certificate: {kind}, and {certificate['painted']} with painted defects, {bad}; compared with torch:"
    for name, figures in certificate["runtimes"].items():
        rank = figures["rank_correlation"]
        ties = f" ({figures['at_threshold']} more lie on the threshold)" if figures["at_threshold"] else ""
        yield (
            f"  {name} {figures['version']}: scores differ by at most {figures['score_difference']:.1e}, maps by "
            f"{figures['map_difference']:.1e} of their range, {figures['flips']} verdicts flip{ties}, rank correlation "
            f"{'unknown' if rank is None else f'{rank:.6f}'}"
        )
    if certificate.get("thresholds") == "file":
        yield "  The thresholds were set anew, by the file's own scores of the images that set those of the model."
    accuracy = certificate.get("accuracy")
    if accuracy is not None:
        yield f"  On {accuracy['images']} labelled images, of the model and of the file ({_sides(accuracy)})."


def _sides(accuracy: Mapping[str, Any]) -> str:
    """List image AUROC and AUPRO of torch and of each runtime."""
    from pickglass.metrics.catalogue import METRICS

    parts = []
    for key in accuracy["loss"]:
        sides = [f"{name} {own[key]:.4f}" for name, own in accuracy.items() if isinstance(own, dict) and name != "loss"]
        parts.append(f"{METRICS[key].label}: {', '.join(sides)}")
    return "; ".join(parts)
