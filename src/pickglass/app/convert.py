"""Write a data set in any layout as one in MVTec AD's, or as a table, by links where the disk allows it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pickglass.app.results import ConvertedSet, ConvertResult
from pickglass.data import Dataset, DataSource, Row, load_dataset, read_header
from pickglass.data.files import alone, remove_leftovers, replace_folder, scratch_folder, writing_to
from pickglass.data.tables.cells import cell
from pickglass.data.tables.layouts.names import IMAGE_FOLDERS, MASK_FOLDERS, means_good, split_of
from pickglass.data.tables.layouts.tree import key
from pickglass.errors import DataError, Failure, ImageError, InputError

__all__ = ["FORMS", "convert", "folder_name"]

Form = Literal["mvtec", "table"]
FORMS: tuple[Form, ...] = ("mvtec", "table")

_MARK = ".pickglass-convert"  # in every folder that this module wrote, so that nothing else is ever replaced
_TABLE = "table.csv"
_COLUMNS = ("path", "role", "label", "defect", "mask", "group", "roi", "pixel_mm")
_PLACES = {"train": "train", "fit": "train", "calibrate": "train", "validate": "validation", "test": "test"}
_RESERVED = frozenset(map(key, (*MASK_FOLDERS, *IMAGE_FOLDERS)))


def convert(
    data: DataSource | str | Path,
    output: str | Path,
    form: Form = "mvtec",
    *,
    force: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
) -> ConvertResult:
    """Write a data set, or each of a root, into a new folder, whole or not at all; the data itself is not changed.

    Files are hard links where the folder lies on the same disk, else symbolic links, else copies. Outlines become
    masks. What the form cannot hold is counted: boxes, private images, and, in MVTec AD's layout, regions of interest
    and the size of a pixel.

    Args:
        data: folder or table in any layout that :func:`pickglass.load_dataset` knows, or how to read it.
        output: folder to write; a root of several data sets becomes a folder for each in it.
        form: ``"mvtec"``, or ``"table"``: the files and a ``table.csv`` that names them.
        force: replace a folder that this function wrote before.
        progress: called with (stage, images done, all images).

    Raises:
        InputError: the folder exists, or lies in the data or above it; or another form.
        DataError: no data set, or an image or mask that cannot be read.
    """
    if form not in FORMS:
        raise InputError(f"form {form!r}: expected one of {', '.join(FORMS)}")
    source, target = DataSource.of(data), Path(output)
    remove_leftovers(target.absolute().parent)
    _check(Path(source.path), target, force)
    sets = source.load_all(warn=False)
    written: list[ConvertedSet] = []
    done, total = 0, sum(len(dataset.table) for dataset in sets.values())
    with writing_to(target), alone(target), scratch_folder(target.absolute().parent) as scratch:
        _check(Path(source.path), target, force)  # another process may have made it while this one waited
        folder = scratch / "set"
        folder.mkdir()
        for name, dataset in sets.items():
            place = folder if len(sets) == 1 else folder / name.replace("/", "_")
            writing = _Writing(dataset, place)
            for _ in writing.write(form):
                done += 1
                if progress is not None:
                    progress("linking", done, total)
            _reread(dataset, place, form)
            final = target if len(sets) == 1 else target / place.name
            written.append(writing.result(final, form))
        (folder / _MARK).touch()
        replace_folder(folder, target, scratch)
    return {"folder": str(target), "form": form, "sets": written}


def _check(data: Path, target: Path, force: bool) -> None:
    real, wanted = os.path.realpath(data), os.path.realpath(target)
    if os.path.commonpath([real, wanted]) in (real, wanted) and os.path.isdir(real):
        raise InputError(f"{target} is the data itself, or lies in it or above it: name a folder beside {data}")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: its folder does not exist: make it first")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if not (target / _MARK).is_file():
            raise InputError(f"{target} exists and was not written by 'pickglass convert': name another folder with -o")
        if not force:
            raise InputError(f"{target} exists already: name another folder with -o, or replace it with --force")


@dataclass
class _Writing:
    """A data set is written into a folder."""

    dataset: Dataset
    folder: Path
    links: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    taken: set[str] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)

    def write(self, form: Form) -> Iterator[None]:
        """Write image by image, then the lists."""
        self.folder.mkdir(exist_ok=True)
        lines: list[dict[str, str]] = []
        for row in self.dataset.table:
            place = _place(row) if form == "mvtec" else "images"
            image = self._free(place, row)
            self._link(row.path, image)
            try:
                masks = self._masks(row, image, form)
            except ImageError as error:
                self.failures.append(Failure(error.path, error.reason))
                continue
            lines.append(self._line(row, image, masks, form))
            self.lost["images have boxes, which are left out"] += bool(row.boxes) and not row.has_mask
            yield
        if self.failures:
            raise DataError(f"{len(self.failures)} masks of {self.dataset.root} cannot be drawn:", self.failures)
        self.lost["private images are left out"] += len(self.dataset.private)
        if form == "table":
            _write_csv(self.folder / _TABLE, _COLUMNS, lines)
            return
        grouped = [{"path": line["path"], "group": line["group"]} for line in lines if line["group"]]
        if grouped:
            _write_csv(self.folder / "groups.csv", ("path", "group"), grouped)
        saturation = next((row.saturation for row in self.dataset.table if row.saturation), ())
        if saturation:
            names = ("pixel_value", "defect_name", "saturation_threshold", "relative_saturation")
            entries = [dict(zip(names, entry, strict=True)) for entry in saturation]
            (self.folder / "defects_config.json").write_text(json.dumps(entries, indent=1), "utf-8")
        self.lost["images have a region of interest, which is left out"] += sum(bool(r.roi) for r in self.dataset.table)
        self.lost["images have a size of a pixel, which is left out"] += sum(
            bool(r.pixel_mm) for r in self.dataset.table
        )

    def result(self, final: Path, form: Form) -> ConvertedSet:
        """Say what was written."""
        return {
            "name": self.dataset.name,
            "layout": self.dataset.layout,
            "path": str(final / _TABLE if form == "table" else final),
            "images": len(self.dataset.table),
            "masks": self.masks,
            "links": dict(self.links),
            "lost": {what: n for what, n in self.lost.items() if n},
            "account": self.dataset.account.to_json(),
        }

    def _free(self, place: str, row: Row) -> str:
        """Name the image in its new folder: as it is called, or by its folders too where that name is taken."""
        relative = os.path.relpath(row.path, self.dataset.root if os.path.isdir(self.dataset.root) else ".")
        parts = [part for part in Path(relative).parts if part not in (os.pardir, os.sep)]
        suffix = Path(relative).suffix
        for count in range(1, len(parts) + 1):
            stem = "_".join([*parts[-count:-1], Path(parts[-1]).stem])
            if self._take(f"{place}/{stem}"):
                return f"{place}/{stem}{suffix}"
        number = 2
        while not self._take(f"{place}/{stem}_{number}"):
            number += 1
        return f"{place}/{stem}_{number}{suffix}"

    def _take(self, name: str) -> bool:
        free = key(name) not in self.taken
        self.taken.add(key(name))
        return free

    def _masks(self, row: Row, image: str, form: Form) -> list[str]:
        place, stem = os.path.split(os.path.splitext(image)[0])
        kind = os.path.basename(place)
        base = f"ground_truth/{kind}" if form == "mvtec" else "masks"
        if row.label != 1:
            return []  # a good image has nothing to mark
        if row.masks:
            several = len(row.masks) > 1
            masks = []
            for i, mask in enumerate(row.masks):
                suffix = os.path.splitext(mask)[1]
                masks.append(f"{base}/{stem}/{i:03}{suffix}" if several else f"{base}/{stem}_mask{suffix}")
                self._link(mask, masks[-1])
        elif row.annotation is not None and row.annotation.has_mask:
            masks = [f"{base}/{stem}_mask.png"]
            header = read_header(row.path)
            truth = row.annotation.mask((header.height, header.width))
            assert truth is not None
            target = self.folder / masks[0]
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(truth.astype(np.uint8) * 255).save(target)
            self.links["drawn"] += 1
        else:
            return []
        self.masks += 1
        return masks

    def _line(self, row: Row, image: str, masks: list[str], form: Form) -> dict[str, str]:
        roi = ""
        if form == "table" and isinstance(row.roi, str):
            roi = row.roi
            if os.path.isfile(roi):
                roi = f"regions/{os.path.splitext(os.path.basename(image))[0]}{os.path.splitext(row.roi)[1]}"
                self._link(row.roi, roi)
        return {
            "path": image,
            "role": row.role,
            "label": "" if row.label is None else str(row.label),
            "defect": row.defect or "",
            "mask": ";".join(masks),
            "group": row.group or "",
            "roi": roi,
            "pixel_mm": "" if row.pixel_mm is None else repr(row.pixel_mm),
        }

    def _link(self, source: str, name: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        real = os.path.realpath(source)
        ways: Mapping[str, Callable[[str, Path], object]] = {
            "hard links": os.link,
            "symbolic links": os.symlink,
            "copies": shutil.copyfile,
        }
        if not os.path.isfile(real):
            raise DataError(f"{source}: no such file, though the data set names it: correct the list that names it")
        for way, make in ways.items():
            try:
                make(real, target)
            except OSError as error:
                if way == "copies":
                    raise DataError(f"{source} cannot be copied ({error.strerror}): check the disk") from error
            else:
                self.links[way] += 1
                return


def _place(row: Row) -> str:
    """Return the folder of an image in MVTec AD's layout; unlabelled images lie in ``test`` itself."""
    if row.label is None:
        return "test"
    return f"{_PLACES[row.role]}/{'good' if row.label == 0 else folder_name(row.defect or 'defect')}"


