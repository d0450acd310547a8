"""EfficientAD: quality beside PatchCore, steps, penalty images, teachers, both branches on trays, and speed.

    python -m bench run efficientad quality DATA OUT [--model tiny] [--steps 500] [--train N]    beside PatchCore
    python -m bench run efficientad steps DATA OUT [--model tiny]           500, 1000, 2000, 5000 steps
    python -m bench run efficientad penalty DATA OUT --photos PHOTOS        none, generated, photographs
    python -m bench run efficientad teacher DATA OUT --photos PHOTOS [--backbone efficientnet_lite2 ...]
        teachers of 250, 500, 1000 photographs, and of fewer steps
    python -m bench run efficientad explained OUT --photos PHOTOS
        those teachers on photographs that none learned from
    python -m bench run efficientad speed [--device cpu] [--peer-python PY]
        images/s of random weights: what users get of each engine, the networks alone, and the peer's
    python -m bench run efficientad int8 [--model small]
        images/s of the exported graph of random weights in float32 and in int8, in turn, and how far scores are off on
        good images and painted defects

DATA has images of 256 x 256 pixels (bench/tools/squeeze.py, bench/tools/trays.py); OUT keeps scores, maps and teachers.
``speed`` and ``int8`` want a quiet machine.
"""

from __future__ import annotations

import argparse
import copy
import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.harness import Case, Record, Suite, add_peer, markdown, middle, run_peer, turns
from bench.harness.scorer import SIZE, nested, read_tool
from pickglass.app.distill import distill
from pickglass.app.testing.evaluate import evaluate
from pickglass.data import MAX_PIXELS, Prepared, Row, as_table, load_dataset, read_mask, resize_map
from pickglass.detectors.certificate import inputs_of
from pickglass.detectors.onnx_graph import onnx_graph
from pickglass.detectors.precision import Inputs, quantised
from pickglass.features.backbones.weights import read_state
from pickglass.features.distillation import (
    BackboneTeacher,
    DistillSettings,
    explained_variance,
    hold_out,
    read_photographs,
)
from pickglass.features.engine import has_bfloat16
from pickglass.features.extractor import FeatureExtractor
from pickglass.features.teacher_file import read_card
from pickglass.methods import Detector, EfficientAD, PatchCore
from pickglass.metrics import auroc
from pickglass.nn.networks.pdn import CHANNELS, PDN, Autoencoder, PDNName, Student
from pickglass.runtime.compute import ComputeOptions, EngineName
from pickglass.runtime.session import RuntimeName, Session, open_session
from pickglass.testing import textures

PEER = Path(__file__).with_name("peer") / "run_efficientad.py"


# -- quality -----------------------------------------------------------------------------------------------------------


def run_of(given: argparse.Namespace, name: str, make: Callable[[], Detector], **told: Any) -> Case:
    """A case of one fit; ``told`` is what its record says beside the figures."""
    key = {"part": given.what, "data": given.data.name, "run": name, "seed": given.seed}
    return Case(key, lambda: {**told, **measured(given, name, make())})


def measured(given: argparse.Namespace, name: str, detector: Detector) -> dict[str, Any]:
    """Fit and judge; per type the image AUROC and AUPRO, and for two branches those of each."""
    dataset = load_dataset(given.data)
    began = time.perf_counter()
    detector.fit(dataset.train[: given.train], calibrate=0, seed=given.seed)
    fit_s = time.perf_counter() - began
    found = detector.predict(dataset.test)
    given.out.mkdir(parents=True, exist_ok=True)
    saved = given.out / f"{name.replace(' ', '_').replace('/', '_')}.npz"
    paths = np.array([row.path for row in found.rows])
    np.savez_compressed(saved, scores=found.scores, maps=np.stack(found.maps), paths=paths)
    rows = list(dataset.test)
    tool = read_tool(saved, rows)
    line: dict[str, Any] = {"fit_s": round(fit_s, 1), "train": len(dataset.train[: given.train])}
    line["figures"] = nested(tool.figures(np.ones(len(rows), int)))
    if any(row.saturation for row in rows):
        metrics = evaluate(found)
        line["AU-sPRO@0.05"] = {kind: round(own["au_spro_05"] or 0, 4) for kind, own in metrics.by_type.items()}
    parts = [detector.parts_of(item) for item in found]
    for part in parts[0]:
        scores = np.array([own[part].max() for own in parts])
        kinds = np.array([row.defect or "good" for row in found.rows])
        labels = np.array([row.label for row in found.rows])
        line[f"{part} branch, image AUROC"] = {
            kind: round(float(auroc(labels[chosen], scores[chosen])), 4)
            for kind in sorted(set(kinds) - {"good"})
            for chosen in [(kinds == kind) | (labels == 0)]
        }
        inside = [
            float(resize_map(own[part], SIZE)[mask].max() - np.quantile(own[part], 0.99))
            for own, row in zip(parts, found.rows, strict=True)
            if row.mask is not None
            for mask in [read_mask(row.mask, SIZE)]
        ]
        line[f"{part} branch, share of defects above the image's 0.99 quantile"] = float(np.mean(np.array(inside) > 0))
    return line


