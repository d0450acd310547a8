"""Options that several commands share, each written once.

A group is a dataclass; a command takes it as one keyword-only parameter, see
:func:`pickglass.cli.command.with_groups`. An option that is added to a group is an option of every command that takes
the group, and reaches the use case without another line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.jobs.executors import Where
    from pickglass.data.tables.sources import DataSource
    from pickglass.runtime.compute import ComputeOptions

__all__ = [
    "AnyModelFile",
    "Cluster",
    "Compute",
    "Download",
    "Folder",
    "Force",
    "Json",
    "Machine",
    "MaxPixels",
    "ModelFile",
    "Place",
    "Roi",
    "Seed",
    "check_new",
    "check_order",
    "let_download",
]

Json = Annotated[bool, typer.Option("--json", help="Print the result as exactly one JSON object on stdout.")]
Seed = Annotated[int, typer.Option(help="Draw everything that is random from this seed.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output file if it exists.")]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch weights that are missing; PICKGLASS_DOWNLOAD=1 does the same.")
]
MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, help="Refuse images with more pixels; by default 250 million, of serve 100 million."),
]
Roi = Annotated[
    Path | None, typer.Option(help="Look only here: a mask for all images, or a folder with a mask for each image.")
]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file that 'pickglass fit' wrote.")]
AnyModelFile = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Model file that 'pickglass fit' wrote, or an exported one, .onnx."),
]


@dataclass(frozen=True)
class Folder:
    """How a data folder is read."""

    layout: Annotated[
        str | None,
        typer.Option(help="Read the folder in this layout, e.g. mvtec. By default the layout is recognised."),
    ] = None
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Regular expression that finds the part or roll in each file name; images of one part stay together."
        ),
    ] = None
    good: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Folders of this name hold good parts; may be given several times. Known: good, ok, normal, pass ...",
        ),
    ] = None

    def source(
        self, path: Path, roi: Path | str | None = None, pixel_mm: float | None = None, more: Sequence[Path] = ()
    ) -> DataSource:
        """Return a folder, or several that make one data set, as use cases take it."""
        from pickglass.data.tables.sources import DataSource

        return DataSource(path, self.layout, self.group_by, roi, pixel_mm, tuple(self.good or ()), tuple(more))


@dataclass(frozen=True)
class Place:
    """Where to look on the images, and how large their pixels are."""

    roi: Roi = None
    pixel_mm: Annotated[float | None, typer.Option(help="The side of a pixel on the part, in millimetres.")] = None

    def source(self, path: Path, folder: Folder) -> DataSource:
        """Return the folder as use cases take it."""
        return folder.source(path, self.roi, self.pixel_mm)


@dataclass(frozen=True)
class Machine:
    """Where and how networks run, and how large images may be."""

    device: Annotated[str, typer.Option(help="Run the networks on auto, cpu, cuda, ...")] = "auto"
    engine: Annotated[
        Literal["auto", "openvino", "bfloat16", "torch", "onnxruntime"],
        typer.Option(
            help="Run the networks with this; bfloat16 is faster where the CPU has it, and less exact. Exported models "
            "run in onnxruntime or openvino."
        ),
    ] = "auto"
    max_pixels: MaxPixels = None

    def options(self) -> ComputeOptions:
        """Return them as use cases take them."""
        from pickglass.runtime.compute import ComputeOptions

        return ComputeOptions(**{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class Compute(Machine):
    """The same, and how many threads decode images."""

    workers: Annotated[int, typer.Option(min=1, help="Decode images in so many threads.")] = 2


@dataclass(frozen=True)
class Cluster:
    """Where tasks run that know nothing of each other."""

    executor: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Compute on this machine or on a Ray cluster (pickglass[cluster])."),
    ] = "local"
    address: Annotated[str | None, typer.Option(help="Address of the Ray cluster, e.g. auto.")] = None
    cpus: Annotated[float, typer.Option(min=0, help="CPUs that a Ray task needs.")] = 1.0
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that a Ray task needs.")] = 0.0

    def where(self, parallel: int | None, memory_gb: float) -> Where:
        """Return the place as use cases take it.

        Args:
            parallel: tasks at once; None: one here, and on Ray as many as there is room for.
            memory_gb: gigabytes of each task.
        """
        from pickglass.app.jobs.executors import Where

        return Where(self.executor, parallel, self.address, self.cpus, self.gpus, memory_gb)


_MODELS = (".safetensors", ".onnx")


def check_order(command: str, models: Sequence[Path], data: Sequence[Path]) -> None:
    """Recognise a model and images that were named in the wrong order.

    Raises:
        InputError: with the command line that was meant.
    """
    if any(path.suffix in _MODELS for path in data) and not any(path.suffix in _MODELS for path in models):
        meant = " ".join(str(path) for path in (*data, *models))
        raise InputError(
            f"the arguments are swapped: {data[-1]} is a model, and the model comes first: pickglass {command} {meant}"
        )


def let_download(wanted: bool) -> None:
    """Let this process, and those that it starts, fetch weights that are missing."""
    if wanted:
        os.environ["PICKGLASS_DOWNLOAD"] = "1"


def check_new(path: Path, force: bool, resumes: Sequence[Path] = ()) -> None:
    """Keep a command from overwriting a file that took long to make.

    Args:
        path: file to write.
        force: overwrite it all the same.
        resumes: where one of these files exists, the command goes on with ``path`` instead of replacing it.

    Raises:
        InputError: the file exists.
    """
    from pickglass.data.files import remove_leftovers

    remove_leftovers(path.parent)  # a killed command may have written this file, and some of its own are left
    if path.is_file() and not force and not any(file.is_file() for file in resumes):
        raise InputError(f"{path} exists already: name another file with -o, or overwrite it with --force")
