"""``pickglass fit``: from good images to a model file, or from a root of many categories to a folder of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pickglass.app.checkpoints import checkpoints_of
from pickglass.cli.command import run
from pickglass.cli.console import plain, print_table, say
from pickglass.cli.options import Cluster, Compute, Download, Folder, Force, Json, Seed, check_new, let_download
from pickglass.cli.types import input_size, joined_layers, setting, sides
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import FitManyResult, FitResult

__all__ = ["fit", "show_fit"]


@dataclass(frozen=True)
class Choice:
    """Which detector to fit."""

    method: Annotated[
        str | None,
        typer.Option(
            help="Method, patchcore by default; 'pickglass methods' lists them. Several judge together on one backbone "
            "pass: patchcore+fastflow."
        ),
    ] = None
    backbone: Annotated[
        str | None, typer.Option(help="Backbone, e.g. efficientnet_lite0; 'pickglass layers --list' lists them.")
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers that the detector reads, finest first, e.g. stage3+stage5; by default those of the backbone."
        ),
    ] = None
    weights: Annotated[
        str | None, typer.Option(help="Weights of the backbone: default, random, a pretraining, or a file.")
    ] = None
    size: Annotated[
        str | None,
        typer.Option(
            help="Input of the network in pixels: area:512 keeps the aspect (the default), 256 or HxW squeezes; "
            "letterbox:256, shorter:256, native."
        ),
    ] = None
    tile: Annotated[
        str | None, typer.Option(help="Cut the input into tiles of 256 or HxW pixels, each position judged on its own.")
    ] = None
    stride: Annotated[str | None, typer.Option(help="Pixels from one tile to the next, by default half a tile.")] = None
    fuse: Annotated[
        str | None,
        typer.Option(
            help="Fuse the layers: concat, pyramid, bilinear or attention. separate: learn and judge each by itself, "
            "and average what they say."
        ),
    ] = None
    adapt: Annotated[
        str | None, typer.Option(help="First fine-tune these stages on painted defects, e.g. stage3+stage4.")
    ] = None
    preset: Annotated[
        str | None, typer.Option(help="Settings by name: paper, quick, or auto, which chooses on painted defects.")
    ] = None
    defect_px: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH[xWIDTH]",
            help="Extent of the smallest defect in pixels of your images, with --preset auto; 150x6 if it is slim.",
        ),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting that 'pickglass methods NAME' lists, e.g. ratio=0.1; also tiling.heads=1, "
            "fusion.normalise=whiten, and padim.dims=50 where several methods judge together.",
        ),
    ] = None


def fit(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="Folder with good images, or several, each in its own layout, for one model; or a root of many "
            "categories.",
        ),
    ],
    model: Annotated[
        Path,
        typer.Option("-o", "--output", help="Write this model file, .safetensors; a folder where DATA is a root."),
    ],
    *,
    choice: Choice,
    validate: Annotated[
        float | None, typer.Option(help="Share of the images for validation; by default what the method wants.")
    ] = None,
    calibrate: Annotated[
        float | None,
        typer.Option(
            help="Share of the images that is held back for the threshold; 0: no threshold, no verdicts. By default "
            "none, and each image is judged as if left out, where the method can do that; otherwise 0.1."
        ),
    ] = None,
    seed: Seed = 0,
    folder: Folder,
    roi: Annotated[
        str | None,
        typer.Option(
            help="Look only here: a mask for all images, a folder with a mask for each image, or auto, which finds "
            "the part on the good images."
        ),
    ] = None,
    pixel_mm: Annotated[float | None, typer.Option(help="The side of a pixel on the part, in millimetres.")] = None,
    drop_suspicious: Annotated[
        bool, typer.Option("--drop-suspicious", help="Leave out training images that look like none of the others.")
    ] = False,
    force: Force = False,
    compute: Compute,
    download: Download = False,
    cluster: Cluster,
    defects: Annotated[
        Path | None,
        typer.Option(
            help="Folder of known defects: supersimplenet learns from them, for other methods they set what is unsure."
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Fit so many categories of a root at once; on Ray as many as there is room for."),
    ] = None,
    memory_gb: Annotated[float, typer.Option(help="Gigabytes that the method may hold.")] = 4.0,
    as_json: Json = False,
) -> None:
    """Learn from good images and write a model file; from a root of many categories, a folder of models."""
    check_new(model, force, resumes=checkpoints_of(model))
    let_download(download)
    settings, parts = _settings(choice)
    from pickglass.app.advise.request import parse_extent
    from pickglass.app.fit import FitRequest
    from pickglass.app.fit import fit as use_case
    from pickglass.app.fit_many import fit_many, is_root

    length, width = (None, None) if choice.defect_px is None else parse_extent(choice.defect_px)
    request = FitRequest(
        method=choice.method,
        preset=choice.preset,
        defect_px=length,
        defect_width_px=width,
        settings=settings,
        **parts,
        validate=validate,
        calibrate=calibrate,
        seed=seed,
        memory_gb=memory_gb,
        drop_suspicious=drop_suspicious,
        defects=defects,
    )
    first, *more = data
    source = folder.source(first, roi, pixel_mm, more)
    if model.suffix == ".safetensors" or more or not is_root(source):
        run(
            lambda progress: use_case(source, model, request, compute=compute.options(), progress=progress),
            show_fit,
            as_json,
        )
        return
    at_once = parallel or (compute.workers if cluster.executor == "local" else None)
    where = cluster.where(at_once, memory_gb)
    run(
        lambda progress: fit_many(
            source, model, request, again=force, where=where, compute=compute.options(), progress=progress
        ),
        _show_many,
        as_json,
    )


def _settings(choice: Choice) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the method that were given, and those of its parts, None for a part that is not used."""
    given: dict[str, Any] = {
        "backbone": choice.backbone,
        "layers": None if choice.layers is None else joined_layers(choice.layers),
        "weights": choice.weights,
        "size": None if choice.size is None else input_size(choice.size),
    }
    settings = {key: value for key, value in given.items() if value is not None}
    settings.update(setting(text) for text in choice.settings or [])
    tiling, fusion, adaptation = (_taken(settings, part) for part in ("tiling", "fusion", "adaptation"))
    for name, text in (("tile", choice.tile), ("stride", choice.stride)):
        if text is not None:
            tiling[name] = sides(f"--{name}", text)
    if fusion and choice.fuse is None:
        raise InputError(f"--set fusion.{next(iter(fusion))} belongs to --fuse: give that too, e.g. --fuse concat")
    if adaptation and choice.adapt is None:
        raise InputError(f"--set adaptation.{next(iter(adaptation))} belongs to --adapt: give that too, e.g. stage3")
    return settings, {
        "tiling": tiling or None,
        "fusion": None if choice.fuse is None else {"kind": choice.fuse, **fusion},
        "adaptation": None
        if choice.adapt is None
        else {"stages": joined_layers(choice.adapt, "--adapt"), **adaptation},
    }


