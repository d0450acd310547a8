"""PatchCore against the peer, in one run on one machine: coreset, fit, predict.

python -m bench.patchcore DATA --peer-python PY --peer-script SCRIPT [--ratio 0.1] prints one JSON line. Both tools get
the same folder (the training images stand in its test folder too, so that prediction is timed on more than a few), the
same weights and 256 px; imports are not counted, the peer's coreset is timed inside its fit. Ours runs twice: the
second fit finds the libraries loaded, as the peer's timer does. Without a peer only our figures are printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pickglass as pg
from pickglass.nn.search.coreset import Coreset, greedy_coreset


def shared_folder(data: Path, out: Path) -> Path:
    """Symbolic links in MVTec AD layout: train as it is, test = test and train."""
    for source in sorted(data.rglob("*.*")):
        inside = source.relative_to(data)
        if source.is_file() and inside.parts[0] in ("train", "test", "ground_truth"):
            link(source, out / inside)
            if inside.parts[0] == "train":
                link(source, out / "test" / "good" / f"train_{inside.name}")
    return out


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def ours(folder: Path, ratio: float) -> dict[str, float]:
    data = pg.load_dataset(folder)
    seconds: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Coreset:
        start = time.perf_counter()
        result = greedy_coreset(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    detector = pg.PatchCore(ratio=ratio)
    with patch("pickglass.methods.patchcore.greedy_coreset", timed):  # the peer's coreset is timed inside its fit, too
        for _ in range(2):
            start = time.perf_counter()
            detector.fit(data, calibrate=0)
            fit_s = time.perf_counter() - start
    bank = detector.provenance.details["bank"]
    speeds = []
    for _ in range(3):
        start = time.perf_counter()
        detector.predict(data.test, batch=16)
        speeds.append(len(data.test) / (time.perf_counter() - start))
    return {"coreset_s": seconds[-1], "fit_s": fit_s, "images_per_s": sorted(speeds)[1], "bank": bank}


def peer(folder: Path, ratio: float, python: str, script: str) -> dict[str, float]:
    wrapper = str(Path(__file__).with_name("peer_run.py"))
    with tempfile.TemporaryDirectory() as scratch:
        command = [python, wrapper, script, f"{scratch}/bank.npy", "--", str(folder), "--ratio", str(ratio)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=scratch).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {key: value for line in lines for key, value in line.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--peer-python")
    parser.add_argument("--peer-script")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = shared_folder(given.data, Path(scratch) / given.data.name)
        result: dict[str, Any] = {"data": given.data.name, "ratio": given.ratio, "ours": ours(folder, given.ratio)}
        if given.peer_python:
            result["peer"] = peer(folder, given.ratio, given.peer_python, given.peer_script)
            result["times_faster"] = {
                "coreset": result["peer"]["coreset_s"] / result["ours"]["coreset_s"],
                "fit": result["peer"]["fit_s"] / result["ours"]["fit_s"],
                "predict": result["ours"]["images_per_s"] / result["peer"]["images_per_s"],
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
