"""The process of a job: it updates a copy of the model, judges the marked images with both, and writes what came of it.

``python -m pickglass.app.marking.worker FOLDER``; see :mod:`pickglass.app.marking.teach` for what the folder holds.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from pickglass.data.files import written_whole
from pickglass.errors import PickglassError

__all__ = ["main", "with_thresholds_of"]

_EVERY = 0.2  # seconds between two lines about the progress


def main(folder: Path) -> None:
    """Do the job of a folder, and write ``result.json`` there, whatever comes of it."""
    # held until the process ends, however that comes about
    lock = sqlite3.connect(folder / "alive", timeout=5, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    if hasattr(os, "nice"):
        os.nice(5)  # the page goes first
    try:
        outcome = _taught(folder, json.loads((folder / "request.json").read_text()))
    except PickglassError as error:
        outcome = {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        outcome = {"error": f"the update failed ({type(error).__name__}); errors.txt in its folder says more"}
    if "error" in outcome:
        for candidate in folder.glob("candidate.*"):
            candidate.unlink()
    with written_whole(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(outcome))
    lock.close()


def _taught(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    from pickglass.app.marking.images import MarkedImages
    from pickglass.app.marking.table import read_marks
    from pickglass.app.update import update
    from pickglass.data import DataSource, Row, Table
    from pickglass.methods import load
    from pickglass.runtime.compute import ComputeOptions

    progress = _Progress()
    compute = ComputeOptions(**request["compute"])
    if compute.engine == "onnxruntime":  # it runs exported models alone, and this one is the lab's
        compute = replace(compute, engine="auto")
    served, lab = Path(request["served"]), Path(request["lab"])
    base = with_thresholds_of(served, lab, folder)
    before = load(base)
    candidate = folder / "candidate.safetensors"
    result = update(
        base,
        None,
        candidate,
        marks=MarkedImages(DataSource(folder / "marks.csv")),
        compute=compute,
        progress=progress,
    )
    after = load(candidate)
    with read_marks(folder / "marks.csv") as store:
        marks = {mark.path: mark for mark in store.current()}
    judged = {one["path"]: dict(one) for one in (*result["images"], *result["bad"])}
    rest = Table([Row(path) for path in marks if path not in judged])
    if rest:  # unsure ones, and good ones that the model knew before
        pairs = [model.predict(rest, progress=progress, **compute.arguments()) for model in (before, after)]
        scores = [{found.row.path: found.score for found in one} for one in pairs]
        for path in scores[0].keys() & scores[1].keys():
            values = [one[path] for one in scores]
            verdicts = [
                None if model.calibration is None else model.calibration.verdict(value)
                for model, value in zip((before, after), values, strict=True)
            ]
            judged[path] = {
                "score_before": values[0],
                "verdict_before": verdicts[0],
                "score": values[1],
                "verdict": verdicts[1],
                "judged": "known" if marks[path].counts_as == "good" else str(marks[path].counts_as),
            }
    images = [
        {**judged[path], "path": None, "sha256": mark.digest, "mark": mark.counts_as, "type": mark.type}
        for path, mark in marks.items()
        if path in judged
    ]
    notes = _exported(candidate, served, progress) if served.suffix == ".onnx" else []
    if base != lab:
        base.unlink()
        notes.append(
            f"the update went on from the thresholds of {served.name}, which are newer than those of {lab.name}"
        )
    return {"update": result, "images": images, "before": _about(before), "after": _about(after), "notes": notes}


def with_thresholds_of(served: Path, lab: Path, folder: Path) -> Path:
    """Return the model to update; where thresholds of the exported file were changed since, a copy that has them."""
    if served.suffix != ".onnx":
        return lab
    from pickglass.calibration import Calibration, Change
    from pickglass.methods import load
    from pickglass.runtime.export_file import read_export_header

    header = read_export_header(served)
    history = tuple(Change(**change) for change in header["history"])
    detector = load(lab)
    known = len(detector.history)
    if len(history) <= known or history[:known] != detector.history or header["calibration"] is None:
        return lab
    detector.calibration, detector.history = Calibration.from_json(header["calibration"]), history
    return detector.save(folder / "base.safetensors")


def _exported(candidate: Path, served: Path, progress: Any) -> list[str]:
    """Export the candidate as the served file was, and return what is to be known of that."""
    from pickglass.app.export import export
    from pickglass.runtime.export_file import read_export_header

    header = read_export_header(served)
    precision = header.get("precision", "float32")
    export(
        candidate,
        candidate.with_suffix(".onnx"),
        batch=header["batch"],
        input_form=header["input"],
        map_form=header["map"],
        keep=header["keep"],
        precision=precision,
        progress=progress,
    )
    if precision == "float32":
        return []
    return [
        f"{served.name} is exported in {precision}: its thresholds are those of the model file, and promise nothing "
        "until they are set anew on good images ('pickglass threshold')"
    ]


def _about(detector: Any) -> dict[str, Any]:
    calibration = detector.calibration
    return {
        "id": detector.model_id(),
        "version": detector.model_version,
        "image_threshold": None if calibration is None else calibration.image_threshold,
        "unsure_threshold": None if calibration is None else calibration.unsure_threshold,
        "pixel_threshold": None if calibration is None else calibration.pixel_threshold,
    }


class _Progress:
    """Tells how far it is, a JSON line each; not more often than people read."""

    def __init__(self) -> None:
        self._told = ("", 0.0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._told[0] or done == total or now - self._told[1] >= _EVERY:
            self._told = (stage, now)
            sys.stdout.write(json.dumps({"stage": stage, "done": done, "total": total}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
