"""``pickglass distill``: a teacher for EfficientAD from any backbone and any photographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pickglass.cli.command import run
from pickglass.cli.console import say
from pickglass.cli.options import Compute, Force, Json, Seed, check_new
from pickglass.cli.types import joined_layers

if TYPE_CHECKING:
    from pickglass.app.results import DistillResult

__all__ = ["distill"]


def distill(
    photos: Annotated[Path, typer.Argument(help="Folder of photographs of anything.")],
    teacher: Annotated[Path, typer.Option("-o", "--output", help="Write this teacher, .safetensors.")],
    backbone: Annotated[str, typer.Option(help="Learn from this backbone.")] = "efficientnet_lite2",
    layers: Annotated[
        str, typer.Option(help="Layers of the backbone, finest first, with 4, 8, 16 ... pixels a cell, joined by +.")
    ] = "blocks.3.0.bn1+blocks.5.0.bn1",
    weights: Annotated[
        str, typer.Option(help="Weights of the backbone: default, random, a pretraining, or a file.")
    ] = "default",
    model: Annotated[
        Literal["tiny", "small", "medium"],
        typer.Option(help="Size of the teacher: small and medium are the paper's, tiny is faster."),
    ] = "small",
    steps: Annotated[int, typer.Option(min=1, help="Train for so many steps (paper: 60000 of 16 images).")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Crops in a step.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of a crop as the teacher sees it, in pixels.")] = 128,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    start: Annotated[Path | None, typer.Option(help="Start from this teacher, as wide or narrower.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Use so many of the photographs.")] = None,
    backbone_licence: Annotated[str, typer.Option(help="Licence of the backbone, for the teacher's card.")] = "",
    photos_licence: Annotated[str, typer.Option(help="Licence of the photographs, for the teacher's card.")] = "",
    seed: Seed = 0,
    force: Force = False,
    *,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Distil a backbone into a small, fast teacher for EfficientAD. A killed run goes on where it was."""
    check_new(teacher, force, resumes=[teacher.with_suffix(".training.safetensors")])
    from pickglass.app.distill import distill as use_case
    from pickglass.features.distillation import DistillSettings

    run(
        lambda progress: use_case(
            photos,
            teacher,
            DistillSettings(
                backbone=backbone,
                layers=list(joined_layers(layers)),
                weights=weights,
                model=model,
                steps=steps,
                batch=batch,
                crop=crop,
                lr=lr,
                start=start,
                seed=seed,
            ),
            limit=limit,
            licences=(backbone_licence, photos_licence),
            compute=compute.options(),
            progress=progress,
        ),
        _show,
        as_json,
    )


def _show(result: DistillResult) -> None:
    share = result["explained_variance"]
    say(f"{result['teacher']}: pdn_{result['model']} after {result['step']} steps, {result['seconds']:.0f} s")
    say(
        f"explains {share['mean']:.0%} of the variance of the channels of {result['backbone']} on "
        f"{result['held_out']} held-out photographs (median {share['median']:.0%}, half of the channels between "
        f"{share['q25']:.0%} and {share['q75']:.0%})"
    )
    say(
        f"use it: pickglass fit DATA -o MODEL.safetensors --method efficientad --backbone pdn_{result['model']} "
        f"--weights {result['teacher']}"
    )
