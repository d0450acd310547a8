"""Runs the frozen backbone: in OpenVINO on a CPU, several times faster than torch, or in torch.

The graph goes through ONNX in memory, which takes a second where the direct conversion takes four. Before the engine
is trusted, its answer to the first batch is compared with torch's.

OpenVINO computes in float32, or where it is told so in bfloat16, which the CPU must have: faster again, with features
that are off by about a hundredth. That is never chosen unasked.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pickglass.errors import InputError
from pickglass.features.extractor import FeatureExtractor

__all__ = ["Engine", "EngineName", "has_bfloat16"]

EngineName = Literal["auto", "openvino", "bfloat16", "torch"]

_AT_ONCE = 2  # images: more of them leave the cache between layers
TOLERANCE = {"openvino": 1e-3, "bfloat16": 2e-2}  # largest difference from torch, of a layer's largest value


class Engine:
    """A feature extractor made ready to run.

    Args:
        extractor: moved to ``device`` where that is not the CPU.
        device: e.g. ``"cpu"`` or ``"cuda"``.
        name: ``"auto"`` is OpenVINO on a CPU and torch elsewhere, and falls back to torch, with a warning, where
            OpenVINO cannot convert the network or answers differently; ``"openvino"`` raises instead.
            ``"bfloat16"`` is OpenVINO in that precision.

    Raises:
        InputError: an unknown name, one that does not run on the device, or no bfloat16 in this CPU.
    """

    def __init__(self, extractor: FeatureExtractor, device: str, name: EngineName = "auto") -> None:
        if name not in get_args(EngineName):
            raise InputError(f"engine={name!r}: expected one of {', '.join(get_args(EngineName))}")
        if name in ("openvino", "bfloat16") and device != "cpu":
            raise InputError(f"engine={name!r} runs on the CPU, but device={device!r}: leave the engine on 'auto'")
        if name == "bfloat16" and not has_bfloat16():
            raise InputError("engine='bfloat16', but this CPU does not compute in bfloat16: leave the engine on 'auto'")
        self.extractor = extractor.to(device)
        self.device = device
        self.wanted = name
        self.name: Literal["openvino", "bfloat16", "torch"] = (
            "torch" if name == "torch" or device != "cpu" else "bfloat16" if name == "bfloat16" else "openvino"
        )
        self._compiled: dict[tuple[int, ...], Any] = {}  # (H, W) -> compiled model

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) RGB in [0, 1] on the CPU -> per layer (B, C, h, w) on ``device``."""
        if self.name != "torch":
            size = tuple(images.shape[2:])
            if size not in self._compiled and not self._prepare(images):
                return self(images)  # torch from here on
            run = self._compiled[size]
            # sharing the engine's memory instead of copying out of it is a quarter slower
            parts = [list(run(images[i : i + _AT_ONCE].numpy()).values()) for i in range(0, len(images), _AT_ONCE)]
            return tuple(torch.from_numpy(np.concatenate(level)) for level in zip(*parts, strict=True))
        outputs: tuple[Tensor, ...] = self.extractor(images.to(self.device))
        return outputs

    def _prepare(self, images: Tensor) -> bool:
        """Compile for this size and compare with torch; False: from now on torch."""
        problem = None
        try:
            compiled = _compile(self.extractor, images[:1], self.name)
        except (RuntimeError, ImportError, AttributeError) as error:
            problem = f"cannot convert it ({type(error).__name__}: {str(error).splitlines()[0]})"
        else:
            worst = _difference(self.extractor(images[:1]), compiled(images[:1].numpy()).values())
            allowed = TOLERANCE[self.name]
            if worst > allowed:
                problem = f"answers differently from torch (by {worst:.1e} of a layer's range, allowed {allowed:.0e})"
        if problem is None:
            self._compiled[tuple(images.shape[2:])] = compiled
            return True
        message = f"OpenVINO {problem}: {self.extractor.backbone}, layers {', '.join(self.extractor.layers)}"
        if self.wanted != "auto":
            raise InputError(f"{message}. Use engine={'auto' if self.wanted == 'bfloat16' else 'torch'!r}.")
        warnings.warn(f"{message}; running in torch, which is slower.", RuntimeWarning, stacklevel=4)
        self.name = "torch"
        return False


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _compile(extractor: FeatureExtractor, example: Tensor, name: str) -> Any:
    import openvino

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is what one compilation per size wants
        torch.onnx.export(
            extractor,
            (example,),
            buffer,  # type: ignore[arg-type]  # the exporter takes files too
            dynamo=False,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch"}},
        )
    core = openvino.Core()
    model = core.read_model(buffer.getvalue())
    model.reshape([-1, *example.shape[1:]])
    # where the CPU has bfloat16 the plugin would use it unasked
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16" if name == "bfloat16" else "f32"})


def _difference(expected: tuple[Tensor, ...], got: Any) -> float:
    """Largest difference over the layers, each relative to the layer's largest value."""
    shares = []
    for e, g in zip(expected, got, strict=True):
        if tuple(e.shape) != g.shape or not np.isfinite(g).all():
            return float("inf")
        shares.append(float(np.abs(e.numpy() - g).max()) / max(float(e.abs().max()), 1e-12))
    return max(shares)
