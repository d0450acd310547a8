"""Data sets with a few things wrong with them, by the hundred, seeded: refused in words, or nothing is misread."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.layouts import TREES

from pickglass.data import load_datasets
from pickglass.errors import ImageError, InputError

TEXTS = (".json", ".xml", ".txt", ".csv", ".yaml", ".parquet")
NAMES = [
    "x",
    "Größe",
    "部品 7",
    "a b",
    "#1",
    "-dash",
    "it's;ok",
    "images",
    "masks",
    "Labels",
    "GT",
    "val",
    "Test",
    "scratch",
    "new\nline",
]
NAMES += [
    unicodedata.normalize("NFD", "größe"),
    "lot.7",
    "annotations",
    "e" * 120,
    b"\xff\xfe".decode("utf-8", "surrogateescape"),
]
if importlib.util.find_spec("pyarrow") is None:
    TREES = {name: draw for name, draw in TREES.items() if name != "Kaputt"}


def change(root: Path, rng: np.random.Generator) -> str:
    """Do one thing to a tree that does not make a defective image a good one, and say what."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    folders = sorted(path for path in root.rglob("*") if path.is_dir())
    # of Severstal, whatever the table does not name is good, so a line that is lost cannot be seen
    texts = [path for path in files if path.suffix in TEXTS and path.name != "train.csv"]
    kind = rng.integers(9)
    file = files[rng.integers(len(files))]
    name = NAMES[rng.integers(len(NAMES))]
    if kind == 0 and folders:
        folder = folders[rng.integers(len(folders))]
        if not folder.with_name(name).exists():
            folder.rename(folder.with_name(name))
        return f"{folder} renamed to {name!r}"
    if kind == 1 and file.suffix not in TEXTS:
        file.rename(file.with_suffix(file.suffix.swapcase()))
        return f"{file.suffix} in the other case"
    if kind == 2 and texts:
        text = texts[rng.integers(len(texts))]
        data = bytearray(text.read_bytes())
        for at in rng.integers(0, max(1, len(data)), 3):
            data[at : at + 1] = rng.bytes(1)
        # an empty file of YOLO says that there is nothing to see
        text.write_bytes(bytes(data[: rng.integers(1, len(data) + 1)] if data and rng.random() < 0.5 else data))
        return f"{text} damaged"
    if kind == 3:
        file.unlink()
        return f"{file} deleted"
    if kind == 4:
        file.write_bytes(file.read_bytes()[: 1 + file.stat().st_size // 2])
        return f"{file} cut short"
    if kind == 5 and folders:
        folder = folders[rng.integers(len(folders))]
        (folder / name).mkdir(exist_ok=True)
        for path in [path for path in folder.iterdir() if path.is_file()]:
            path.rename(folder / name / path.name)
        return f"files of {folder} one folder deeper, {name!r}"
    if kind == 6:
        new = file.with_name(f"{name[:60]}{file.suffix}")
        if not new.exists() and file.suffix not in TEXTS:
            file.rename(new)
        return f"{file} renamed to {name!r}"
    if kind == 7:
        shutil.copy(file, file.with_name(f"{file.stem[:100]}_mask{file.suffix}"))
        return f"{file} copied to ..._mask"
    shutil.copy(file, root / f"stray{rng.integers(10**9)}{file.suffix}")
    return f"{file} copied to the root"


def is_defective(pixels: np.ndarray) -> bool:
    return bool(np.median(np.sort(pixels.ravel())[:30]) < 70)


def never_misread(name: str, root: Path, seed: int) -> str:
    rng = np.random.default_rng([seed, *name.encode()])
    place = TREES[name](root)
    if place.is_file():
        place = place.parent
    done = [change(place, rng) for _ in range(rng.integers(1, 4))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sets = load_datasets(place)
    except InputError:
        return "refused"
    for dataset in sets.values():
        account = dataset.account
        assert sum(account.used.values()) + len(account.unused) == account.files, done
        for row in dataset.table:
            try:
                pixels = row.image()
            except ImageError:
                continue
            if row.label == 0:
                assert len(np.unique(pixels)) > 2, (row, done)
                assert not is_defective(pixels), (row, done)
    return "read"


@pytest.mark.parametrize("name", TREES)
def test_a_damaged_data_set_is_never_misread(tmp_path: Path, name: str) -> None:
    for seed in range(6):
        never_misread(name, tmp_path / str(seed), seed)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", TREES)
def test_many_damaged_data_sets_are_never_misread(tmp_path: Path, name: str) -> None:
    seeds = int(os.environ.get("PICKGLASS_FUZZ", "24"))
    for seed in range(100, 100 + seeds):
        never_misread(name, tmp_path / str(seed), seed)
        shutil.rmtree(tmp_path / str(seed))
