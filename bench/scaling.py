"""How do time, memory and files grow: with images, pixels, tiles, threads, patches of a bank, files and cells?

    python -m bench run scaling [--courses NAME...] [--methods NAME...] [--large] [-o FILE.jsonl]

A course varies one thing, about fourfold from step to step; a case is one of its steps and one method. ``--large`` adds
the steps that take minutes or gigabytes. All images are generated: a rough surface, the same one for every run.

Each part of a case (fit, predict, export, test ...) has a process of its own, forked from one that has imported all,
which first does the same with a few images, so that compiling is over, too. ``cpu_s`` are the CPU seconds of that
process, of all its threads; ``wall_s`` hangs on what else the machine does. ``peak_mb`` is the most memory that the
process held while it worked, ``base_mb`` what it held before. OMP_NUM_THREADS is 1 and one thread decodes, but in the
course ``threads``.

The exponents are slopes of log seconds over log steps by least squares, with the 95 % interval of Student's t; beside
them stands that of the last step alone, for small sizes are ruled by what does not grow.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.harness import Case, Record, Suite, markdown

Array = npt.NDArray[Any]
Part = dict[str, Any]
Size = tuple[int, int]  # (H, W)

LEARNED = 16  # images of a fit whose number does not vary
WARM = 4  # images of the work that does not count
MEGA = 1_000_000
PARTS = {"cpu_s": "CPU, s", "peak_mb": "peak, MB", "file_mb": "file, MB"}


# -- images ------------------------------------------------------------------------------------------------------------


def surface(i: int, size: Size, bad: bool = False) -> tuple[Array, Array]:
    """Make image ``i`` of a rough surface, (H, W, 3) uint8, and the mask (H, W) of its defect, a dark square.

    All images are cut out of one texture of 512 x 512 pixels, at places and of a brightness of their own.
    """
    from pickglass.testing import textures

    if not _TEXTURE:
        _TEXTURE.append(textures(1, 512)[0])
    rng = np.random.default_rng(i)
    down, right = rng.integers(0, 512, 2)
    rows, columns = (np.arange(n) + start for n, start in zip(size, (down, right), strict=True))
    image = _TEXTURE[0][rows % 512][:, columns % 512]
    mask = np.zeros(size, np.uint8)
    if bad:
        side = max(4, min(size) // 16)
        y, x = (int(rng.integers(0, n - side)) for n in size)
        mask[y : y + side, x : x + side] = 255
    light = np.uint8(rng.integers(0, 6))
    return np.where(mask[..., None] > 0, image // 2, image + light), mask


_TEXTURE: list[Array] = []


def draw(root: Path, train: int, test: int, size: Size) -> Path:
    """Write a data set in MVTec AD's layout, JPEG and masks; a quarter of the test images have a defect."""
    for i in range(train):
        _write(root / f"train/good/{i:06}.jpg", surface(i, size)[0])
    for i in range(test):
        bad = i % 4 == 3
        image, mask = surface(1_000_000 + i, size, bad)
        _write(root / f"test/{'dark' if bad else 'good'}/{i:06}.jpg", image)
        if bad:
            _write(root / f"ground_truth/dark/{i:06}_mask.png", mask)
    return root


def _write(path: Path, pixels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90)  # of JPEG


def files(root: str | Path, part: str) -> list[str]:
    return [str(path) for path in sorted(Path(root, part).glob("*/*.jpg"))]


# -- what is measured, each in a process of its own --------------------------------------------------------------------


PRELOADED = ["torch", "pickglass.app.predict", "pickglass.app.testing.test", "pickglass.methods", "bench.scaling"]


