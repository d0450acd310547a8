"""Marked images become a data set in the layout of MVTec AD, which every tool of the field reads.

Good images go to ``train/good``, bad ones to ``test/TYPE`` (``test/bad`` where nobody named a type), and masks to
``ground_truth/TYPE/NAME_mask.png``. Images that are unsure stay out, and are counted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pickglass.app.convert import folder_name
from pickglass.app.marking.images import locate
from pickglass.app.marking.mask import size_of
from pickglass.app.marking.store import MarkStore
from pickglass.app.results import MarksLayoutResult
from pickglass.data.files import alone, disk_is_full, replace_folder, scratch_folder, writing_to
from pickglass.data.images.decoder import read_header
from pickglass.data.images.masks import check_mask_size
from pickglass.errors import Failure, InputError

__all__ = ["write_layout"]

_UNTYPED = "bad"


def write_layout(
    store: MarkStore,
    folder: str | Path,
    *,
    link: bool = False,
    beside: str | Path | None = None,
    roots: Sequence[str | Path] = (),
) -> MarksLayoutResult:
    """Write the marked images as a data set into a new folder, whole or not at all.

    Args:
        store: the marks.
        folder: does not exist yet, or is empty.
        link: give the images a second name (hard link) instead of copying them; to do on one disk, for images that
            nobody writes to.
        beside, roots: where images are looked for, see :func:`pickglass.app.marking.images.locate`.

    Raises:
        InputError: the folder is not empty or cannot be written, no image is marked good or bad, or the images cannot
            be linked.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} holds something: name a folder that is new or empty")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: expected a folder to be made in one that exists")
    marks = store.current()
    sure = [mark for mark in marks if mark.counts_as != "unsure"]
    if not sure:
        raise InputError(f"none of {len(marks)} marked images is marked good or bad: there is nothing to write")
    located = locate(sure, beside, roots)
    failed = list(located.failed)
    counts = {"good": 0, "bad": 0}
    masks = 0
    renamed: list[tuple[str, str]] = []
    taken: set[str] = set()
    with writing_to(target), alone(target), scratch_folder(target.absolute().parent) as scratch:
        temporary = scratch / "set"
        temporary.mkdir()
        for mark in sure:
            path = located.paths.get(mark.digest)
            if path is None:
                continue
            kind = "good" if mark.counts_as == "good" else folder_name(mark.type or _UNTYPED)
            name = _free(f"{'train' if kind == 'good' else 'test'}/{kind}", os.path.basename(path), taken)
            try:
                png = None if mark.mask is None else store.mask(mark.mask)
                if png is not None:
                    check_mask_size(f"the mask of {path}", size_of(png), read_header(path)[:2])
                _place(path, temporary / name, mark.digest, link)
            except (InputError, OSError) as error:
                if disk_is_full(error):
                    raise
                if link and isinstance(error, OSError):
                    raise InputError(
                        f"{path} cannot be linked to {target} ({error.strerror}): leave out the links, so that images "
                        "are copied"
                    ) from error
                failed.append(Failure(mark.path, str(error)))
                continue
            taken.add(_stem(name))
            if Path(name).name != os.path.basename(path) or (kind not in ("good", mark.type or _UNTYPED)):
                renamed.append((mark.path, name))
            counts["good" if kind == "good" else "bad"] += 1
            if kind == "good":
                continue
            truth = temporary / "ground_truth" / kind  # also without a mask: it says that these are defects
            truth.mkdir(parents=True, exist_ok=True)
            if png is not None:
                (truth / f"{Path(name).stem}_mask.png").write_bytes(png)
                masks += 1
        if not counts["good"] + counts["bad"]:
            raise InputError(f"none of {len(sure)} marked images can be found: {failed[0].path}: {failed[0].error}")
        replace_folder(temporary, target, scratch)
    return {
        "folder": str(target),
        **counts,  # type: ignore[typeddict-item]
        "masks": masks,
        "unsure": len(marks) - len(sure),
        "disputed": [mark.path for mark in marks if mark.disputed],
        "renamed": [{"path": path, "name": name} for path, name in renamed],
        "moved": [{"path": path, "now": now} for path, now in located.moved],
        "failed": [{"path": path, "error": error} for path, error in failed],
    }


def _stem(name: str) -> str:
    return str(Path(name).with_suffix("")).lower()


def _free(folder: str, name: str, taken: set[str]) -> str:
    """Return a name whose stem is free, in any case of letters: masks are named by the stem."""
    given = Path(name)
    new, n = f"{folder}/{name}", 1
    while _stem(new) in taken:
        n += 1
        new = f"{folder}/{given.stem}-{n}{given.suffix}"
    return new


def _place(source: str, target: Path, digest: str, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        os.link(source, target)
        content = target.read_bytes()
    else:
        content = Path(source).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        if link:
            target.unlink()
        raise InputError("it was changed just now: mark it again")
    if not link:
        target.write_bytes(content)
