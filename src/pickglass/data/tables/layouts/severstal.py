"""Severstal's steel sheets come with ``train.csv``, which lists the run lengths of each defect of each image.

Published at kaggle.com/c/severstal-steel-defect-detection. An image is defective where the list has run lengths of it;
images of ``train_images`` that it does not name, or names without run lengths, have no defect. The truth of
``test_images`` is not published.
"""

from __future__ import annotations

from pickglass.data.annotations import Annotation, RunLengths
from pickglass.data.images.decoder import read_header
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.pairing import sort_images
from pickglass.data.tables.layouts.spreadsheet import read_lines
from pickglass.data.tables.layouts.tables import grouped, held_out
from pickglass.data.tables.layouts.tree import Folder, key
from pickglass.data.tables.rows import Row, Table
from pickglass.errors import DataError, ImageError

__all__ = ["read"]


def read(root: Folder, ask: Ask) -> Found | None:
    """Read ``train_images/*.jpg`` with ``train.csv``, whose columns are ImageId, ClassId and EncodedPixels.

    The older form with ImageId_ClassId and EncodedPixels is read too. Headers of the defective images are opened.
    """
    file, folder = root.file("train.csv"), root.find("train_images")
    if file is None or folder is None:
        return None
    lines = read_lines(file, ("encodedpixels",))
    if lines and not {"imageid", "imageid_classid"} & lines[0].keys():
        return None
    found = Found(used={file: "lists of annotations"})
    runs: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, start=2):
        name, kind = _names(line, f"{file}, line {number}")
        if not line["encodedpixels"] and "imageid" in line:  # of the older form, which lists all images
            raise DataError(f"{file}, line {number}: no run lengths for {name}: the file may be cut short")
        if line["encodedpixels"]:
            runs.setdefault(name, {})[kind] = line["encodedpixels"]
    if not runs:
        raise DataError(f"{file} names no defect, so nothing says which images are good: get the whole file")
    missing = sorted(set(runs) - set(folder.files))
    if missing:
        raise DataError(
            f"{file} names {len(missing)} images that are not in {folder.path}, e.g. {missing[0]}: get the whole data"
        )
    rows = [
        _row(folder.at(name), runs[name], file) if name in runs else Row(folder.at(name), "train", 0)
        for name in sort_images(folder, deep=False).images
    ]
    test = root.find("test_images")
    found.private = Table([] if test is None else [Row(test.at(name)) for name in test.images])
    for name in root.files:
        if key(name) == "sample_submission.csv":
            found.passed[root.at(name)] = "examples of the competition"
    found.tables = {root.name: held_out(grouped(root, rows, ask, found), found)}
    return found


def _names(line: dict[str, str], place: str) -> tuple[str, str]:
    name, kind = line.get("imageid", ""), line.get("classid", "")
    if not name:
        name, _, kind = line.get("imageid_classid", "").rpartition("_")
    if not name or not kind:
        raise DataError(f"{place}: {line}, expected the name of an image and the number of a class")
    return name, kind


def _row(path: str, runs: dict[str, str], file: str) -> Row:
    types = tuple(f"class {kind}" for kind in sorted(runs))
    try:
        header = read_header(path)
    except ImageError:
        return Row(path, "test", 1, ", ".join(types))  # the image is named where it is read
    size = (header.height, header.width)
    try:
        shapes = tuple(RunLengths.from_pairs(runs[kind], size, f"class {kind}") for kind in sorted(runs))
    except DataError as error:
        raise DataError(f"{file}: {path}: {error}") from error
    said = Annotation("defective", types, shapes, size, file)
    return Row(path, "test", 1, ", ".join(types), annotation=said)