def folder_name(defect: str) -> str:
    """Return the name of the folder for a type of defect, which is read again as a type of defect and nothing else.

    >>> folder_name("scratch"), folder_name("ok"), folder_name("a/b")
    ('scratch', 'defect_ok', 'a_b')
    """
    name = "".join("_" if letter in '/\\:*?"<>|' or ord(letter) < 32 else letter for letter in defect).strip(" .")
    odd = not name or means_good(name) or split_of(name) is not None or key(name) in _RESERVED
    return f"defect_{name}" if odd else name


def _write_csv(path: Path, columns: tuple[str, ...], lines: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in line.items()} for line in lines)


def _reread(dataset: Dataset, place: Path, form: Form) -> None:
    """Read what was written and compare it with the data, so that no conversion can misplace an image unseen."""
    path = place / _TABLE if form == "table" else place
    known = any(row.label == 0 and row.role == "test" for row in dataset.table)
    again = load_dataset(path, good=() if known else ("good",), training=False)
    told, wanted = (
        Counter((_PLACES[row.role], row.label, row.label == 1 and row.has_mask) for row in one.table)
        for one in (again, dataset)
    )
    if told != wanted:
        raise DataError(
            f"{dataset.root} cannot be written as {form}: read again it has {dict(told)}, expected {dict(wanted)}; "
            "please report this"
        )
