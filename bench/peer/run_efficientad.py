"""Images a second of the peer's EfficientAD with random weights at 256 px: the other side of bench/efficientad.py.

Usage (python of the peer's environment): python bench/peer/run_efficientad.py tiny | small | medium
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import torch


def main() -> None:
    warnings.simplefilter("ignore")
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    model = EfficientAdModel(teacher_out_channels=384, model_size=sys.argv[1]).eval()

    def rate(batch: int, seconds: float = 5) -> float:
        images = torch.rand(batch, 3, 256, 256)
        with torch.no_grad():
            model(images)
            began, n = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                model(images)
                n += batch
            return n / (time.perf_counter() - began)

    print(json.dumps({f"peer torch, batch {batch}": rate(batch) for batch in (1, 16)}))


if __name__ == "__main__":
    main()