def forked(function: Callable[..., Part], *arguments: Any, threads: int = 1) -> Part:
    """Call a function in a process of its own, and return what it returns, or {"error": why there is nothing}."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    told, telling = context.Pipe(duplex=False)
    process = context.Process(target=_told, args=(telling, threads, function, arguments))
    process.start()
    telling.close()
    try:
        found: Part = told.recv()
    except EOFError:  # killed, e.g. for want of memory
        found = {"error": "the process was killed"}
    process.join()
    return found


def _told(telling: Connection, threads: int, function: Callable[..., Part], arguments: Sequence[Any]) -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        found = function(*arguments)
    except Exception as error:  # a refusal, too, is an answer: too large a file, too little memory
        found = {"error": f"{type(error).__name__}: {error}"}
    telling.send(found)


def clocked(work: Callable[[], Any]) -> Part:
    """Do some work, and say what it took."""
    from pickglass.app.jobs.peak import peak_mb, reset_peak

    gc.collect()
    reset_peak()
    base = _resident_mb()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = peak_mb()
    assert peak is not None, "memory is counted on Linux alone"
    return {"cpu_s": round(cpu, 3), "wall_s": round(wall, 3), "base_mb": round(base), "peak_mb": round(peak)}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def megabytes(path: str | Path) -> float:
    return round(Path(path).stat().st_size / 1e6, 2)


def detector(method: str, size: int | str, tile: int | None = None) -> Any:
    import pickglass as pg

    made: dict[str, Callable[[], Any]] = {
        "PatchCore": lambda: pg.PatchCore(size=size),
        "PaDiM": lambda: pg.PaDiM(size=size),
        "PaDiM, tiled": lambda: pg.PaDiM().tiled(size, tile or 128, tile or 128),
        "PatchCore, tiled": lambda: pg.PatchCore().tiled(size, tile or 128, tile or 128),
        "FastFlow, 1 epoch": lambda: pg.FastFlow(size=size, epochs=1, pick="last"),
        "EfficientAD, 50 steps": lambda: pg.EfficientAD(size=size, steps=50),
    }
    return made[method]()


def fit(method: str, root: str, size: int | str, tile: int | None, model: str) -> Part:
    made, images = detector(method, size, tile), files(root, "train")
    workers = int(os.environ["OMP_NUM_THREADS"])
    made.fit(images[:WARM], workers=workers)  # the engine is kept
    found = clocked(lambda: made.fit(images, workers=workers))
    made.save(model)
    return {**found, "file_mb": megabytes(model)}


def predict(root: str, model: str) -> Part:
    import pickglass as pg
    from pickglass.app.predict import predict as judge
    from pickglass.runtime.compute import ComputeOptions

    images, made = files(root, "test"), pg.load(model)
    run = ComputeOptions(workers=int(os.environ["OMP_NUM_THREADS"]))
    judge(made, images[:WARM], compute=run)
    return clocked(lambda: judge(made, images, compute=run))


def export(root: str, model: str) -> Part:
    import pickglass as pg

    made, target = pg.load(model), Path(root, "model.onnx")
    assert isinstance(made, pg.Detector)
    found = clocked(lambda: made.export(target, files(root, "test")[:WARM]))
    return {**found, "file_mb": megabytes(target)}


def tested(root: str, model: str) -> Part:
    from pickglass.app.testing.test import test
    from pickglass.runtime.compute import ComputeOptions

    page = Path(root, "report.html")
    found = clocked(lambda: test(model, root, page, compute=ComputeOptions(workers=1)))
    return {**found, "file_mb": megabytes(page)}


def pictures(root: str, model: str) -> Part:
    """What ``predict -o`` writes: heat maps and masks at the size of the images, and tables."""
    from pickglass.app.predict import predict as judge
    from pickglass.runtime.compute import ComputeOptions

    return clocked(lambda: judge(model, files(root, "test"), Path(root, "out"), compute=ComputeOptions(workers=1)))


def banked(members: int, root: str, model: str) -> Part:
    """Choose so many of twice as many patches, as a fit of PatchCore does."""
    import torch

    from pickglass.nn.search.coreset import greedy_coreset

    patches = torch.randn(2 * members, 128, generator=torch.Generator().manual_seed(0))
    greedy_coreset(patches[:1000], 100)
    return clocked(lambda: greedy_coreset(patches, members))


def with_bank(members: int, root: str, model: str) -> Part:
    """Write a PatchCore whose bank has so many members, drawn around those that it has learned."""
    import torch

    made = detector("PatchCore", 256)
    made.fit(files(root, "train"), workers=1)
    rng = torch.Generator().manual_seed(0)
    bank, made.owners = made.bank, None
    drawn = bank[:, torch.randint(bank.shape[1], (members,), generator=rng)]
    made.bank = drawn + 0.1 * drawn.std() * torch.randn(drawn.shape, generator=rng)
    made.origins = made.origins[:, torch.zeros(members, dtype=torch.long)]  # (P, M, 2)
    found = clocked(lambda: made.save(model))
    return {**found, "file_mb": megabytes(model)}


def evaluated(number: int, side: int) -> Part:
    """Compute all metrics of so many maps at ``side`` x ``side`` pixels; a quarter have a defect."""
    from pickglass.app.testing.evaluate import evaluate
    from pickglass.data import Row
    from pickglass.result import Found, Prediction

    rng = np.random.default_rng(0)
    maps = rng.random((8, 32, 32), np.float32)
    mask = np.zeros((side, side), np.bool_)
    mask[side // 4 : side // 4 + side // 16, side // 2 : side // 2 + side // 16] = True

    def one(i: int) -> Found:
        bad = i % 4 == 3
        row = Row(f"array:{i}", label=int(bad), defect="dark" if bad else None, mask=mask if bad else None)
        return Found(row, float(i % 7 + 3 * bad), maps[i % 8] + np.float32(i / number), (side, side))

    evaluate(Prediction(tuple(one(i) for i in range(8))))
    found = Prediction(tuple(one(i) for i in range(number)))
    return clocked(lambda: evaluate(found))


def calibrated(number: int) -> Part:
    """Set a threshold by the scores of so many good images, and say how rare the scores of as many others are."""
    from pickglass.calibration import Evidence, Wish, promised

    scores = np.random.default_rng(0).gamma(9, size=2 * number)
    good, others = scores[:number].tolist(), scores[number:].tolist()

    def work() -> None:
        calibration = promised(Evidence(good, good, [f"part {i // 2}" for i in range(number)]), Wish(false_alarm=0.2))
        for score in others:
            calibration.verdict(score)
            calibration.p_value(score)

    return clocked(work)


def listed(number: int, root: str) -> Part:
    from pickglass.data import load_dataset

    def work() -> None:
        assert load_dataset(root).account.files == number

    return clocked(work)


def described(number: int, root: str) -> Part:
    """What ``info --json`` says of a folder."""
    import json

    from pickglass.data import describe, load_dataset

    return clocked(lambda: json.dumps(describe(load_dataset(root))))


def studied(number: int, root: str) -> Part:
    """Keep the books of a study of so many cells, eight to a backbone pass, and write its table and page."""
    from pickglass.app.jobs.executors import Event, Where
    from pickglass.app.study import study as studies
    from pickglass.app.study.store import Outcome

    class Instant:
        """Does each cell in no time."""

        def run(self, function: Any, take: Callable[[], Any]) -> Iterator[Any]:
            while (task := take()) is not None:
                for cell in task.cells:
                    values = {name: 0.5 for name in ("image_auroc", "aupro_30", "total_s")}
                    yield Event(task, Outcome(cell.key, "done", values))
                yield Event(task, ended=True)

    class Here(Where):
        def make(self) -> Any:
            return Instant()

    request = studies.StudyRequest(
        methods=["padim"], layers=["stage2"], sizes=[32 * (1 + i) for i in range(number // 8)], seeds=8
    )
    out = studies.StudyFiles(Path(root, "cells.csv"), Path(root, "study.html"))
    file = Path(root, "study.db")
    found = clocked(lambda: studies.study([root], file, request, files=out, where=Here()))
    return {**found, "file_mb": megabytes(file)}


# -- courses -----------------------------------------------------------------------------------------------------------


class Course(NamedTuple):
    """One thing varies.

    Attributes:
        axis: what varies, for people.
        methods: by name; what is no detector has the name of what is done.
        steps: what is measured by default.
        large: what ``--large`` adds.
        measure: (method, step, folder) -> part -> what it took.
    """

    axis: str
    methods: Sequence[str]
    steps: Sequence[int]
    large: Sequence[int]
    measure: Callable[[str, int, Path], dict[str, Part]]


ALL = ("PatchCore", "PaDiM", "PaDiM, tiled", "FastFlow, 1 epoch", "EfficientAD, 50 steps")


def _fit_and_predict(
    method: str,
    folder: Path,
    numbers: tuple[int, int],
    size: Size,
    canvas: int | str,
    tile: int | None = None,
    threads: int = 1,
) -> dict[str, Part]:
    root, model = draw(folder, *numbers, size), folder / "model.safetensors"
    found = {"fit": forked(fit, method, root, canvas, tile, model, threads=threads)}
    if "error" not in found["fit"]:
        found["predict"] = forked(predict, root, model, threads=threads)
    return found


def by_images(method: str, n: int, folder: Path) -> dict[str, Part]:
    return _fit_and_predict(method, folder, (n, n), (128, 128), 128, 64)


def by_pixels(method: str, pixels: int, folder: Path) -> dict[str, Part]:
    return _fit_and_predict(method, folder, (LEARNED, LEARNED), square(pixels), "native", 256)


def by_decoding(method: str, pixels: int, folder: Path) -> dict[str, Part]:
    root, model = draw(folder, 8, 8, square(pixels)), folder / "model.safetensors"
    found = {"fit": forked(fit, method, root, "area:512", None, model)}
    for name, part in (("predict", predict), ("test", tested), ("predict -o", pictures)):
        found[name] = forked(part, root, model)
    return found


def by_tiles(method: str, n: int, folder: Path) -> dict[str, Part]:
    rows = math.isqrt(n)
    while n % rows:
        rows -= 1
    size = (64 * rows, 64 * n // rows)
    root, model = draw(folder, LEARNED, LEARNED, size), folder / "model.safetensors"
    return {
        "fit": forked(fit, method, root, "native", 64, model),
        "predict": forked(predict, root, model),
    }


def by_threads(method: str, n: int, folder: Path) -> dict[str, Part]:
    return _fit_and_predict(method, folder, (64, 64), (256, 256), 256, 128, threads=n)


def by_bank(method: str, members: int, folder: Path) -> dict[str, Part]:
    root, model = draw(folder, LEARNED, 8, (256, 256)), folder / "model.safetensors"
    found = {
        "choose": forked(banked, members, root, model),
        "save": forked(with_bank, members, root, model),
    }
    return found | {"predict": forked(predict, root, model), "export": forked(export, root, model)}


def by_tested(method: str, n: int, folder: Path) -> dict[str, Part]:
    root, model = draw(folder, LEARNED, n, (64, 64)), folder / "model.safetensors"
    forked(fit, method, root, 64, None, model)
    return {"test": forked(tested, root, model)}


def by_maps(method: str, n: int, folder: Path) -> dict[str, Part]:
    return {"evaluate": forked(evaluated, n, 512)}


def by_scores(method: str, n: int, folder: Path) -> dict[str, Part]:
    return {"threshold": forked(calibrated, n)}


def by_files(method: str, n: int, folder: Path) -> dict[str, Part]:
    from bench.listing import draw as tree

    tree(folder / "many", n)
    return {
        "list": forked(listed, n, folder / "many"),
        "info": forked(described, n, folder / "many"),
    }


def by_cells(method: str, n: int, folder: Path) -> dict[str, Part]:
    return {"study": forked(studied, n, draw(folder, 4, 4, (64, 64)))}


def square(pixels: int) -> Size:
    """About as many pixels at 3:4 where they are no square number, as cameras have them."""
    side = math.isqrt(pixels)
    return (
        (side, side) if side * side == pixels else (math.isqrt(pixels * 3 // 4), pixels // math.isqrt(pixels * 3 // 4))
    )


COURSES = {
    "images": Course("images of 128 x 128 px", ALL, (50, 150, 500), (1500, 5000), by_images),
    "pixels": Course(
        "pixels an image, read as they are, 16 images",
        ALL,
        (256**2, 512**2, 1024**2),
        (2048**2, 4096**2),
        by_pixels,
    ),
    "decoding": Course(
        "pixels an image, read on the usual canvas, 8 images",
        ("PatchCore",),
        (256**2, 1024**2, 4096**2),
        (108 * MEGA,),
        by_decoding,
    ),
    "tiles": Course(
        "tiles of 64 x 64 px, 16 images", ("PaDiM, tiled", "PatchCore, tiled"), (1, 4, 16, 64), (192,), by_tiles
    ),
    "threads": Course(
        "threads, 64 images of 256 x 256 px",
        ("PatchCore",),
        (1, 2, 4, 8),
        (),
        by_threads,
    ),
    "bank": Course(
        "members of a bank of 128 channels", ("PatchCore",), (500, 2500, 10_000), (50_000, 100_000), by_bank
    ),
    "report": Course("images tested, 64 x 64 px", ("PatchCore",), (50, 150, 500), (1500, 5000), by_tested),
    "metrics": Course("maps of 512 x 512 px", ("all metrics",), (50, 150, 500), (1500, 5000), by_maps),
    "threshold": Course("scores", ("tolerance",), (500, 5000, 50_000), (), by_scores),
    "files": Course("files of a folder", ("folder",), (1000, 10_000, 100_000), (), by_files),
    "cells": Course("cells of a study", ("books, table and page",), (80, 320, 1280), (5120,), by_cells),
}


def measured(course: str, method: str, step: int) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = "1"  # before the process that all are forked from begins
    with tempfile.TemporaryDirectory() as folder:
        return {"parts": COURSES[course].measure(method, step, Path(folder))}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--courses", nargs="+", choices=list(COURSES), default=list(COURSES))
    parser.add_argument("--methods", nargs="+", help="those of a course alone; by default all")
    parser.add_argument("--large", action="store_true")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for name in given.courses:
        course = COURSES[name]
        for step in (*course.steps, *(course.large if given.large else ())):
            for method in course.methods:
                if given.methods is None or method in given.methods:
                    key = {"course": name, "method": method, "step": step}
                    yield Case(key, partial(measured, name, method, step))


# -- exponents ---------------------------------------------------------------------------------------------------------


class Growth(NamedTuple):
    """A figure grows with this power of what varies: least squares with its 95 % interval, and the last step's."""

    power: float
    half: float  # of the interval; nan of two points
    last: float


