"""AITEX has strips of seven fabrics in one tree, several masks a strip, and codes in the names ``nnnn_ddd_ff.png``.

``ddd`` is the defect, ``ff`` the fabric. Every fabric is a data set of its own. The code is not made the group of its
rows: one group that holds all of them would leave none to calibrate with. It does not guarantee one cloth either, as
thread densities differ within it; look at what ``pickglass info`` says. The white margins at the ends of a strip lie
outside its region of interest.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from pickglass.data.tables.layouts.tree import folders, grouped, held_out, images, one_or_all
from pickglass.data.tables.rows import MARGINS, Row, Table
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


def read(root: Path, pattern: str | None = None) -> dict[str, Table] | None:
    """Read all fabrics by their code, or those of one folder of ``NODefect_images``, where ``root`` is that folder."""
    single = root.absolute().parent.name == _GOOD
    base = root.absolute().parent.parent if single else root
    if not (base / _GOOD).is_dir() or not (base / _BAD).is_dir():
        return None
    masks: dict[str, list[Path]] = defaultdict(list)
    for path in images(base / _MASKS):
        masks[path.stem.partition("_mask")[0]].append(path)
    rows: dict[str, list[Row]] = defaultdict(list)
    for folder in [root] if single else [base / _GOOD, *folders(base / _GOOD)]:
        for path in images(folder, deep=False):
            rows[_codes(path)[1]].append(Row(str(path), "train", 0, roi=MARGINS))
    codes = set(rows)
    for path in images(base / _BAD):
        defect, fabric = _codes(path)
        name = _DEFECTS.get(defect, defect)
        rows[fabric].append(Row(str(path), "test", 1, name, one_or_all(masks.get(path.stem, [])), roi=MARGINS))
    tables = {fabric: rows[fabric] for fabric in sorted(rows) if not single or fabric in codes}
    return {fabric: held_out(grouped(base, table, pattern)) for fabric, table in tables.items()}


def _codes(path: Path) -> tuple[str, str]:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise DataError(
            f"{path}: expected a name such as 0001_000_04.png: number, code of the defect, code of the fabric"
        )
    return match["defect"], match["fabric"]
