"""Everything that waits for a GPU, in one sitting of a quarter of an hour.

    python -m bench.tools.gpu_session DATA OUT --smoke              # a minute: does each job start?
    python -m bench.tools.gpu_session DATA OUT [--minutes 10] [--steps 20000] [--teacher-steps 12000]
        [--photos PHOTOS] [--peer-python PYTHON] [--jobs gpu ead0 ...]

DATA holds the data set ``magnetic_tile``. First, alone, ``gpu``: every method against the CPU, and against the peer on
the same card. Then, side by side, what trains: EfficientAD with the shipped teacher (two seeds), with a jittered
student, with photographs in the penalty, and with a new teacher; SuperSimpleNet, FastFlow and PatchCore at 256 and
512 px; STFPM and Reverse Distillation at 256 px, and the peer's STFPM. Each job writes OUT/JOB.txt, and records to
OUT/JOB.jsonl where it is a suite; what is not done when the minutes are over is stopped, and a further call goes on.
Sixteen cores suffice.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEER = ROOT / "bench" / "peer" / "run_anomalib.py"
CASE = "magnetic_tile"


def commands(given: argparse.Namespace) -> dict[str, list[str]]:
    """Name -> command of each job; ``gpu`` comes first and runs alone."""
    small, out, tiles = given.smoke, given.out, given.out / "tile256"
    python = [sys.executable, "-m"]
    steps, teacher_steps = (12, 10) if small else (given.steps, given.teacher_steps)
    seeds = ["0"] if small else ["0", "1", "2"]
    repeats = ["--repeats", "5" if small else "300"]
    short = ["--set", "epochs=1"] if small else []
    peer = ["--peer-python", str(given.peer_python)] if given.peer_python else []

    def efficientad(name: str, *more: str, seed: int = 0, n: int = steps) -> list[str]:
        where = [str(tiles), str(out / name), "--device", given.device, "--steps", str(n), "--seeds", str(seed)]
        return [*python, "bench.efficientad_gpu", *where, *more]

    def known(size: int, *models: str) -> list[str]:
        name = f"known{size}-{models[0]}"
        where = [str(out / name), "--data", str(given.data), "--size", f"area:{size}", "--models", *models]
        few = ["--set", "epochs=1"] if small and models[0] != "patchcore" else []
        records = ["-o", str(out / f"{name}.jsonl")]
        settings = ["--preset", "default", "--memory-gb", "8", "--seeds", *seeds, *repeats]
        return [*python, "bench", "run", "supersimplenet", *where, *settings, *few, *records]

    def students(method: str) -> list[str]:
        where = [str(tiles), str(out / method), "--methods", method, "--preset", "default", "--seeds", *seeds, *repeats]
        return [*python, "bench", "run", "students", *where, *short, "-o", str(out / f"{method}.jsonl")]

    images = ["--images", "8" if small else "48", "-o", str(out / "gpu.jsonl")]
    jobs = {
        "gpu": [*python, "bench", "run", "gpu", str(given.data / CASE), "--device", given.device, *images, *peer],
        "ead0": efficientad("ead0"),
        "ead1": efficientad("ead1", seed=1),
        "ead-jittered": efficientad("ead-jittered", "--jittered"),
        "known256": known(256, "ssn-0", "ssn-5", "ssn-10"),
        "known512": known(512, "ssn-0", "ssn-10"),
        "fastflow256": known(256, "fastflow"),
        "fastflow512": known(512, "fastflow"),
        "patchcore256": known(256, "patchcore"),
        "patchcore512": known(512, "patchcore"),
        "stfpm": students("stfpm"),
        "reverse_distillation": students("reverse_distillation"),
    }
    if given.photos:
        photos = str(given.photos)
        jobs["ead-photos"] = efficientad("ead-photos", "--natural", photos)
        distil = ["--photos", photos, "--teacher-steps", str(teacher_steps), "--backbone", given.backbone]
        jobs["ead-teacher"] = efficientad("ead-teacher", *distil, n=min(steps, 8000))
    if given.peer_python:
        for seed in seeds:
            layers = ["--layers", "blocks.1", "blocks.2", "blocks.4", "--epochs", "1" if small else "100"]
            where = [str(tiles), "--method", "stfpm", "--seed", seed, "--save", str(out / f"peer_stfpm-{seed}.npz")]
            on = ["--accelerator", "cpu" if given.device == "cpu" else "gpu", "--workers", "2"]
            jobs[f"peer_stfpm-{seed}"] = [str(given.peer_python), str(PEER), *where, *layers, *on]
    return jobs if given.jobs is None else {name: jobs[name] for name in given.jobs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--teacher-steps", type=int, default=12_000)
    parser.add_argument("--photos", type=Path, help="folder of photographs: penalty, and a teacher of its own")
    parser.add_argument("--backbone", default="efficientnet_lite2", help="which the teacher learns from")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", nargs="+")
    given = parser.parse_args()
    for name in ("data", "out", "photos"):
        if getattr(given, name) is not None:
            setattr(given, name, getattr(given, name).absolute())
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    if not (given.out / "tile256").exists():
        squeeze = [sys.executable, "-m", "bench.tools.squeeze", str(given.data / CASE), str(given.out / "tile256")]
        subprocess.run(squeeze, cwd=ROOT, check=True)
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    jobs = commands(given)
    for group in (["gpu"], [name for name in jobs if name != "gpu"]):
        running = {}
        names = [name for name in group if name in jobs]
        threads = "2" if len(names) > 1 else str(os.cpu_count() or 1)
        for name in names:
            with open(given.out / f"{name}.txt", "a") as log:
                environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads}
                running[name] = subprocess.Popen(
                    jobs[name], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
        for name, process in running.items():
            try:
                status = f"ended with {process.wait(max(1.0, end - time.monotonic()))}"
            except subprocess.TimeoutExpired:
                process.kill()
                status = "stopped: the minutes are over"
            print(f"{name}: {status}", flush=True)


if __name__ == "__main__":
    main()