def growth(steps: Sequence[float], values: Sequence[float]) -> Growth:
    """Fit the exponent of a curve of two points or more.

    >>> growth([1, 2, 4], [3, 6, 12])
    Growth(power=1.0, half=0.0, last=1.0)
    """
    from pickglass.calibration.distributions import t_quantile

    x, y = np.log(np.asarray(steps, np.float64)), np.log(np.asarray(values, np.float64))
    centred = x - x.mean()
    spread = float(centred @ centred)
    power = float(centred @ y) / spread
    left = y - y.mean() - power * centred
    free = len(x) - 2
    half = math.nan if free < 1 else t_quantile(0.975, free) * math.sqrt(float(left @ left) / free / spread)
    last = float((y[-1] - y[-2]) / (x[-1] - x[-2]))
    return Growth(round(power, 6), round(half, 6), round(last, 6))


class Curve(NamedTuple):
    """One part of a course with one method: steps, and by the name of a figure its values."""

    course: str
    method: str
    part: str
    steps: list[int]
    figures: dict[str, list[float]]


def curves(rows: Sequence[Record]) -> list[Curve]:
    """Gather the curves of records, in the order of the courses."""
    found: dict[tuple[str, str, str], Curve] = {}
    for row in sorted(rows, key=lambda row: (list(COURSES).index(row["course"]), row["step"])):
        for part, took in row["parts"].items():
            if "error" in took:
                continue
            key = (row["course"], row["method"], part)
            curve = found.setdefault(key, Curve(*key, [], {}))
            curve.steps.append(row["step"])
            for name, value in took.items():
                curve.figures.setdefault(name, []).append(value)
    return [curve for curve in found.values() if len(curve.steps) > 1]


