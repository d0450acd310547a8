"""Three models for a machine without any: PatchCore, PaDiM and EfficientAD, fitted in seconds and exported."""

from __future__ import annotations

from pathlib import Path

from pickglass.data.painting.natural import natural_images
from pickglass.methods import EfficientAD, PaDiM, PatchCore
from pickglass.runtime.compute import Progress

__all__ = ["SUITE_SIDE", "write_suite"]

SUITE_SIDE = 256  # pixels of the canvas
_IMAGES = 16
_BANK = 2_500  # patches, the bank of a few hundred images at 1 %


def write_suite(folder: Path, progress: Progress | None = None, *, side: int = SUITE_SIDE, seed: int = 0) -> list[Path]:
    """Fit the three methods on generated pictures, and write each as a model file and as an exported file.

    What they have learned is worthless; their speed is that of a model of the same form that has learned for long, for
    neither bank nor networks grow with the fit.

    Args:
        folder: to write to.
        progress: called with (stage, done, total).
        side: pixels of the canvas.
        seed: seeds the pictures and the fits.
    """
    pictures = natural_images(_IMAGES, (side, side), seed)
    cells = _IMAGES * (side // 8) ** 2  # of PatchCore's finer layer
    detectors = (
        PatchCore(size=side, ratio=min(1.0, _BANK / cells)),
        PaDiM(size=side),
        EfficientAD(backbone="pdn_tiny", size=side, steps=2),
    )
    written = []
    for done, detector in enumerate(detectors):
        if progress is not None:
            progress("fitting", done, len(detectors))
        detector.fit(pictures, seed=seed)
        written.append(detector.save(folder / f"{detector.method}.safetensors"))
        target = folder / f"{detector.method}.onnx"
        detector.export(target, pictures[:2])
        written.append(target)
    return written
