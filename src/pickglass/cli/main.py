"""The command line: arguments in, one use case called, its result shown."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from pickglass.cli.advise import advise
from pickglass.cli.bench import bench
from pickglass.cli.command import with_groups
from pickglass.cli.convert import convert
from pickglass.cli.demo import demo
from pickglass.cli.distill import distill
from pickglass.cli.drift import drift
from pickglass.cli.explain import explain
from pickglass.cli.export import export
from pickglass.cli.fit import fit
from pickglass.cli.info import info
from pickglass.cli.label import label
from pickglass.cli.layers import layers
from pickglass.cli.look import look
from pickglass.cli.marks import marks
from pickglass.cli.methods import methods
from pickglass.cli.predict import predict
from pickglass.cli.reproduce import reproduce
from pickglass.cli.serve import serve
from pickglass.cli.study import study
from pickglass.cli.test import test
from pickglass.cli.threshold import threshold
from pickglass.cli.update import update
from pickglass.cli.watch import watch
from pickglass.cli.weights import weights
from pickglass.errors import MissingExtra, PickglassError

__all__ = ["COMMANDS", "app", "main"]

COMMANDS: tuple[Callable[..., None], ...] = (
    info,
    convert,
    fit,
    test,
    predict,
    watch,
    serve,
    threshold,
    marks,
    update,
    export,
    bench,
    label,
    distill,
    methods,
    weights,
    layers,
    look,
    explain,
    advise,
    study,
    reproduce,
    drift,
    demo,
)
"""In the order in which the help lists them."""

app = typer.Typer(
    name="pickglass",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command(command.__name__)(with_groups(command))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"pickglass {version('pickglass')}")
        raise typer.Exit


@app.callback()
def pickglass(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Visual anomaly detection for industry: learns from good images only, then finds and outlines defects."""


def main() -> NoReturn:
    """Run the command ``pickglass`` and end the process with its exit code."""
    # a file name need not be UTF-8, and printing one must not end the command
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="pickglass")  # also of python -m pickglass
    except PickglassError as error:
        typer.echo(f"error: {error}", err=True)
    except OSError as error:  # a disk, a file or a network that went away meanwhile
        if error.errno is None:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        typer.echo(f"error: {place}{error.strerror}: look at the disk, then give the same command again", err=True)
    except ModuleNotFoundError as error:
        needed = MissingExtra.needed(f"'pickglass {' '.join(sys.argv[1:2])}'", error)
        typer.echo(f"error: {needed}", err=True)
    sys.exit(2)
