"""How many files a reader visits to follow a fit or a prediction: the number may fall, and never rises.

A file of the package counts when a function of it is entered during the call, also in the threads that decode. Classes
that only hold data (options, results, tables of constants) have no function to enter. The images are rows of a table,
in memory, as ``load_dataset(...).train`` gives them from files.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

import pickglass as pg
from pickglass.testing import textures

pytestmark = [pytest.mark.slow, pytest.mark.fresh]

SOURCE = Path(pg.__file__).parent

MOST = {"PatchCore.fit": 16, "PatchCore.predict": 10, "a tiled fit": 18, "EfficientAD.fit": 20}


@contextmanager
def traced(files: set[str]) -> Iterator[None]:
    """Functions that are entered inside add their files, named from the package's folder."""
    prefix = f"{SOURCE}/"

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(prefix):
            files.add(frame.f_code.co_filename.removeprefix(prefix))

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


def table(n: int, side: int, role: pg.data.Role = "train") -> pg.Table:  # type: ignore[name-defined]
    return pg.Table([pg.Row(f"array:{i}", role, pixels=image) for i, image in enumerate(textures(n, side))])


def walks() -> dict[str, Callable[[], object]]:
    fitted = pg.PatchCore(size=64)
    tiled = pg.PatchCore().tiled(size=96, tile=64, stride=32)
    trained = pg.EfficientAD(backbone="pdn_tiny", size=64, steps=2)
    good, coming = table(12, 64), table(3, 64, "test")
    return {
        "PatchCore.fit": lambda: fitted.fit(good, device="cpu", engine="torch"),
        "PatchCore.predict": lambda: fitted.predict(coming, device="cpu", engine="torch"),
        "a tiled fit": lambda: tiled.fit(good, device="cpu", engine="torch"),
        "EfficientAD.fit": lambda: trained.fit(good, device="cpu", engine="torch"),
    }


def test_no_more_files_than_before_are_on_the_way() -> None:
    for name, call in walks().items():
        files: set[str] = set()
        with traced(files):
            call()
        listed = "\n  ".join(sorted(files))
        assert len(files) <= MOST[name], f"{name} passes through {len(files)} files, at most {MOST[name]}:\n  {listed}"
        assert not [file for file in files if "research" in file], f"{name} enters research that nobody asked for"
