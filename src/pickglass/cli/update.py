"""``pickglass update``: learn further good images on top of what a model has learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import run
from pickglass.cli.console import say
from pickglass.cli.options import Compute, Folder, Force, Json, ModelFile, Roi, Seed, check_new, check_order
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import MarksUsed, UpdatedImage, UpdateResult

__all__ = ["update"]

_NAMED = 5  # images of a kind that the screen names


def update(
    model: ModelFile,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGES...", help="New good images: files, or folders, each in its own layout."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write this model file; by default MODEL itself.")
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FOLDER",
            help="Good images from before: a method that trains does not forget them, and those that it never learned "
            "say how such parts are judged now. May be given several times.",
        ),
    ] = None,
    bad: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Known bad images, judged before and after and never learned; where one that was found is missed, "
            "MODEL is not replaced. May be given several times.",
        ),
    ] = None,
    marks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Images that were marked: a table (CSV) that a report or the page saved, or the page's own file. Good "
            "ones are learned, bad ones are known bad images, unsure ones are left alone.",
        ),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Look here, too, for marked images that were moved. May be given several times."
        ),
    ] = None,
    calibrate: Annotated[
        float | None,
        typer.Option(
            help="Share of the new images that is held back for the threshold. By default none, and each is judged as "
            "if left out, where the method can do that; otherwise 0.25."
        ),
    ] = None,
    seed: Seed = 0,
    memory_gb: Annotated[float, typer.Option(help="Gigabytes that the method may hold.")] = 4.0,
    drop_suspicious: Annotated[
        bool,
        typer.Option("--drop-suspicious", help="Leave out new images that look like none of the other new ones."),
    ] = False,
    force: Force = False,
    *,
    folder: Folder,
    roi: Roi = None,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Learn further good images on top of what a model has learned, and set its threshold anew with them."""
    images = images or []
    check_order("update", [model], images)
    if root and marks is None:
        raise InputError("--root names where marked images are looked for: it needs --marks")
    if output is not None and output != model:
        check_new(output, force)
    from pickglass.app.marking.images import MarkedImages
    from pickglass.app.update import UpdateRequest
    from pickglass.app.update import update as use_case

    request = UpdateRequest(calibrate, seed, memory_gb, drop_suspicious)
    source = folder.source(images[0], roi, more=images[1:]) if images else None
    marked = None if marks is None else MarkedImages(folder.source(marks, roi), tuple(root or ()))
    before = folder.source(earlier[0], roi, more=earlier[1:]) if earlier else None
    run(
        lambda progress: use_case(
            model,
            source,
            output,
            request,
            earlier=before,
            bad=bad or (),
            marks=marked,
            compute=compute.options(),
            progress=progress,
        ),
        _show,
        as_json,
        wanting=lambda result: bool(result["bad_lost"]),
    )


def _show(result: UpdateResult) -> None:
    beside = {
        "to validate": result["validated"],
        "held back for the threshold": result["held_back"],
        "earlier ones trained on again": result["trained_again"],
        "earlier ones judged": result["earlier_judged"],
    }
    more = "".join(f", {n} {what}" for what, n in beside.items() if n)
    say(f"updated {result['method']} with {result['learned']} new good images{more}")
    if result["known"]:
        say(f"not learned again: {result['known']} images that the model has learned already")
    if result["left_out"]:
        say(
            f"not learned: {result['left_out']} images that an earlier fit left out, for they look like none of its own"
        )
    if result["earlier_unused"]:
        say(f"not used: {result['earlier_unused']} images of --with, for the model has learned what they show")
    _show_odd(result)
    image = _changed(result["image_threshold"], result["image_threshold_before"])
    pixel = _changed(result["pixel_threshold"], result["pixel_threshold_before"])
    say(f"bad above {image}, pixels above {pixel} ({result['promise']})")
    say(result["sentence"])
    _show_marks(result["marks"])
    _show_good(result)
    if result["bad"]:
        n, found, before = len(result["bad"]), result["bad_found"], result["bad_found_before"]
        was = "" if before is None else f" (before: {before})"
        say(f"known bad images: {found} of {n} are found{was}")
        _name("missed", [one for one in result["bad"] if one["verdict"] != "bad"])
    lost = result["bad_lost"]
    if lost:
        say(f"warning: {len(lost)} known bad images were found before and are missed now: {_listed(lost)}")
    if result["model"] is None:
        say("the model was not replaced: look whether a new image shows a defect, or name another file with -o")
        return
    say(f"model: {result['model']}, {result['model_id']}, version {result['model_version']}")


def _show_marks(marks: MarksUsed | None) -> None:
    if marks is None:
        return
    unused = f", {marks['unsure']} unsure, which are left alone" if marks["unsure"] else ""
    say(f"marks: {marks['good']} good, {marks['bad']} bad{unused}")
    if marks["disputed"]:
        say(f"warning: unsure, for people have marked them differently: {_listed(marks['disputed'])}")
    if marks["moved"]:
        say(f"found elsewhere: {_listed([' -> '.join((one['path'], one['now'])) for one in marks['moved']])}")
    if marks["kept_out"]:
        say(f"not learned, for they are marked bad or unsure: {_listed(marks['kept_out'])}")
    if marks["learned_bad"]:
        say(
            f"warning: marked bad, but learned as good by an earlier fit: {_listed(marks['learned_bad'])}. No update "
            "takes that back: fit anew without them"
        )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}"


def _show_good(result: UpdateResult) -> None:
    before, now, n = result["false_alarms_before"], result["false_alarms"], len(result["images"])
    if now is None:
        return
    how = {"left out": "each judged as if left out", "held back": "held back"}
    kinds = {one["judged"] for one in result["images"]}
    said = " and ".join(words for kind, words in how.items() if kind in kinds)
    was = "" if before is None else f"{before} of {n} new images were false alarms before, "
    if result["unlearned"] == n:
        say(f"{was}{now} {'is' if now == 1 else 'are'} now ({said})")
    else:
        unlearned = f"of the {result['unlearned']} that it did not learn ({said}) {result['unlearned_false_alarms']}"
        say(f"{was}{now} {'is' if now == 1 else 'are'} now; {unlearned}")
    _name("false alarms before", [one for one in result["images"] if one["verdict_before"] == "bad"])


def _show_odd(result: UpdateResult) -> None:
    odd = result["suspicious"]
    if odd:
        named = ", ".join(f"{image['path']} ({image['score']:.1f} sd)" for image in odd[:_NAMED])
        verb = "were left out" if result["dropped"] else "were used all the same: look at them"
        say(f"warning: {len(odd)} new images look like none of the other new ones and {verb}. {named}")


def _name(what: str, images: Sequence[UpdatedImage]) -> None:
    if images:
        named = ", ".join(f"{one['path']} ({one['score_before']:.4g} -> {one['score']:.4g})" for one in images[:_NAMED])
        more = f" and {len(images) - _NAMED} more" if len(images) > _NAMED else ""
        say(f"  {what}: {named}{more}")


def _changed(now: float | None, before: float | None) -> str:
    """Write a threshold, and what it was if that was something else."""
    new, old = (f"{value:.6g}" if value is not None else "nothing" for value in (now, before))
    return new if now == before else f"{new} (was {old})" if before is not None else new
