"""A mask consists of connected regions.

By SciPy, not by connected-components-3d, which is faster: for boolean 2-D masks its release 4.1.1 was seen to number
regions with gaps and to label pixels outside the mask, so that regions of no pixel would dilute every mean over them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import generate_binary_structure, label

__all__ = ["connected_regions"]


def connected_regions(
    mask: npt.NDArray[np.bool_], connectivity: Literal[4, 8] = 8
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp]]:
    """Label the regions of a (H, W) mask.

    Args:
        mask: bool (H, W).
        connectivity: 8: pixels that touch at a corner are one region; 4: at an edge only.

    Returns:
        Labels (H, W), 0 outside and 1 to n inside, and the n areas in pixels.

    Example:
        >>> labels, areas = connected_regions(np.eye(3, dtype=bool), connectivity=4)
        >>> labels.tolist(), areas.tolist()
        ([[1, 0, 0], [0, 2, 0], [0, 0, 3]], [1, 1, 1])
    """
    labels, count = label(mask, generate_binary_structure(2, 2 if connectivity == 8 else 1))
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]
