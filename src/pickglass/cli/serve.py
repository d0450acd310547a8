"""``pickglass serve``: the inspection page and its API."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pickglass.cli.options import Compute, Folder, Place
from pickglass.errors import MissingExtra

__all__ = ["serve"]


def serve(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Model files, exported (.onnx) or, with the lab installed, of 'fit'."),
    ],
    *,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Look through this data set, and set thresholds on it.")
    ] = None,
    host: Annotated[str, typer.Option(help="Listen at this address; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Listen at this port; 0: any free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="PICKGLASS_TOKEN", show_envvar=True, help="Requests have to carry this token."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="FOLDER",
            help="Keep marks, thumbnails and candidates of updates here. By default in the user's data folder.",
        ),
    ] = None,
    watch: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Judge images that arrive in this folder, and show them.")
    ] = None,
    page: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.html",
            help="Offer this page of study, advise, test, look or layers, too; may be given several times.",
        ),
    ] = None,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Refuse requests that are longer, in megabytes.")] = 64.0,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="So many images may wait for a model; then the answer is 503.")
    ] = 64,
    folder: Folder,
    place: Place,
    compute: Compute,
) -> None:
    """Open a page on which people look at images, judge, set thresholds, mark, and teach. Ctrl+C ends it."""
    try:
        from pickglass.web.server import serve as use_case
    except ImportError as error:
        raise MissingExtra.needed("The inspection page", error) from error
    from pickglass.web.settings import MAX_PIXELS, ServeSettings

    settings = ServeSettings(
        tuple(models),
        data=None if data is None else place.source(data, folder),
        host=host,
        port=port,
        token=token or None,
        folder=state,
        watch=watch,
        pages=tuple(page or ()),
        max_bytes=round(max_mb * 2**20),
        max_requests=max_waiting,
        compute=replace(compute.options(), max_pixels=compute.max_pixels or MAX_PIXELS),
    )
    use_case(settings, lambda address: typer.echo(f"pickglass listens at {address}  (Ctrl+C ends it)"))
