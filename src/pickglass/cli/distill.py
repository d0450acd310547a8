"""``pickglass distill``: a teacher for EfficientAD from any backbone and any photographs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.options import (
    MAX_PIXELS,
    Device,
    EngineName,
    EngineOption,
    Json,
    MaxPixels,
    Workers,
    print_json,
)

if TYPE_CHECKING:
    from pickglass.app.results import DistillResult

__all__ = ["distill"]


class ModelOption(str, Enum):
    """The size of a patch description network."""

    tiny = "tiny"
    small = "small"
    medium = "medium"


def distill(
    photos: Annotated[Path, typer.Argument(help="Folder of photographs of anything.")],
    teacher: Annotated[Path, typer.Option("-o", "--output", help="Teacher to write, .safetensors.")],
    backbone: Annotated[str, typer.Option(help="Backbone to learn from.")] = "efficientnet_lite2",
    layers: Annotated[str, typer.Option(help="Layers of it, finest first, of 4, 8, 16 ... pixels a cell.")] = (
        "blocks.3.0.bn1+blocks.5.0.bn1"
    ),
    weights: Annotated[str, typer.Option(help="default, random, the name of a pretraining, or a file.")] = "default",
    model: Annotated[ModelOption, typer.Option(help="tiny is ours, small and medium are the paper's.")] = (
        ModelOption.small
    ),
    steps: Annotated[int, typer.Option(min=1, help="Of training (paper: 60000 of 16 images).")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Crops of a step.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of a crop as the teacher sees it, in pixels.")] = 128,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    start: Annotated[Path | None, typer.Option(help="Teacher to start from, as wide or narrower.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Use so many of the photographs.")] = None,
    backbone_licence: Annotated[str, typer.Option(help="What the teacher's card says of the backbone's.")] = "",
    photos_licence: Annotated[str, typer.Option(help="What the teacher's card says of the photographs'.")] = "",
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    workers: Workers = 2,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """Distil a backbone into a small, fast teacher for EfficientAD. A killed run goes on where it was."""
    from pickglass.app.distill import distill as use_case
    from pickglass.cli.show import progress_bar
    from pickglass.detectors.compute import ComputeOptions
    from pickglass.features.distillation import DistillSettings

    with progress_bar() as progress:
        result = use_case(
            photos,
            teacher,
            DistillSettings(
                backbone=backbone,
                layers=[name for name in layers.replace(",", "+").split("+") if name],
                weights=weights,
                model=model.value,
                steps=steps,
                batch=batch,
                crop=crop,
                lr=lr,
                start=start,
                seed=seed,
            ),
            limit=limit,
            licences=(backbone_licence, photos_licence),
            compute=ComputeOptions(device=device, engine=engine.value, workers=workers, max_pixels=max_pixels),
            progress=progress,
        )
    print_json(result) if as_json else _show(result)


def _show(result: DistillResult) -> None:
    share = result["explained_variance"]
    typer.echo(f"{result['teacher']}: pdn_{result['model']} after {result['step']} steps, {result['seconds']:.0f} s")
    typer.echo(
        f"explains {share['mean']:.0%} of the variance of the channels of {result['backbone']} on "
        f"{result['held_out']} held-out photographs (median {share['median']:.0%}, half of the channels between "
        f"{share['q25']:.0%} and {share['q75']:.0%})"
    )
    typer.echo(
        f"use it: pickglass fit DATA -o MODEL.safetensors --method efficientad --backbone pdn_{result['model']} "
        f"--weights {result['teacher']}"
    )
