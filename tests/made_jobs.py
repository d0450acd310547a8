"""Updates that have come to their end, for tests of what is decided afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["ready_job"]

_THEN = {"id": "a", "version": 1, "image_threshold": 1.5, "unsure_threshold": None, "pixel_threshold": 2.0}
_UPDATE = {
    **dict.fromkeys(("false_alarms_before", "false_alarms", "bad_found_before", "bad_found")),
    **{"learned": 3, "known": 0, "held_back": 0, "suspicious": [], "marks": {"learned_bad": []}},
    "sentence": "about 5 % of good parts will be flagged",
}


def ready_job(
    folder: Path,
    served: Path,
    lab: Path,
    lost: int = 0,
    images: Sequence[Any] = (),
    candidates: dict[str, bytes] | None = None,
) -> str:
    """Make a job that waits for a decision, and return its name.

    Args:
        folder: of all jobs.
        served, lab: the model, and the one that it was exported of.
        lost: number of known bad images that would be missed.
        images: marked images before and after.
        candidates: what would replace the files, by suffix; None: the old content behind the word new.
    """
    name = "20260102T030405-0a1b2c"
    job = folder / name
    job.mkdir()
    files = {path.suffix: path for path in (served, lab)}
    request = {
        "served": str(served.absolute()),
        "lab": str(lab.absolute()),
        "sha256": {str(path.absolute()): hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()},
        "user": "Ann",
        "time": "2026-01-02T03:04:05+00:00",
        "compute": {},
    }
    (job / "request.json").write_text(json.dumps(request))
    for suffix, path in files.items():
        content = b"new " + path.read_bytes() if candidates is None else candidates[suffix]
        (job / f"candidate{suffix}").write_bytes(content)
    outcome = {
        "update": {**_UPDATE, "bad_lost": [f"{served.parent}/x.png"] * lost},
        "images": list(images),
        "before": _THEN,
        "after": {**_THEN, "id": "b", "version": 2, "image_threshold": 2.5},
        "notes": [],
    }
    (job / "result.json").write_text(json.dumps(outcome))
    return name
