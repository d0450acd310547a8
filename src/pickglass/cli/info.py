"""``pickglass info``: a model file or a folder of images, described in sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pickglass.cli.command import run
from pickglass.cli.console import plain, say
from pickglass.cli.export import certificate_lines
from pickglass.cli.options import Folder, Json, MaxPixels
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import InfoResult

__all__ = ["PROBLEMS", "info"]

_EXAMPLES = 5

PROBLEMS = {
    "unreadable": "cannot be read",
    "masks_unusable": "masks cannot be used",
    "masks_soft": "masks have soft edges or the noise of JPEG, and are cut at half of their highest value",
    "masks_mark_most": "masks mark more than half of their image: are they inverted? The defect has to be above 0",
    "masks_empty": "defective images have a mask that marks nothing",
    "good_with_mask": "good images have a mask that marks a defect",
    "no_mask": "defective images have no mask, while others have one",
    "defective_equals_good": "defective images are the same as a good one, pixel by pixel",
    "in_two_roles": "test images are the same as a training image, pixel by pixel",
    "duplicates": "images occur twice",
    "group_in_two_roles": "parts or rolls are both in training and in the test",
    "training_in_two_kinds": "properties divide the training images into two kinds",
    "unlike_training": "test images look like another product or set-up",
    "defective_unlike_training": "defective images look unlike the training images, as a large defect does too",
}
"""Problem, as :func:`pickglass.data.find_problems` names it -> the words after its number."""


def info(
    path: Annotated[Path | None, typer.Argument(help="Model file, exported file, or folder of images.")] = None,
    layouts: Annotated[
        bool, typer.Option("--layouts", help="List the layouts of data sets that are known, with the expected tree.")
    ] = False,
    *,
    folder: Folder,
    workers: Annotated[int, typer.Option(min=1, help="Decode images in so many threads.")] = 2,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Describe a model file, an exported one, or a folder of images and what is wrong with it."""
    from pickglass.app.info import info as use_case
    from pickglass.data import MAX_PIXELS

    if layouts:
        _show_layouts(as_json)
        return
    if path is None:
        raise InputError("no PATH: expected a model file or a folder of images, or --layouts")
    source = folder.source(path)
    run(lambda progress: use_case(source, workers=workers, max_pixels=max_pixels or MAX_PIXELS), _show, as_json)


def _show_layouts(as_json: bool) -> None:
    from pickglass.data import LAYOUTS

    if as_json:
        typer.echo(json.dumps({name: {"tree": known.tree, "sets": known.sets} for name, known in LAYOUTS.items()}))
        return
    for name, known in LAYOUTS.items():
        say(f"{name}: {known.sets}")
        for part in known.tree.split("  "):
            say(f"    {part}")
    say("A layout is recognised by its tree, in this order; --layout NAME reads a folder in one of them.")


def _show(result: InfoResult) -> None:
    from pickglass.data import Account

    about = result["about"]
    if result["kind"] == "model":
        lines = [*_model(result["path"], about)]
    elif result["kind"] == "export":
        lines = [*_export(result["path"], about)]
    elif "layout" in about and "images" in about:
        lines = [*_data(about)]
    else:
        lines = [f"{result['path']} holds {len(about)} data sets."]
        for described in about.values():
            lines += ["", *_data(described)]
        if result["beside"] and result["beside"]["files"]:
            lines += ["", "Beside them:", *Account.from_json(result["beside"]).sentences()]
    for line in lines:
        say(line)


# -- a model -----------------------------------------------------------------------------------------------------------