def short(n: float) -> str:
    """Write a number with three digits and its thousands.

    >>> short(4194304), short(1500), short(0.1234)
    ('4.19 M', '1,500', '0.123')
    """
    if n >= MEGA:
        return f"{n / MEGA:.3g} M"
    return f"{n:,.0f}" if n >= 100 else f"{n:.3g}"


def table(rows: list[Record]) -> str:
    heads = ["what varies", "method", "part", "from", "to", "CPU, s", "exponent", "last step", "peak, MB", "file, MB"]
    lines = []
    for curve in curves(rows):
        figures = curve.figures
        seconds = growth(curve.steps, figures["cpu_s"])
        half = "" if math.isnan(seconds.half) else f" ± {seconds.half:.2f}"
        files = figures.get("file_mb")
        lines.append(
            [
                COURSES[curve.course].axis,
                curve.method,
                curve.part,
                short(curve.steps[0]),
                short(curve.steps[-1]),
                f"{short(figures['cpu_s'][0])} → {short(figures['cpu_s'][-1])}",
                f"{seconds.power:.2f}{half}",
                f"{seconds.last:.2f}",
                f"{short(figures['peak_mb'][0])} → {short(figures['peak_mb'][-1])}",
                None if files is None else f"{short(files[0])} → {short(files[-1])}",
            ]
        )
    return markdown(heads, lines)


SUITE = Suite(cases, arguments, {"": table})
