"""The provenance says where a model came from: its images, regions of interest, weights, versions and its fit."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pickglass.data import MARGINS, Channels, Dataset, Preprocess, Row, Table, as_rows, as_table, image_digest
from pickglass.data.stored import from_stored

__all__ = ["Provenance", "Regions", "common_roi"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Regions:
    """The regions of interest of the images that a model was fitted on.

    Attributes:
        margins: whether all images were looked at inside their margins.
        regions: those of the other images: ``"one"`` for all, ``"each"`` image its own, ``"some"`` or ``"none"``.
        regions_sha256: over the contents of all of them, in the order of the rows; empty where there are none.
    """

    margins: bool = False
    regions: Literal["none", "one", "each", "some"] = "none"
    regions_sha256: str = ""

    @classmethod
    def of(cls, table: Table) -> Regions:
        """Read the regions of interest of these rows."""
        regions = {row.roi_name: row.roi for row in table}
        marked = {name: roi for name, roi in regions.items() if roi is not None and name != MARGINS}
        digests = {name: hashlib.sha256(_content(roi)).hexdigest() for name, roi in marked.items()}
        listed = json.dumps([digests.get(row.roi_name, row.roi_name) for row in table])
        return cls(
            margins=set(regions) == {MARGINS},
            regions="none" if not marked else "some" if None in regions else "one" if len(marked) == 1 else "each",
            regions_sha256=hashlib.sha256(listed.encode()).hexdigest(),
        )


def _content(roi: str | npt.NDArray[Any]) -> bytes:
    return Path(roi).read_bytes() if isinstance(roi, str) else (roi > 0).tobytes()


@dataclass(frozen=True)
class Provenance:
    """The provenance is what a model tells of its origin; a model that was never fitted has the defaults.

    Attributes:
        n_fit, n_validate, n_calibrate: number of images of each role.
        seed: by which images were divided and everything else was drawn.
        data_sha256: over the contents of the images, their roles and their order.
        fitted_images: start of the digest of each image of the roles fit and validate, also of updates; None in models
            that do not tell.
        image_names: name of each image that was learned, in the order of learning, also of updates: the end of its
            path, which does not tell where it lay. None of an image, or altogether, where it is not known.
        pixel_mm: side of a pixel on the part in millimetres, where all images share it.
        regions: the regions of interest of the images.
        backbone_weights: what identifies the backbone's weights, as JSON; None where nothing is known.
        adaptation: what fine-tuning the backbone did; None: it was not asked for.
        device, engine: what computed the features.
        suspicious: images that looked like none of the others: ``path``, ``score``, ``whole`` each; empty as well
            where no :class:`pickglass.CleanCheck` watched the fit.
        left_out: start of the digest of each suspicious image that was left out of the fit; None: none was.
        known_defects: bad parts that the fit was shown: ``name``, ``defect`` (None: no type is known), ``digest`` (its
            start), ``use`` (``"learned"`` or ``"unsure"``) and ``score`` each; None: there were none.
        details: what the method tells of its training.
        versions: version by library.
        fitted: date and time (UTC) of the fit.
        fit_s: seconds that the fit took.
        data: name of the data set, where the use case knew it.
        auto: how the preset ``auto`` chose, if it did.
        foreground: where the part is in the images, if it was looked for.
        updates: what each update learned, oldest first; None: there was none. ``n_fit``, ``n_validate`` and
            ``n_calibrate`` count the images of the fit and of all updates.
    """

    n_fit: int = 0
    n_validate: int = 0
    n_calibrate: int = 0
    seed: int = 0
    data_sha256: str = ""
    fitted_images: tuple[str, ...] | None = None
    image_names: tuple[str | None, ...] | None = None
    pixel_mm: float | None = None
    regions: Regions = Regions()
    backbone_weights: dict[str, Any] | None = None
    adaptation: dict[str, Any] | None = None
    device: str = ""
    engine: str = ""
    suspicious: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] | None = None
    known_defects: tuple[dict[str, Any], ...] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    fitted: str = ""
    fit_s: float = 0.0
    data: str | None = None
    auto: dict[str, Any] | None = None
    foreground: dict[str, Any] | None = None
    updates: tuple[dict[str, Any], ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict as a model file keeps it; what is optional and not known is left out."""
        optional = (
            "fitted_images",
            "image_names",
            "left_out",
            "known_defects",
            "adaptation",
            "data",
            "auto",
            "foreground",
            "updates",
        )
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        stored = {name: value for name, value in known.items() if not (name in optional and value is None)}
        return {**stored, **asdict(self.regions)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Provenance:
        """Read the dict that :meth:`to_json` returned, also one that an older version wrote."""
        names = {f.name for f in fields(cls)} - {"regions"}
        known = {name: value for name, value in stored.items() if name in names}
        regions = {f.name: stored[f.name] for f in fields(Regions) if f.name in stored}
        return replace(from_stored(cls, known), regions=from_stored(Regions, regions))

    def within_regions(self, table: Table) -> Table:
        """Return the rows with the region of interest that the model was taught to look at: their margins, if so.

        Warns of rows without a region of interest where each image that was fitted had one of its own.
        """
        if self.regions.margins:
            return Table([replace(row, roi=MARGINS if row.roi is None else row.roi) for row in table])
        lacking = sum(row.roi is None for row in table)
        if lacking and self.regions.regions == "each":
            warnings.warn(
                f"{lacking} of {len(table)} images have no region of interest, and the model was fitted within one an "
                "image: it never learned what lies outside, which may raise alarms. Name the folder of masks (roi)",
                UserWarning,
                stacklevel=4,
            )
        return table

    def rows_to_judge(self, data: Any, channels: Channels = "rgb") -> Iterable[Row]:
        """Return rows of whatever the user gives, with the regions of interest that the model was taught to look at.

        A generator or a DataLoader is read as images are needed, where no region of interest asks for all of them.
        """
        by_row = self.regions.margins or self.regions.regions == "each"
        known = isinstance(data, (Sequence, Dataset, Row, os.PathLike)) or hasattr(data, "shape")
        if not known and not by_row:
            return as_rows(data, "test", channels)
        table = data if isinstance(data, Table) else as_table(data, "test", channels)
        return self.within_regions(table).rows if by_row else table.rows

    def unseen(self, table: Table) -> Table:
        """Return the rows that the model was not fitted on or shown as known defects, nor images of their groups."""
        return table.unseen_by((*(self.fitted_images or ()), *self.defect_digests))

    @property
    def defect_digests(self) -> tuple[str, ...]:
        """The start of the digest of each known defect."""
        return tuple(defect["digest"] for defect in self.known_defects or ())

    def without_left_out(self, table: Table) -> Table:
        """Return the rows but for the suspicious images that the fit left out: what it did not trust stays out."""
        if not self.left_out:
            return table
        left_out = frozenset(self.left_out)
        return table.where(lambda row: image_digest(row)[:16] not in left_out)


def common_roi(table: Table, sizes: Mapping[str, Size], preprocess: Preprocess) -> npt.NDArray[np.bool_] | None:
    """Return the region of interest (H, W) bool on the canvas that a model keeps for images without one of their own.

    There is one only if all training images share one file and one size: a fixed camera.
    """
    names, shapes = {row.roi_name for row in table}, set(sizes.values())
    if len(names) != 1 or len(shapes) != 1 or names & {None, MARGINS}:
        return None
    (size,) = shapes
    region = table[0].region(np.zeros(size, np.uint8))
    return None if region is None else preprocess.kept(size, region)
