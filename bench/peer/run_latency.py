"""Milliseconds of one image through the peer's model, from memory to memory: the other side of bench/gpu.py.

    PEER/bin/python bench/peer/run_latency.py patchcore | padim | efficientad [--device cuda] [--size 256]
        [--passes 200] [--bank 512] [--dims 100] [--layers blocks.2 blocks.4]

What was learned is drawn at random, as large as it would be: it does not change the time. A warm-up, then the mean, in
float32 and, on a GPU, in float16 by autocast.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from contextlib import nullcontext
from typing import Any

import torch


def build(given: argparse.Namespace) -> Any:
    """The peer's model; frozen networks have random weights."""
    if given.method == "efficientad":
        from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

        return EfficientAdModel(teacher_out_channels=384, model_size="small")
    backbone: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "layers": given.layers, "pre_trained": False}
    if given.method == "patchcore":
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        model = PatchcoreModel(**backbone)
        model.memory_bank = torch.rand(given.bank, sum(model.feature_extractor.out_dims))
        return model
    from anomalib.models.image.padim.torch_model import PadimModel

    model = PadimModel(n_features=given.dims, **backbone)
    model.eval()
    cells = model.generate_embedding(model.feature_extractor(torch.rand(1, 3, given.size, given.size)))[0, 0].numel()
    model.gaussian.mean = torch.rand(given.dims, cells)
    model.gaussian.inv_covariance = torch.eye(given.dims).repeat(cells, 1, 1)
    return model


def main() -> None:
    """Time it, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["patchcore", "padim", "efficientad"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--passes", type=int, default=200)
    parser.add_argument("--bank", type=int, default=512, help="patches of PatchCore's bank")
    parser.add_argument("--dims", type=int, default=100, help="channels that PaDiM keeps")
    parser.add_argument("--layers", nargs="+", default=["blocks.2", "blocks.4"])
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    model = build(given).eval().to(given.device)
    image = torch.rand(1, 3, given.size, given.size)
    found: dict[str, float] = {}
    for precision in ("float32", "float16") if given.device == "cuda" else ("float32",):
        half = torch.autocast("cuda", torch.float16) if precision == "float16" else nullcontext()
        with torch.no_grad(), half:
            for n in range(given.passes + given.passes // 4):
                if n == given.passes // 4:
                    began = time.perf_counter()
                model(image.to(given.device)).anomaly_map.float().cpu()
        found[f"{given.device}, {precision}"] = 1000 * (time.perf_counter() - began) / given.passes
    print(json.dumps(found))


if __name__ == "__main__":
    main()
