"""``pickglass watch``: judge images as they arrive in a folder, each exactly once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from pickglass.cli.command import Progress, run
from pickglass.cli.options import AnyModelFile, Compute, check_order

if TYPE_CHECKING:
    from pickglass.app.results import WatchResult

__all__ = ["watch"]


@dataclass(frozen=True)
class Line:
    """How images come in, and who is told of them."""

    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Remember in this SQLite file which images were judged. By default FOLDER.watch.sqlite beside the "
            "folder.",
        ),
    ] = None
    sort: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Move judged files to folders in this one: good, bad, unsure, failed, skipped. By default they stay.",
        ),
    ] = None
    jsonl: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append a JSON line for each image to this file.")
    ] = None
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append a row for each image, as in results.csv of predict, to this file."),
    ] = None
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="POST each result as JSON to this address, until it is taken.")
    ] = None
    mqtt: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT/TOPIC", help="Publish each result under this topic; needs the extra 'line' of pickglass."
        ),
    ] = None
    heartbeat: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Write a sign of life so often to a file beside the journal, and send it to the webhook and the "
            "broker.",
        ),
    ] = None
    when_late: Annotated[
        Literal["wait", "skip"],
        typer.Option(help="Judge every image however late, or skip the oldest where more than --queue wait."),
    ] = "wait"
    queue: Annotated[int, typer.Option(min=1, help="So many images may wait for the model.")] = 1000
    settle: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Read a file once it has not changed for so long. By default 0.5, or 0 with a camera.",
        ),
    ] = None
    give_up: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="Count a file as failed that cannot be read so long after its last change."
        ),
    ] = 10.0
    camera: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Store the frames of this camera, a number or an address such as rtsp://..., in FOLDER, and judge "
            "them; needs OpenCV.",
        ),
    ] = None
    every: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Take a frame of the camera so often at most.")
    ] = 0.0
    once: Annotated[bool, typer.Option("--once", help="End when the folder has no new image.")] = False


def watch(
    model: AnyModelFile,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images that arrive in this folder are judged.")],
    *,
    line: Line,
    compute: Compute,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each image, one a line, and one at the end.")
    ] = False,
) -> None:
    """Judge images as they arrive in a folder, each exactly once, also across restarts. Ctrl+C ends it."""
    check_order("watch", [model], [folder])
    from pickglass.app.watch.watch import WatchRequest
    from pickglass.app.watch.watch import watch as use_case

    request = WatchRequest(model, folder, compute=compute.options(), **asdict(line))

    def watched(_: Progress | None) -> WatchResult:
        with ended_by_signals() as stop:
            return use_case(
                request,
                stop=stop,
                lines=stdout if as_json else None,
                show=None if as_json else partial(_show_image, stdout),
                say=lambda sentence: typer.echo(sentence, err=True),
            )

    with own_stdout() as stdout:
        run(watched, _show, as_json, wanting=lambda result: any(result["behind"].values()))


@contextmanager
def own_stdout() -> Iterator[BinaryIO]:
    """Give a stream to stdout for results, while all else that is printed goes to stderr."""
    try:
        number = os.dup(1)
    except OSError:  # a process without stdout
        number = os.open(os.devnull, os.O_WRONLY)
    stream = os.fdopen(number, "wb")
    try:
        yield stream
    finally:
        with suppress(BrokenPipeError):
            stream.close()


@contextmanager
def ended_by_signals() -> Iterator[threading.Event]:
    """Give an event that SIGINT or SIGTERM sets; a second signal ends the process as it would have without this."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(*_: Any) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_image(stdout: BinaryIO, image: dict[str, Any]) -> None:
    score = "–" if image["score"] is None else f"{image['score']:.4g}"
    what = image["verdict"] or image["state"]
    text = f"{image['time'][11:19]}  {what:<7}  {score:>8}  {image['path']}"
    text += f": {image['error']}\n" if image["error"] else "\n"
    stdout.write(text.encode(errors="backslashreplace"))
    stdout.flush()


def _show(result: WatchResult) -> None:
    parts = [f"{count} {verdict}" for verdict, count in sorted(result["verdicts"].items())]
    parts += [
        f"{count} {name}" for name, count in (("failed", result["failed"]), ("skipped", result["skipped"])) if count
    ]
    typer.echo(
        f"{result['judged']} images judged{': ' if parts else ''}{', '.join(parts)}; journal {result['journal']}"
    )
    for name, count in result["behind"].items():
        if count:
            typer.echo(f"{name} is still to be told of {count} images: the next start goes on from there", err=True)
    for name, count in result["refused"].items():
        if count:
            typer.echo(f"{name} refused {count} messages: table 'refused' of the journal has the reasons", err=True)