def _model(path: str, header: Mapping[str, Any]) -> Iterator[str]:
    settings, provenance = dict(header["configuration"]), header["provenance"]
    fitted = str(provenance.get("fitted", ""))[:10]
    data = f" of {provenance['data']!r}" if provenance.get("data") else ""
    yield f"{path} is a model of the method {header['method']}."
    yield (
        f"It was fitted{f' on {fitted}' if fitted else ''} on {provenance.get('n_fit', '?')} good images{data}, in "
        f"{plain(provenance.get('fit_s'))} s; {_beside(header)}{provenance.get('n_validate', 0)} validated it."
    )
    weights = provenance.get("backbone_weights") or {}
    named = f", weights {weights['name']}" if weights.get("name") else ""
    if weights.get("sha256") or weights.get("licence"):
        named += f" (licence {weights.get('licence') or 'not known'})"
    layers = settings.pop("layers")
    layers = layers if isinstance(layers, str) else "+".join(layers or ())
    read = f"{layers or 'what each of its methods reads'} of {settings.pop('backbone')}{named}"
    size, canvas = settings.pop("size"), header["preprocess"]["size"]
    nearest = f", of which {canvas[0]}x{canvas[1]} is the nearest that fits" if _differ(size, canvas) else ""
    yield f"It reads {read}, at an input of {plain(size)} pixels{nearest}."
    if provenance.get("engine") == "bfloat16":
        yield (
            "Its networks were computed in bfloat16. They judge in it, too, where the machine has it and --engine "
            "names nothing else."
        )
    settings.pop("weights", None)
    for part in ("tiling", "fusion", "adaptation"):
        values = settings.pop(part, None)
        if values:
            yield f"With {part}: {_listed(values)}."
    yield f"Settings: {_listed(settings)}."
    yield from _threshold(header["calibration"])
    yield from _history(header)
    if provenance.get("regions", "none") != "none" or provenance.get("margins"):
        yield "It looks only inside a region of interest."
    if provenance.get("pixel_mm"):
        yield f"A pixel is {provenance['pixel_mm']:g} mm wide on the part."
    if known := provenance.get("known_defects"):
        from pickglass.app.known_defects import about_defects, defects_told

        unsure = (header["calibration"] or {}).get("unsure_threshold")
        about = about_defects(known)
        yield f"Known defects: {defects_told(about, unsure)}. They are {_some(about['names'])}."
    odd = provenance.get("suspicious") or []
    if odd:
        yield f"{len(odd)} training images look like none of the others: {_some([image['path'] for image in odd])}."
    if header.get("naming"):
        yield "It names defects: 'pickglass predict' shows their types."
    versions = provenance.get("versions") or {}
    if versions:
        yield f"It was made with {', '.join(f'{name} {version}' for name, version in versions.items())}."
    yield "Everything else: --json."


def _export(path: str, header: Mapping[str, Any]) -> Iterator[str]:
    h, w = header["canvas"]
    image = f"(B, 3, {h}, {w}) float32, RGB in 0..1" if header["input"] == "float32" else f"(B, {h}, {w}, 3) uint8, RGB"
    yield f"{path} is a model of the method {header['method']}, exported by pickglass {header['pickglass']}."
    yield f"It reads {image}{', and keep, what counts of the canvas' if header['keep'] else ''}."
    yield f"It takes {'any number of' if header['batch'] is None else header['batch']} images at once."
    if header.get("precision", "float32") != "float32":
        yield f"Its precision is {header['precision']}."
    weights = header["provenance"].get("backbone_weights") or {}
    if weights.get("name"):
        licence = weights.get("licence") or "not known"
        yield f"Its backbone is {header['configuration']['backbone']}, weights {weights['name']} (licence {licence})."
    yield from _threshold(header["calibration"])
    yield from certificate_lines(header["certificate"])
    yield "Everything else: --json."


def _differ(size: Any, canvas: Sequence[int]) -> bool:
    """Say whether a size in pixels that was asked for is not that of the canvas."""
    asked = [size, size] if isinstance(size, int) else size
    return isinstance(asked, list) and asked != list(canvas)


def _beside(header: Mapping[str, Any]) -> str:
    """Say which images set the threshold."""
    if (header["calibration"] or {}).get("source") == "updated":
        return "those of later updates are among them; "
    more = header["provenance"].get("n_calibrate", 0)
    if not more and (header["calibration"] or {}).get("source") == "left out":
        return "each judged as if left out, they set its threshold; "
    return f"{more} more set its threshold, "


