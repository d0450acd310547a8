"""The engine against torch and onnxruntime: images/s of a frozen backbone on this machine, one JSON line.

python -m bench.engine [--backbone efficientnet_lite0] [--layers stage3,stage5] [--size 256] [--batch 1 8]
onnxruntime is measured where it is installed; it is no dependency.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from pickglass.features import FeatureExtractor
from pickglass.features.engine import BackboneEngine
from pickglass.runtime.compute import EngineName

Run = Callable[[torch.Tensor], Any]


def speed(run: Run, images: torch.Tensor, rounds: int = 5) -> float:
    """Best of several rounds, each at least 32 images."""
    repeats = max(1, 32 // len(images))
    run(images)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            run(images)
        best = min(best, (time.perf_counter() - start) / (repeats * len(images)))
    return round(1 / best, 1)


ENGINES: tuple[EngineName, ...] = ("torch", "openvino")


def onnxruntime_session(extractor: FeatureExtractor, images: torch.Tensor) -> Run:
    import onnxruntime

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            extractor,
            (images[:1],),
            buffer,  # type: ignore[arg-type]  # the exporter takes files too
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--layers", default="stage3,stage5")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    given = parser.parse_args()
    extractor = FeatureExtractor(given.backbone, given.layers.split(","), given.weights)
    result: dict[str, object] = {"backbone": given.backbone, "size": given.size, "threads": torch.get_num_threads()}
    for batch in given.batch:
        images = torch.rand(batch, 3, given.size, given.size)
        figures: dict[str, float] = {name: speed(BackboneEngine(extractor, "cpu", name), images) for name in ENGINES}
        if importlib.util.find_spec("onnxruntime"):
            figures["onnxruntime"] = speed(onnxruntime_session(extractor, images), images)
        result[f"batch {batch}"] = figures
    print(json.dumps(result))


if __name__ == "__main__":
    main()