def efficientad(given: argparse.Namespace, **changes: Any) -> Callable[[], Detector]:
    settings = {"backbone": f"pdn_{given.model}", "steps": given.steps, "lr": given.lr, **changes}
    if given.weights:
        settings.setdefault("weights", given.weights)
    return lambda: EfficientAD(**settings)


def quality(given: argparse.Namespace) -> Iterator[Case]:
    yield run_of(given, "patchcore", PatchCore)
    yield run_of(given, f"efficientad {given.model} {given.steps}", efficientad(given), steps=given.steps)


def steps(given: argparse.Namespace) -> Iterator[Case]:
    for n in (500, 1000, 2000, 5000):
        yield run_of(given, f"efficientad {given.model} {n}", efficientad(given, steps=n), steps=n)


def penalty(given: argparse.Namespace) -> Iterator[Case]:
    for name, natural in (("none", "none"), ("generated", "generated"), ("photos", str(given.photos))):
        make = efficientad(given, natural=natural)
        yield run_of(given, f"penalty {name} {given.model} {given.steps}", make, penalty=name)


def teacher(given: argparse.Namespace) -> Iterator[Case]:
    """Is data or time the limit: teachers of fewer photographs, and of fewer steps."""
    given.out.mkdir(parents=True, exist_ok=True)
    cells = [(n, given.teacher_steps) for n in given.limits]
    cells += [(max(given.limits), given.teacher_steps // d) for d in given.shorter]
    for photos, n in cells:
        file = given.out / f"pdn_{given.model}-{photos}-{n}.safetensors"
        told: dict[str, Any] = {"photos": photos, "teacher_steps": n}
        if not file.exists() or file.with_suffix(".training.safetensors").exists():
            learning = DistillSettings(given.backbone, given.layers.split("+"), model=given.model, steps=n, lr=2e-3)
            result = distill(given.photos, file, learning, limit=photos)
            told["explained_variance"] = result["explained_variance"]
        make = efficientad(given, weights=str(file))
        yield run_of(given, f"teacher {photos} {n} {given.model} {given.steps}", make, **told)


def explained(given: argparse.Namespace) -> Iterator[Case]:
    """The mean explained variance of each teacher in OUT on the same photographs, which none of them learned from.

    Each holds out others of its own; the targets are brought to mean 0 and deviation 1 as they were for it.
    """
    everything = as_table(given.photos, role="train")
    photos = read_photographs(everything, 2, MAX_PIXELS)
    fitted: dict[Path, tuple[dict[str, Any], list[Any]]] = {}
    unseen = {id(photo) for photo in photos}
    for file in sorted(given.out.glob("pdn_*.safetensors")):
        card = read_card(file)
        _, fit = hold_out(photos[: card["photos"]], card["seed"])
        fitted[file] = card, fit
        unseen -= {id(photo) for photo in fit}
    held = [photo for photo in photos if id(photo) in unseen]
    for file, (card, fit) in fitted.items():
        source = BackboneTeacher(FeatureExtractor(card["backbone"], card["layers"]), "cpu", "auto", card["crop"])
        source.learn_statistics(fit, card["seed"])
        pdn = PDN(card["model"]).eval()
        pdn.load_state_dict({name: tensor.float() for name, tensor in read_state(file).items()})
        share = round(explained_variance(pdn, source, held)["mean"], 4)
        key = {"part": "explained", **{k: card[k] for k in ("photos", "steps")}}
        yield Case(key, partial(dict, judged_on=len(held), explained=share))


# -- speed -------------------------------------------------------------------------------------------------------------


def speed(given: argparse.Namespace) -> Iterator[Case]:
    yield Case({"part": "speed", "model": given.model, "device": given.device}, lambda: rates(given))


def rates(given: argparse.Namespace) -> dict[str, Any]:
    """Images a second of random weights at 256 px, and the share of the matrix products' peak that they reach."""
    device = torch.device(given.device)
    result: dict[str, Any] = {}
    peaks = {name: _peak(device, dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
    result["peak GFLOP/s"] = {name: round(value / 1e9) for name, value in peaks.items()}
    detector = EfficientAD(backbone=f"pdn_{given.model}", weights="random", natural="none", steps=1)
    good = np.random.default_rng(0).integers(0, 255, (10, 256, 256, 3), dtype=np.uint8)
    detector.fit(good, calibrate=0, device=given.device)
    networks = {
        "EfficientAD": (detector, _flops(given.model, whole=True)),
        "PDN alone": (PDN(given.model).eval().to(device), _flops(given.model, whole=False)),
    }
    for name, (network, flops) in networks.items():
        for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            runs = {f"torch {precision}": _torch_runner(network, device, dtype)}
            if given.device == "cpu":
                runs[f"openvino {precision}"] = _openvino_runner(network, precision)
            for engine, run in runs.items():
                for batch in (1, 16):
                    images = torch.rand(batch, 3, 256, 256)
                    rate = _rate(run, images, device)
                    result[f"{name}, {engine}, batch {batch}"] = _figures(rate, flops, peaks[precision])
    for engine in _engines(given.device):
        precision = "bfloat16" if engine == "bfloat16" else "float32"
        for batch in (1, 16):
            rate = _rate(_judging(detector, given.device, engine), torch.rand(batch, 3, 256, 256), device)
            name = f"EfficientAD as predict judges, engine {engine}, batch {batch}"
            result[name] = _figures(rate, networks["EfficientAD"][1], peaks[precision])
    if given.peer_python:
        result["peer"] = run_peer(given.peer_python, given.model, script=PEER)
    return result


def int8(given: argparse.Namespace) -> Iterator[Case]:
    yield Case({"part": "int8", "model": given.model}, lambda: exported_rates(given.model))


def exported_rates(model: PDNName) -> dict[str, Any]:
    """The exported graph, one image at a time; its ranges are of good images, or of painted defects, too."""
    detector = EfficientAD(backbone=f"pdn_{model}", weights="random", natural="none", steps=1)
    good = textures(12, 256)
    detector.fit(good, calibrate=0, device="cpu")
    own = copy.deepcopy(detector).to("cpu").eval()
    rows = [Row(f"array:{i}", pixels=image) for i, image in enumerate(good)]

    def shown(painted: bool, seed: int) -> list[Inputs]:
        return [inputs for _, inputs in inputs_of(own, rows, 1, "float32", False, painted, seed)]

    plain = onnx_graph(own, 1, "float32", "grid", False)
    graphs = {"float32": plain.SerializeToString()}
    for name, painted in (("int8, ranges of good images", False), ("int8, ranges of painted defects, too", True)):
        graphs[name] = quantised(copy.deepcopy(plain), iter(shown(painted, 1)))[0].SerializeToString()
    asked = shown(True, 0)  # other defects
    runtimes: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
    sessions = {(r, p): open_session(r, content, None) for r in runtimes for p, content in graphs.items()}
    runs = {" ".join(key): partial(_scores, session, asked) for key, session in sessions.items()}
    took = turns(runs, rounds=3)
    found = []
    for (runtime, precision), session in sessions.items():
        rate = len(asked) / middle(took[f"{runtime} {precision}"])
        row = {"runtime": runtime, "precision": precision, "images_per_s": round(rate, 2)}
        if precision != "float32":
            exact = _scores(sessions[runtime, "float32"], asked)
            row["off"] = round(float((np.abs(_scores(session, asked) - exact) / np.abs(exact)).max()), 4)
        found.append(row)
    return {"rows": found}


def _scores(session: Session, inputs: Sequence[Inputs]) -> npt.NDArray[np.float32]:
    return np.concatenate([session.run(one).score for one in inputs])


def table_of_int8(rows: list[Record]) -> str:
    lines = []
    for row in (row for record in rows if record["part"] == "int8" for row in record["rows"]):
        off = f"{row['off']:.1%}" if "off" in row else ""
        lines.append([row["runtime"], row["precision"], f"{row['images_per_s']:.2f}", off])
    return markdown(["runtime", "precision", "images/s", "scores off by up to"], lines)


def _figures(rate: float, flops: float, peak: float) -> dict[str, float]:
    return {
        "images_per_s": round(rate, 2),
        "us_per_image": round(1e6 / rate),
        "share_of_peak": round(rate * flops / peak, 3),
    }


def _engines(device: str) -> list[EngineName]:
    if device != "cpu":
        return ["auto"]
    names: list[EngineName] = ["torch", "auto", "bfloat16"]
    return names if has_bfloat16() else names[:2]


def _judging(detector: Detector, device: str, engine: EngineName) -> Callable[[torch.Tensor], Any]:
    """All that predict does from pixels in memory to maps; images are decoded in threads beside it."""
    loader = detector.loader(ComputeOptions(device=device, engine=engine))

    def run(images: torch.Tensor) -> Any:
        return detector.judge(loader.batch_of([Prepared(image, None) for image in images.numpy()]))

    return run


def _flops(model: PDNName, whole: bool) -> float:
    """Floating-point operations of the convolutions for one image, counted as they run."""
    total = 0

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        conv = module
        assert isinstance(conv, torch.nn.Conv2d)
        total += 2 * conv.weight[0].numel() * output.numel()

    networks: list[tuple[torch.nn.Module, int]] = [(PDN(model), 256)]
    if whole:
        frame = 16
        networks = [(PDN(model, 3 * CHANNELS, frame), 256), (Autoencoder((64, 64)), 256)]
        # teacher and student differ in the last convolution alone: all but that twice
        networks.append((_Inner(Student(model, frame)), 256))
    with torch.no_grad():
        for network, side in networks:
            hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
            network.eval()(torch.zeros(1, 3, side, side))
            for hook in hooks:
                hook.remove()
    return float(total)


class _Inner(torch.nn.Module):
    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.student.inner(x)


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    a = torch.rand(2048, 2048, device=device).to(dtype)
    rate = _rate(lambda _: a @ a, torch.zeros(1), device)
    return 2 * 2048**3 * rate


def _torch_runner(network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[[torch.Tensor], Any]:
    def run(images: torch.Tensor) -> Any:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return network(images.to(device))

    return run


def _openvino_runner(network: torch.nn.Module, precision: str) -> Callable[[torch.Tensor], Any]:
    """Compiled once a batch size: the graph of a whole detector holds it as a constant."""
    import openvino

    compiled: dict[int, Any] = {}
    hint = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}

    def run(images: torch.Tensor) -> Any:
        if len(images) not in compiled:
            buffer = io.BytesIO()
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                torch.onnx.export(network, (images,), buffer, dynamo=False)  # type: ignore[arg-type]  # takes files too
            core = openvino.Core()
            compiled[len(images)] = core.compile_model(core.read_model(buffer.getvalue()), "CPU", hint)
        return compiled[len(images)](images.numpy())

    return run


def _rate(run: Callable[[torch.Tensor], Any], images: torch.Tensor, device: torch.device, seconds: float = 5) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run(images)
    wait()
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        run(images)
        wait()
        n += len(images)
    return n / (time.perf_counter() - began)


def arguments(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_subparsers(dest="what", required=True)
    own = parts.add_parser("explained")
    own.add_argument("out", type=Path)
    own.add_argument("--photos", type=Path, required=True)
    own = parts.add_parser("int8")
    own.add_argument("--model", default="small", choices=["tiny", "small", "medium"])
    for name in ("quality", "steps", "penalty", "teacher", "speed"):
        own = parts.add_parser(name)
        own.add_argument("--model", default="tiny", choices=["tiny", "small", "medium"])
        if name == "speed":
            own.add_argument("--device", default="cpu")
            add_peer(own)
            continue
        own.add_argument("data", type=Path)
        own.add_argument("out", type=Path)
        own.add_argument("--steps", type=int, default=500)
        own.add_argument("--lr", type=float, default=5e-4)
        own.add_argument("--weights", help="teacher; the shipped one unless told")
        own.add_argument("--train", type=int, default=None, help="use so many training images")
        own.add_argument("--seed", type=int, default=0)
        if name in ("penalty", "teacher"):
            own.add_argument("--photos", type=Path, required=True)
        if name == "teacher":
            own.add_argument("--backbone", default="efficientnet_lite2")
            own.add_argument("--layers", default="blocks.3.0.bn1+blocks.5.0.bn1")
            own.add_argument("--teacher-steps", type=int, default=2000)
            own.add_argument("--limits", type=int, nargs="+", default=[250, 500, 1000], help="photographs")
            own.add_argument("--shorter", type=int, nargs="*", default=[4, 2], help="divisors of the steps")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    torch.manual_seed(0)
    parts: dict[str, Callable[[argparse.Namespace], Iterator[Case]]] = {
        "quality": quality,
        "steps": steps,
        "penalty": penalty,
        "teacher": teacher,
        "explained": explained,
        "speed": speed,
        "int8": int8,
    }
    return parts[given.what](given)


SUITE = Suite(cases, arguments, {"int8": table_of_int8}, weights=("efficientnet_lite0", "pdn_tiny"))
