"""EfficientAD's remedies on one trained model, each judged without training again; with a GPU, at the paper's rate.

python -m bench.efficientad_gpu DATA OUT [--steps 20000] [--model small] [--size 256] [--seeds 0] [--device cuda]
    [--natural PHOTOS] [--jittered] [--photos PHOTOS --teacher-steps 20000]

With ``--photos`` a teacher is distilled first (else the one that comes with pickglass is taken); with ``--natural`` the
penalty has photographs instead of generated pictures; with ``--jittered`` the student's branch sees jittered images
too. Each seed is one fit, saved as OUT/efficientad-SEED.safetensors: what is there is judged again, so a killed run
goes on. One JSON line a form of the map and of the score: image AUROC, AUPRO@0.3 and @0.05. DATA has images of 256 x
256 pixels (bench/tools/squeeze.py).

Forms of each branch's map, before both are averaged:
- ``shipped``: the 0.9 and 0.995 quantiles of held-back good images become 0 and 0.1, ring by ring
- ``tail``: the 0.9 and 0.999 quantiles, over all cells
- ``place``: each cell minus the mean of good images there, over their deviation
- ``relative``: the squared difference over the squared length of what is predicted, plus the usual one; then the tail
- ``channels``: the local map's channels count by the share of their variance that the student explains on good
  images; then the tail
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pickglass as pg
from bench.harness.scorer import read_tool
from pickglass.app.distill import distill
from pickglass.data import Table, load_dataset, split_roles
from pickglass.features.batch import Batch
from pickglass.features.distillation import DistillSettings
from pickglass.methods import EfficientAD
from pickglass.methods.efficientad import _normalised, jitter
from pickglass.metrics import auroc
from pickglass.nn.maps import PlaceSums, mean_of_highest, resampled_to
from pickglass.nn.networks.pdn import AE_SIDE, CHANNELS
from pickglass.runtime.compute import ComputeOptions

SHARES = {"max": 0.0, "top 0.2 %": 0.002, "top 1 %": 0.01}
Maps = dict[str, Tensor]  # (N, h, w) of each branch


class Jittered(EfficientAD):
    """The student learns the teacher of jittered images, as the autoencoder does."""

    def loss(self, batch: Batch) -> Tensor:
        images = jitter(self._images(batch), self._draws)
        with torch.no_grad():
            level = self._teacher(images)
        return super().loss(batch._replace(images=images, levels=(level,)))


def answers(detector: EfficientAD, rows: Table, device: str) -> Iterator[tuple[Tensor, ...]]:
    """What teacher, student and autoencoder say of the images, batch by batch: T, S, S' and A, (B, C, h, w) each."""
    student, autoencoder = detector._networks()
    for loaded in detector.loader(ComputeOptions(device=device)).sound_batches(rows, lambda *_: None):
        batch = loaded.batch
        if batch is None:
            continue
        x = detector._prepared(detector._images(batch))
        with torch.no_grad():
            t = _normalised(detector._inside(batch.levels[0]), detector.mean, detector.std)
            s, a = student(x, slice(None)), autoencoder(resampled_to(x, (AE_SIDE, AE_SIDE)))
        yield tuple(part[:, 0] for part in (t, s[:, :, :CHANNELS], s[:, :, CHANNELS:], a))


def explained(detector: EfficientAD, rows: Table, device: str) -> Tensor:
    """The share of the variance of each channel that the student explains, (C,), at least 0."""
    left, whole = torch.zeros(CHANNELS, device=device), torch.zeros(CHANNELS, device=device)
    for t, s, _, _ in answers(detector, rows, device):
        left = left + (t - s).square().sum((0, 2, 3))
        whole = whole + t.square().sum((0, 2, 3))
    shares: Tensor = (1 - left / whole.clamp(min=1e-12)).clamp(min=0)
    return shares


def raw_maps(detector: EfficientAD, rows: Table, shares: Tensor, device: str) -> dict[str, Maps]:
    """The branches' maps of each form, not scaled."""
    found: dict[str, list[Tensor]] = {}
    weights = (shares / shares.mean().clamp(min=1e-12))[:, None, None]
    for t, s, s2, a in answers(detector, rows, device):
        d, g = (t - s).square(), (a - s2).square()
        parts = {
            "plain local": d.mean(1),
            "plain global": g.mean(1),
            "relative local": d.mean(1) / (t.square().mean(1) + 1),  # T has mean square 1 over good images
            "relative global": g.mean(1) / (a.square().mean(1) + 1),
            "channels local": (d * weights).mean(1),
            "channels global": g.mean(1),
        }
        for name, part in parts.items():
            found.setdefault(name, []).append(part.cpu())
    return {
        form: {branch: torch.cat(found[f"{form} {branch}"]) for branch in ("local", "global")}
        for form in ("plain", "relative", "channels")
    }


