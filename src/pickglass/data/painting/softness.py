"""Good images say how soft their edges are, so that what is painted on them is no sharper than what they show.

An edge whose softness is a Gaussian of s pixels has a gradient of A / sqrt(2 pi (s^2 + t^2)) after a blur of t. Two
blurs give two gradients, and their ratio gives s whatever the height A of the edge (Zhuo and Sim, "Defocus map
estimation from a single image", Pattern Recognition 2011, who use it to tell what is out of focus).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pickglass.data.painting.shapes import Floats, ndimage

__all__ = ["edge_spread"]

_BLURS = (1.0, 2.0)  # px
_STRONGEST = 0.01  # of the pixels may be edges
_OVER_NOISE = 5.0  # times the usual gradient, or it may be noise
_LEAST = 20  # places; fewer say nothing
_SIDE = 1024  # px of an image that are looked at


def edge_spread(images: Iterable[NDArray[np.uint8]]) -> float | None:
    """Estimate how soft the edges on good images are: the median standard deviation over their strongest edges.

    Args:
        images: ``(H, W)`` or ``(H, W, 3)`` uint8; a few are enough.

    Returns:
        Pixels of the image, 0 for edges between two pixels; None where the images show hardly an edge.

    Raises:
        MissingExtra: SciPy is not installed.
    """
    found = [_spreads(image) for image in images]
    spreads = np.concatenate(found) if found else np.zeros(0)
    return float(np.median(spreads)) if len(spreads) >= _LEAST else None


def _spreads(image: NDArray[np.uint8]) -> Floats:
    """Estimate the spread at each strong edge of an image, (n,)."""
    top, left = (max(0, (n - _SIDE) // 2) for n in image.shape[:2])
    part = image[top : top + _SIDE, left : left + _SIDE]
    grey = part.reshape(*part.shape[:2], -1).mean(axis=2)  # (h, w)
    fine, coarse = (ndimage().gaussian_gradient_magnitude(grey, blur) for blur in _BLURS)
    # an edge is where the gradient is highest across it, also after the stronger blur, which leaves little of noise
    crest = coarse >= ndimage().maximum_filter(coarse, 3)
    strong = crest & (coarse >= np.quantile(coarse, 1 - _STRONGEST)) & (coarse > _OVER_NOISE * np.median(coarse))
    ratio = fine[strong] / np.maximum(coarse[strong], 1e-9)
    t, u = _BLURS
    ratio = np.clip(ratio, 1.02, None)  # a ramp that is much wider than both blurs
    variance = (u**2 - ratio**2 * t**2) / (ratio**2 - 1)
    spreads: Floats = np.sqrt(np.clip(variance, 0, None))
    return spreads