def _threshold(calibration: Mapping[str, Any] | None) -> Iterator[str]:
    limit = None if calibration is None else calibration["image_threshold"]
    if calibration is None or limit is None:
        yield "It has no threshold and gives no verdicts: 'pickglass threshold MODEL DATA' sets one."
        return
    pixel = calibration["pixel_threshold"]
    beside = "" if pixel is None else f", and a pixel is defective above {pixel:.6g}"
    lower = calibration.get("unsure_threshold")
    between = "" if lower is None else f", unsure above {lower:.6g} and up to it"
    yield f"An image is bad above a score of {limit:.6g}{between}{beside}."
    if calibration.get("sentence"):
        yield f"About the threshold: {calibration['sentence']}"
    else:
        yield "The threshold is the highest score of images that were held back; no false-alarm rate is promised."
    if calibration.get("stale"):
        yield "Settings were changed since: run 'pickglass threshold MODEL DATA' again."


def _history(header: Mapping[str, Any]) -> Iterator[str]:
    """Tell the model's id and version, and what changed its thresholds, if the file has that."""
    if "id" not in header:
        yield "It has no id and no history: an older pickglass wrote it."
        return
    history: list[dict[str, Any]] = header.get("history", [])
    yield f"Its id is {header['id']}, version {header['version']}{':' if history else '.'}"
    for change in history:
        yield f"  {change['time'].replace('T', ' ')[:16]} UTC: {change['command']}, {'; '.join(_steps(change))}"


def _steps(change: Mapping[str, Any]) -> Iterator[str]:
    if change.get("learned"):
        yield f"{change['learned']} images learned"
    same = True
    for what in ("image", "unsure", "pixel"):
        now, before = change.get(f"{what}_threshold"), change.get(f"{what}_threshold_before")
        if now != before:
            same = False
            yield f"{what} threshold {_number(before)} -> {_number(now)}"
    if same:
        yield "thresholds as before" if change["promise"] else "no threshold"
    if change["promise"]:
        yield f"{change['promise']}, from {change['n']} good images or groups"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {'None' if value is None else plain(value)}" for name, value in values.items())


# -- a data set --------------------------------------------------------------------------------------------------------


def _data(about: Mapping[str, Any]) -> Iterator[str]:
    n = about["images"]
    yield f"{about['name']} is a data set of {n} images in the layout {about['layout']} ({about['root']})."
    roles = ", ".join(f"{count} {'for the test' if role == 'test' else role}" for role, count in about["roles"].items())
    types = ", ".join(f"{count} {kind}" for kind, count in about["types"].items())
    yield f"By role: {roles}. By type: {types}."
    groups = f"The images belong to {about['groups']} groups" if about["groups"] else "The images have no groups"
    yield f"{groups}; {about['masks'] or 'none'} of them {'has' if about['masks'] == 1 else 'have'} a mask."
    if about["boxes"]:
        yield f"{about['boxes']} have boxes and no mask: they count for images, not for pixel metrics."
    if about["private"]:
        yield f"{about['private']} more images have no published truth: 'pickglass predict' judges them."
    yield from _sizes(about)
    from pickglass.data import Account

    account = Account.from_json(about["account"])
    yield from account.sentences()
    for failure in about["failed"][:_EXAMPLES]:
        yield f"Cannot be read: {failure['path']}: {failure['error']}"
    problems = about["problems"]
    if not problems and account.warning("") is None:
        yield "Nothing looks wrong with it."
    for key, examples in problems.items():
        yield f"{len(examples)} {PROBLEMS[key]}:"
        yield from (f"  {example}" for example in examples[:_EXAMPLES])
        if len(examples) > _EXAMPLES:
            yield f"  and {len(examples) - _EXAMPLES} more, see --json"


def _sizes(about: Mapping[str, Any]) -> Iterator[str]:
    sizes, modes = about["sizes"], " and ".join(about["modes"])
    smallest, largest = sizes["smallest"], sizes["largest"]
    if smallest is None:
        return
    if smallest == largest:
        yield f"All are {smallest[0]}x{smallest[1]} pixels (height x width), {modes}."
        return
    (commonest, count), *_ = sizes["commonest"].items()
    yield (
        f"They are from {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]} pixels (height x width), most often "
        f"{commonest} ({count}), {modes}."
    )


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_EXAMPLES]) + (f" and {len(paths) - _EXAMPLES} more" if len(paths) > _EXAMPLES else "")