def tailed(maps: Tensor, good: Tensor) -> Tensor:
    """Scale maps so that the 0.9 and 0.999 quantiles of good ones become 0 and 0.1."""
    low, high = map(float, np.quantile(good.double().numpy(), [0.9, 0.999]))
    return 0.1 * (maps - low) / max(high - low, 1e-12)


def placed(maps: Tensor, good: Tensor) -> Tensor:
    """Compare each cell with the mean and deviation of good maps there, in units of the usual deviation."""
    gain, shift = PlaceSums.of(good, torch.ones_like(good, dtype=torch.bool)).scale()
    return (maps * gain + shift - good.mean()) / good.std().clamp(min=1e-12)


def forms(test: dict[str, Maps], good: dict[str, Maps]) -> Iterator[tuple[str, Tensor]]:
    """The joined map of each form, (N, h, w), and of each branch by itself."""
    for name, kind, scale in (
        ("tail", "plain", tailed),
        ("place", "plain", placed),
        ("relative", "relative", tailed),
        ("relative, place", "relative", placed),
        ("channels", "channels", tailed),
    ):
        local, whole = (scale(test[kind][branch], good[kind][branch]) for branch in ("local", "global"))
        yield name, (local + whole) / 2
        yield f"{name}, local alone", local
        yield f"{name}, global alone", whole


def figures(maps: Tensor, rows: list[Any], folder: Path) -> list[dict[str, Any]]:
    """Image AUROC by each score, and AUPRO."""
    labels = np.array([row.label for row in rows])
    by = {
        name: (mean_of_highest(maps, share) if share else maps.flatten(1).max(1).values).numpy()
        for name, share in SHARES.items()
    }
    file = folder / "form.npz"
    np.savez(file, scores=by["max"], maps=maps.float().numpy(), paths=np.array([row.path for row in rows]))
    tables = read_tool(file, rows, 1).tables
    file.unlink()
    once = np.ones(len(rows), int)
    aupro = {f"aupro_{int(100 * limit):02d}": round(float(tables.aupro(once, limit)), 4) for limit in (0.3, 0.05)}
    return [
        {"score": name, "image_auroc": round(float(auroc(labels, scores)), 4), **aupro} for name, scores in by.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--model", default="small", choices=["tiny", "small", "medium"])
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--natural", default="generated", help="'generated', 'none', or a folder of photographs")
    parser.add_argument("--jittered", action="store_true")
    parser.add_argument("--photos", type=Path, help="folder of photographs to distil a teacher from")
    parser.add_argument("--backbone", default="efficientnet_lite2")
    parser.add_argument("--layers", default="stage3+stage5")
    parser.add_argument("--teacher-steps", type=int, default=20_000)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    compute = ComputeOptions(device=given.device)
    weights = "default"
    if given.photos is not None:
        file = given.out / f"pdn_{given.model}.safetensors"
        if not file.exists() or file.with_suffix(".training.safetensors").exists():
            settings = DistillSettings(
                given.backbone, given.layers.split("+"), model=given.model, steps=given.teacher_steps
            )
            distill(given.photos, file, settings, compute=compute)
        weights = str(file)
    dataset = load_dataset(given.data)
    rows = list(dataset.test)
    for seed in given.seeds:
        saved = given.out / f"efficientad-{seed}.safetensors"
        if not saved.exists():
            detector = (Jittered if given.jittered else EfficientAD)(
                backbone=f"pdn_{given.model}",
                weights=weights,
                size=given.size,
                steps=given.steps,
                lr=given.lr,
                natural=given.natural,
            )
            detector.fit(dataset.train, calibrate=0, seed=seed, device=given.device)
            detector.save(saved)
        loaded = pg.load(saved)
        if not isinstance(loaded, EfficientAD):
            raise SystemExit(f"{saved} is no EfficientAD")
        told = {"seed": seed, "steps": loaded.steps, "model": loaded.backbone, "size": given.size}
        told |= {"natural": given.natural, "jittered": given.jittered, "teacher": Path(weights).name}
        shipped = loaded.predict(dataset.test, device=given.device)
        device = next(loaded.buffers()).device.type
        divided = split_roles(dataset.train, loaded.validate_share, 0.0, seed)
        shares = explained(loaded, divided.role("fit"), device)
        good, test = (raw_maps(loaded, part, shares, device) for part in (divided.role("validate"), dataset.test))
        joined = [("shipped", torch.from_numpy(np.stack(shipped.maps))), *forms(test, good)]
        for name, maps in joined:
            for line in figures(maps, rows, given.out):
                print(json.dumps({**told, "form": name, **line}), flush=True)


if __name__ == "__main__":
    main()
