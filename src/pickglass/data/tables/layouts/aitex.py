"""AITEX has strips of seven fabrics in one tree, several masks a strip, and codes in the names ``nnnn_ddd_ff.png``.

``ddd`` is the defect, ``ff`` the fabric. Every fabric is a data set of its own. The code is not made the group of its
rows: one group that holds all of them would leave none to calibrate with. It does not guarantee one cloth either, as
thread densities differ within it; look at what ``pickglass info`` says. The white margins at the ends of a strip lie
outside its region of interest. Published at aitex.es/afid, and described by Silvestre-Blanes et al., "A Public Fabric
Database for Defect Detection Methods and Results", Autex 2019.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict

from pickglass.data.tables.layouts.classes import one_or_all
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.pairing import pair, sort_images
from pickglass.data.tables.layouts.tables import grouped, held_out
from pickglass.data.tables.layouts.tree import Folder, is_image, key, walk
from pickglass.data.tables.rows import MARGINS, Row
from pickglass.errors import DataError

__all__ = ["read"]

_NAME = re.compile(r"\d+_(?P<defect>\d+)_(?P<fabric>\d+)")
_GOOD, _BAD, _MASKS = "NODefect_images", "Defect_images", "Mask_images"
_DEFECTS = {  # from the data base's description
    "002": "broken end",
    "006": "broken yarn",
    "010": "broken pick",
    "016": "weft curling",
    "019": "fuzzy ball",
    "022": "cut selvage",
    "023": "crease",
    "025": "warp ball",
    "027": "knots",
    "029": "contamination",
    "030": "nep",
    "036": "weft crack",
}


def read(root: Folder, ask: Ask) -> Found | None:
    """Read all fabrics by their code, or those of one folder of ``NODefect_images``, where ``root`` is that folder."""
    above = os.path.dirname(os.path.abspath(root.path))
    single = key(os.path.basename(above)) == key(_GOOD)
    base = walk(os.path.dirname(above)) if single else root
    good, bad = base.find(_GOOD), base.find(_BAD)
    if good is None or bad is None:
        return None
    found = Found()
    rows: dict[str, list[Row]] = defaultdict(list)
    for folder in [root] if single else [good, *good.folders.values()]:
        for file in sort_images(folder, deep=False).images:
            rows[_codes(folder.at(file))[1]].append(Row(folder.at(file), "train", 0, roi=MARGINS))
    codes = set(rows)
    strips = sort_images(bad).images
    masks = base.find(_MASKS)
    named = [] if masks is None else [(file, masks.at(file)) for file in masks.all_files() if is_image(file)]
    pairs, doubtful = pair(strips, named)
    found.unused.update(doubtful)
    for file in strips:
        defect, fabric = _codes(bad.at(file))
        kind = _DEFECTS.get(defect, defect)
        rows[fabric].append(Row(bad.at(file), "test", 1, kind, one_or_all(pairs.get(file, ())), roi=MARGINS))
    tables = {fabric: rows[fabric] for fabric in sorted(rows) if not single or fabric in codes}
    found.tables = {fabric: held_out(grouped(base, table, ask, found), found) for fabric, table in tables.items()}
    return found


def _codes(path: str) -> tuple[str, str]:
    match = _NAME.fullmatch(os.path.splitext(os.path.basename(path))[0])
    if match is None:
        raise DataError(
            f"{path}: expected a name such as 0001_000_04.png: number, code of the defect, code of the fabric"
        )
    return match["defect"], match["fabric"]