def _taken(settings: dict[str, Any], part: str) -> dict[str, Any]:
    """Take the settings of a part, e.g. ``tiling.heads``, out of those of the method."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): settings.pop(name) for name in list(settings) if name.startswith(prefix)}


def show_fit(result: FitResult) -> None:
    """Print what was learned, what is odd about the images, and where the model is."""
    held = f", {result['n_calibrate']} held back for the threshold" if result["n_calibrate"] else ""
    held = ", no threshold" if result["image_threshold"] is None else held
    say(f"fitted {result['method']} on {result['n_fit']} good images{held} in {result['fit_s']:.1f} s")
    if result["image_threshold"] is not None:
        say(f"threshold {result['image_threshold']:.4g}: {result['threshold_sentence']}")
        promise = "marginal" if result["n_calibrate"] else "estimate"
        say(f"for fewer false alarms: pickglass threshold MODEL DATA --promise {promise} --false-alarm 0.01")
    elif result["n_fit"] == 1:
        say("one good image sets no threshold: nothing is known of how good parts differ; give 20 or more")
    if result["known_defects"] is not None:
        from pickglass.app.known_defects import defects_told

        say(f"known defects: {defects_told(result['known_defects'], result['unsure_threshold'])}")
    if result["layers_chosen"] != "user":
        chosen = "its usual layers" if result["layers_chosen"] == "table" else "chosen by their strides"
        more = f"--layers names others, pickglass layers {result['backbone']} shows them"
        say(f"read {'+'.join(result['layers'])} of {result['backbone']}, {chosen}; {more}")
    if str(result["size"]).startswith("area:"):
        height, width = result["canvas"]
        say(f"images are read at {height}x{width} pixels (height x width), at their usual aspect; --size 256 squeezes")
    _show_details(result["details"])
    if result["adaptation"]:
        kept, auroc = result["adaptation"]["kept"], result["adaptation"]["auroc"]
        what = f"epoch {kept} of {len(auroc) - 1} kept" if kept else "left as it was, no epoch was better"
        say(f"backbone: {what}; cell AUROC on painted defects {auroc[0]:.4f}, then {max(auroc[1:]):.4f} at best")
    _show_suspicious(result)
    if result["auto"] is not None:
        _show_ablation(result["auto"])
    if result["foreground"] is not None:
        share = f"{result['foreground']['share']:.0%}"
        say(f"region of interest: found on good images, {share} of the image; nothing is seen outside it")
    say(f"model: {result['model']}")


def _show_details(details: dict[str, Any], of: str = "") -> None:
    """Print what a method tells of its fit, and whether places and the level of its maps matter."""
    own = {key: value for key, value in details.items() if key != "training" and not isinstance(value, dict)}
    if own:
        say(of + ", ".join(f"{key.replace('_', ' ')} {plain(value)}" for key, value in own.items()))
    for phase in details.get("training", []):
        say(of + _trained(phase))
    places, level = details.get("places"), details.get("level")
    if places and places["used"]:
        say(
            f"{of}the place explains {places['explained']:.0%} of how good maps vary, so each place is compared with "
            "what is usual there (--set place_scale=false: not)"
        )
    if level and level["used"]:
        say(
            f"{of}the level of the whole map explains {level['explained']:.0%} of how scores of one good part vary, "
            "and is taken out of them (--set level_shift=false: not)"
        )
    for name in details.get("scale", {}):  # several methods
        _show_details({**details[name], **details.get("components", {}).get(name, {})}, f"{name}: ")


def _trained(phase: dict[str, Any]) -> str:
    """Say how long a phase of a training took, and which of its epochs was kept."""
    epochs, picked = len(phase["train"]), sorted(set(phase["picked"]))
    text = f"trained the {phase['phase']}: {epochs} epoch{'s' * (epochs != 1)} in {phase['seconds']:.0f} s"
    if phase["validation"] and picked and picked != [epochs]:
        which = f"epoch {picked[0]}" if len(picked) == 1 else f"epochs {picked[0]} to {picked[-1]}, by position,"
        text += f"; {which} kept, which held-back images fit best"
    return text


def _show_suspicious(result: FitResult) -> None:
    odd = result["suspicious"]
    if odd:
        named = ", ".join(f"{image['path']} ({image['score']:.1f} sd)" for image in odd[:5])
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        verb = "were left out" if result["dropped"] else "were used all the same, to learn from or for the threshold"
        remedy = "" if result["dropped"] else ": look at them, and use --drop-suspicious if they are defective"
        say(f"warning: {len(odd)} images look like none of the others and {verb}{remedy}. {named}{more}")


def _show_ablation(auto: dict[str, Any]) -> None:
    from pickglass.metrics.catalogue import METRICS

    rows = []
    for part, row in auto["ablation"].items():
        known = row["gain"] is not None
        gain = f"{row['gain']:+.3f} {METRICS[row['metric']].short}" if known else "–"
        interval = f"{row['interval'][0]:+.3f} to {row['interval'][1]:+.3f}" if known else "–"
        rows.append([part, row["best"] or "–", gain, interval, ("yes: " if row["taken"] else "no: ") + row["why"]])
    title = f"chosen on painted defects of {auto['defect_px']:g} px"
    print_table(["part", "best tried", "gain", "95 %", "taken"], rows, text=("best tried", "taken"), title=title)


def _show_many(result: FitManyResult) -> None:
    rows = []
    for row in result["categories"]:
        fit = row["fit"]
        numbers = ["–", "–"] if fit is None else [str(fit["n_fit"]), f"{fit['fit_s']:.1f}"]
        rows.append([row["category"], row["state"], *numbers, row["error"] or row["model"]])
    last = "model, or what went wrong"
    print_table(["category", "state", "images", "seconds", last], rows, text=("state", last))
    states = ", ".join(f"{result[name]} {name}" for name in ("done", "skipped", "failed"))
    say(f"{len(result['categories'])} categories: {states}")
    if result["skipped"]:
        say("skipped: the model was there; --force fits it again")
