"""The peer's tiled ensemble of PaDiM on one data set in MVTec AD layout: the other side of bench/tiled_ensemble.py.

Usage (python of the peer's environment): python bench/peer/run_tiled.py DATA OUT [--size 512 --tile 256 --stride 128]
prints one JSON line: fit_s, evaluate_s, peak_rss_mb. ResNet-18 with random weights, 100 dimensions. anomalib 2.7.0's
pipeline does not pass model arguments on, so the model is handed to it directly.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import yaml
from jsonargparse import Namespace


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--stride", type=int, default=128)
    given = parser.parse_args()

    create = timm.create_model
    timm.create_model = lambda *a, **k: create(*a, **{**k, "pretrained": False})
    from anomalib.models import Padim
    from anomalib.pipelines.tiled_ensemble import EvalTiledEnsemble, TrainTiledEnsemble
    from anomalib.pipelines.tiled_ensemble.components.utils import helper_functions

    def get_model(_: dict[str, Any], **changes: Any) -> Padim:
        return Padim(
            backbone="resnet18", layers=["layer1", "layer2", "layer3"], pre_trained=False, n_features=100, **changes
        )

    helper_functions.get_model = get_model
    bad = sorted(d.name for d in (given.data / "test").iterdir() if d.is_dir() and d.name != "good")
    config = {
        "seed": 42,
        "accelerator": "cpu",
        "default_root_dir": str(given.out),
        "tiling": {
            "image_size": [given.size, given.size],
            "tile_size": [given.tile, given.tile],
            "stride": given.stride,
        },
        "normalization_stage": "image",
        "thresholding_stage": "image",
        "data": {
            "class_path": "anomalib.data.Folder",
            "init_args": {
                "name": given.data.name,
                "root": str(given.data),
                "normal_dir": "train/good",
                "normal_test_dir": "test/good",
                "abnormal_dir": [f"test/{b}" for b in bad],
                "mask_dir": [f"ground_truth/{b}" for b in bad],
                "train_batch_size": 32,
                "eval_batch_size": 32,
                "num_workers": 0,
                "test_split_mode": "from_dir",
                "val_split_mode": "same_as_test",
            },
        },
        "SeamSmoothing": {"apply": True, "sigma": 2, "width": 0.1},
        "TrainModels": {"model": {"class_path": "anomalib.models.Padim"}},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    began = time.perf_counter()
    train = TrainTiledEnsemble()
    train.run(Namespace(config=str(file)))
    fit_s = time.perf_counter() - began
    began = time.perf_counter()
    EvalTiledEnsemble(train.root_dir).run(Namespace(config=str(file)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"fit_s": fit_s, "evaluate_s": time.perf_counter() - began, "peak_rss_mb": peak}))


if __name__ == "__main__":
    main()
